"""Tokens per second of one system on one model: the job's engine, and transformers' two ways to generate."""

import time
from collections.abc import Callable
from typing import Any

import torch
from _model_shapes import SHAPES
from step_model import run_secs

from . import engines, figures
from .device import DEVICE, wait
from .models import make_model, make_prompts

Run = Callable[[], dict[str, Any]]
"""Generates, and returns what else is to be saved; ``secs`` if not all of the call counts."""

STATIC_ROWS = 64
"""Rows of a batch of ``generate``."""


def main(
    *, system: str, shape: str, rows: int, longest: int, num_new: int, options: dict[str, Any] | None = None
) -> None:
    """Generate ``num_new`` tokens for each of ``rows`` prompts of up to ``longest`` tokens.

    Args:
        system: ``ours``, ``generate`` (static batches, padded on the left) or ``generate_batch``.
        options: fields of ``EngineConfig``, or of transformers' ``ContinuousBatchingConfig``.
    """
    begin = time.perf_counter()
    model = make_model(shape)
    wait()
    model_secs = time.perf_counter() - begin
    prompts = make_prompts(rows, longest, SHAPES[shape].vocab)
    begin = time.perf_counter()
    run = SYSTEMS[system](model, prompts, num_new, options or {})
    start_secs = time.perf_counter() - begin
    wait()
    begin = time.perf_counter()
    details = run()
    secs = details.pop("secs", time.perf_counter() - begin)
    num_prompt_tokens = sum(map(len, prompts))
    expected = {}
    if system == "ours":
        at_once = run_secs(SHAPES[shape], figures.card(), [len(ids) for ids in prompts], num_new, 512, 4096)
        expected = {"completion_tokens_per_s": rows * num_new / at_once, "secs": at_once}
    figures.save(
        f"{system}, {shape}, {rows} rows of {num_prompt_tokens // rows} + {num_new}",
        expected,
        completion_tokens_per_s=rows * num_new / secs,
        all_tokens_per_s=(rows * num_new + num_prompt_tokens) / secs,
        secs=secs,
        start_secs=start_secs,
        model_secs=model_secs,
        **details,
    )


def _ours(model: Any, prompts: list[list[int]], num_new: int, options: dict[str, Any]) -> Run:
    engine, notes = engines.build(model, options)
    # Kernels are compiled and steps of all sizes recorded before the clock runs.
    engines.submit(engine, make_prompts(len(prompts), 8, model.config.vocab_size), 2)
    engines.finish(engine)

    def run() -> dict[str, Any]:
        engines.submit(engine, prompts, num_new)
        num_steps, tokens = engines.finish(engine)
        assert all(len(ids) == num_new for ids in tokens.values()), "a row has too few tokens"
        return {"steps": num_steps, "notes": notes}

    return run


def _generate(model: Any, prompts: list[list[int]], num_new: int, options: dict[str, Any]) -> Run:
    model.set_attn_implementation("sdpa")
    values = {"max_new_tokens": num_new, "min_new_tokens": num_new, "do_sample": False, "pad_token_id": 0}

    def run(some: list[list[int]] = prompts) -> dict[str, Any]:
        for first in range(0, len(some), STATIC_ROWS):
            part = some[first : first + STATIC_ROWS]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in part], device=DEVICE)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part], device=DEVICE)
            output = model.generate(input_ids=ids, attention_mask=mask, **values)
            assert output.shape == (len(part), width + num_new)
        wait()
        return {"batch_rows": STATIC_ROWS}

    run(prompts[:2])
    return run


def _generate_batch(model: Any, prompts: list[list[int]], num_new: int, options: dict[str, Any]) -> Run:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model.set_attn_implementation("sdpa")
    config = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(**options)

    def run() -> dict[str, Any]:
        results = model.generate_batch(
            inputs=prompts, generation_config=config, continuous_batching_config=batching, record_timestamps=True
        ).values()
        lengths = {len(result.generated_tokens) for result in results}
        assert lengths == {num_new} and len(results) == len(prompts), f"{len(results)} rows of {lengths} tokens"
        times = [secs for result in results for secs in result.timestamps]
        # It sizes its cache and records its steps inside the call: that does not count.
        return {"secs": max(times) - min(times), "counted": "from its first token on"}

    return run


SYSTEMS = {"ours": _ours, "generate": _generate, "generate_batch": _generate_batch}

"""The job's paged engine on a model in this process, run through the interface that the job uses."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from job.config import EngineConfig
from job.engine.model.kv_size import stored_dtype
from job.engine.model.loading import LoadedModel
from job.engine.paged.attention import interface
from job.engine.protocol import Engine
from job.engine.registry import ENGINES
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Request
from job.tasks import Generate, SamplingParams

from .device import wait

CACHE_DTYPE = "kv_cache_dtype"


def build(module: Any, options: Mapping[str, Any]) -> tuple[Engine, list[str]]:
    """Build the engine as ``job run`` does.

    Args:
        options: fields of ``EngineConfig``, and ``kv_cache_dtype`` of ``ModelConfig``.

    Returns:
        The engine, and what the user would be told: which kernels or recordings are not used, and why.
    """
    notes: list[str] = []
    if module.config._attn_implementation == interface.NAME:  # an earlier engine's: it holds no more
        module.set_attn_implementation("sdpa")
    of_engine = {name: value for name, value in options.items() if name != CACHE_DTYPE}
    cache_dtype = stored_dtype(options.get(CACHE_DTYPE, "auto"), str(module.dtype).removeprefix("torch."))
    loaded = LoadedModel(
        module=module,
        eos_token_ids=(),
        pad_token_id=0,
        dtype=module.dtype,
        cache_dtype=getattr(torch, cache_dtype),
    )
    replica = Replica(read_process_info({}, 1))
    config = EngineConfig(**of_engine)
    engine = ENGINES["paged"].build(loaded, config, replica, should_stop=lambda: False, note=notes.append)
    return engine, notes


def submit(engine: Engine, prompts: list[list[int]], num_new: int) -> None:
    """Ask for a completion of each prompt, greedy, of exactly ``num_new`` tokens."""
    task = Generate(params=SamplingParams(max_new_tokens=num_new, ignore_eos=True))
    for row_idx, ids in enumerate(prompts):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=task))


def finish(engine: Engine) -> tuple[int, dict[int, tuple[int, ...]]]:
    """Complete all requests.

    Returns:
        The number of steps, and the tokens of each row.
    """
    num_steps, tokens = 0, {}
    while engine.num_pending:
        for generation in engine.step():
            assert generation.error is None, generation.error
            tokens[generation.request.row_idx] = tuple(generation.token_ids)
        num_steps += 1
    wait()
    return num_steps, tokens


def reach_decoding(engine: Engine, num_rows: int) -> None:
    """Step until the prompts are computed and every row decodes."""
    in_a_row = 0
    while in_a_row < 3:
        before = engine.num_computed_tokens
        assert not engine.step(), "a row ended before all of them decoded"
        in_a_row = in_a_row + 1 if engine.num_computed_tokens - before == num_rows else 0


def step_ms(engine: Engine, num_steps: int) -> float:
    """Return the median ms from one step's return to the next one's."""
    times = []
    for _ in range(num_steps):
        begin = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begin)
    return sorted(times)[num_steps // 2] * 1e3

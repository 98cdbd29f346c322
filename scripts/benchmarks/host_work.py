"""What a decode step costs the host alone: scheduling, packing and book-keeping, without a device and a model.

Usage: scripts/bench host-work [ROWS ...]

The engine is real, but its executor returns ready logits, and a choice is ready at once. A step is measured in the
middle of decoding: all rows run, none begins or ends. Prints a table and one JSON object as its last line.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from job.config import EngineConfig
from job.engine.logits.pipeline import TokenChoice
from job.engine.model.loading import LoadedModel
from job.engine.paged.engine import PagedEngine
from job.engine.paged.schedule.step import Step
from job.engine.paged.support import check_support
from job.engine.paged.tasks import decoding
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Request
from job.tasks import Generate, SamplingParams

PROMPT_TOKENS, STEPS, WARM_UP = 94, 400, 20
CASES = {
    "greedy": SamplingParams(max_new_tokens=2048),
    "sampled": SamplingParams(max_new_tokens=2048, temperature=1.0),
    "with log probabilities": SamplingParams(max_new_tokens=2048, logprobs=True),
}


def make_engine(num_rows: int) -> PagedEngine:
    """Return an engine with a model of one small layer."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    module = LlamaForCausalLM(config).eval()
    model = LoadedModel(module=module, eos_token_ids=(), pad_token_id=0, dtype=torch.float32)
    replica = Replica(read_process_info({}, 1))
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    limits = {"max_batch_rows": num_rows, "max_batch_tokens": 8 * num_rows, "kv_cache_memory": 2**28}
    return PagedEngine(model, shapes, EngineConfig(**limits), replica)


def silence(engine: PagedEngine) -> None:
    """Let the engine's model and choice cost nothing."""
    logits = torch.zeros(8192, 64)
    choices = {n: TokenChoice([5] * n, [0.0] * n, [True] * n, [True] * n) for n in range(1025)}
    tokens = torch.full((1024,), 5)

    def run(step: Step, *_: Any) -> torch.Tensor:
        return logits[: max(1, int(step.sequences[:, 3].sum()))]

    def start(logits: torch.Tensor, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(tokens=tokens[: len(logits)], result=lambda: choices[len(logits)])

    engine._executor.run = run
    decoding.start_choice = start
    decoding.choose = lambda logits, *_, **__: choices[len(logits)]


def timed(seconds: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Add up what the calls of a function take."""

    def call(*args: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args)
        seconds[name] += time.perf_counter() - begin
        return result

    return call


def measure(num_rows: int, params: SamplingParams) -> dict[str, float]:
    """Return the milliseconds of a step, the median, and of its parts, the means."""
    engine = make_engine(num_rows)
    silence(engine)
    for row_idx in range(num_rows):
        prompt = [row_idx // 64, row_idx % 64, *[3] * (PROMPT_TOKENS - 2)]
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=prompt, task=Generate(params=params)))
    while any(sequence.num_generated < 1 for sequence in engine.scheduler.running) or not engine.scheduler.running:
        engine.step()
    seconds: dict[str, float] = defaultdict(float)
    parts = [(engine.scheduler, "next_work"), (engine.scheduler, "to_step")]
    parts += [(engine._tasks, name) for name in ("expect", "read", "start", "take", "collect")]
    for owner, name in parts:
        if hasattr(owner, name):
            setattr(owner, name, timed(seconds, name, getattr(owner, name)))
    steps = []
    for idx in range(WARM_UP + STEPS):
        if idx == WARM_UP:
            seconds.clear()
        begin = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - begin)
    assert len(engine.scheduler.running) == num_rows
    means = {name: value / STEPS * 1e3 for name, value in seconds.items()}
    return {"step": statistics.median(steps[WARM_UP:]) * 1e3, **means}


def main(sizes: list[int]) -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    for num_rows in sizes:
        for name, params in CASES.items():
            result = {part: round(ms, 3) for part, ms in measure(num_rows, params).items()}
            results[f"{num_rows} rows, {name}"] = result
            print(f"{num_rows} rows, {name:24}", *(f"{part} {ms:.3f}" for part, ms in result.items()), "ms")
    print(json.dumps(results))


if __name__ == "__main__":
    main([int(arg) for arg in sys.argv[1:]] or [256, 512])

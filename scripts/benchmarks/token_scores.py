"""What log probabilities cost: decode steps of rows that want none, their tokens', and those of the 20 most likely.

Usage: scripts/bench token-scores [ROWS] [MODEL]

The engine is real, in bfloat16, and decodes greedily; the choice is also measured by itself. The kinds alternate.
Prints a table and one JSON object as its last line.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from _workload import MODEL, load, load_prompt_ids

from job.config import EngineConfig
from job.engine.logits import pipeline
from job.engine.paged.engine import PagedEngine
from job.engine.paged.tasks import decoding
from job.records import Request
from job.tasks import Generate, SamplingParams

ROUNDS, STEPS = 3, 8
KINDS = {
    "none": SamplingParams(max_new_tokens=64, ignore_eos=True),
    "logprobs": SamplingParams(max_new_tokens=64, ignore_eos=True, logprobs=True),
    "20 most likely": SamplingParams(max_new_tokens=64, ignore_eos=True, num_top_logprobs=20),
}


def main(num_rows: int, model: Path) -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    loaded, prompts = load(model=model), load_prompt_ids(num_rows, model=model)
    seconds: list[float] = []

    def timed(*args: object, **kwargs: object) -> object:
        begin = time.perf_counter()
        try:
            return pipeline.start_choice(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            seconds.append(time.perf_counter() - begin)

    decoding.start_choice = timed  # type: ignore[assignment]
    steps: dict[str, list[float]] = {name: [] for name in KINDS}
    choices: dict[str, list[float]] = {name: [] for name in KINDS}
    engines = {}
    for name, params in KINDS.items():
        engine = PagedEngine(
            loaded.model,
            loaded.shapes,
            EngineConfig(max_batch_rows=num_rows, kv_cache_memory=2**31),
            loaded.replica,
        )
        for row_idx, ids in enumerate(prompts):
            engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=Generate(params=params)))
        while len(engine.scheduler.running) < num_rows or any(
            not row.num_generated for row in engine.scheduler.running
        ):
            engine.step()
        engines[name] = engine
    for _ in range(ROUNDS * STEPS):
        for name, engine in engines.items():
            seconds.clear()
            begin = time.perf_counter()
            engine.step()
            steps[name].append((time.perf_counter() - begin) * 1e3)
            choices[name].append(sum(seconds) * 1e3)
    result = {}
    for name in KINDS:
        more = statistics.median(b - a for a, b in zip(steps["none"], steps[name], strict=True))
        step = statistics.median(steps[name])
        choice = statistics.median(choices[name])
        result[name] = {"step_ms": round(step, 1), "choice_ms": round(choice, 1), "more_ms": round(more, 1)}
        print(f"{num_rows} rows, {name:16} step {step:.1f} choice {choice:.1f} more {more:.1f} ms")
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256, Path(sys.argv[2]) if len(sys.argv) > 2 else MODEL)

"""What parameters of rows cost a decode step: the choice of a token for rows that are all alike, and that all differ.

Usage: scripts/bench row-params [ROWS]

The vocabulary is small, so that what the host does for each row is most of the time. Both are measured in turn. Prints
a table and one JSON object as its last line.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from job.engine.logits.history import TokenHistory
from job.engine.logits.pipeline import start_choice
from job.engine.logits.sampling import SamplingBatch
from job.tasks import SamplingParams

PAIRS, STEPS, VOCAB_SIZE = 40, 25, 512

CASES = {
    "temperature": SamplingParams(temperature=0.8),
    "temperature, top-p": SamplingParams(temperature=0.8, top_p=0.9),
    "temperature, top-k": SamplingParams(temperature=0.8, top_k=20),
    "all of these, penalties": SamplingParams(
        temperature=0.8, top_p=0.9, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5
    ),
}


def differing(params: SamplingParams, num_rows: int) -> list[SamplingParams]:
    """Return parameters that differ in their numbers from row to row, each an object of its own."""
    return [
        replace(params, temperature=0.5 + row / num_rows, seed=row, max_new_tokens=row + 1) for row in range(num_rows)
    ]


def milliseconds(
    logits: torch.Tensor, params: Sequence[SamplingParams], history: TokenHistory, rows: Sequence[Any]
) -> float:
    """Return what a choice takes, the mean of some steps."""
    num_rows = len(params)
    begin = time.perf_counter()
    for position in range(STEPS):
        batch = SamplingBatch(
            params=params, keys=[(row, 0) for row in range(num_rows)], positions=[position] * num_rows
        )
        start_choice(logits, batch, history.of(rows)).result()
    return (time.perf_counter() - begin) / STEPS * 1e3


def main(num_rows: int) -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    logits = torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    rows = [SimpleNamespace(slot=row, token_ids=[3] * 100, num_prompt=90) for row in range(num_rows)]
    results = {}
    for name, params in CASES.items():
        history, own = TokenHistory(num_rows), differing(params, num_rows)
        pairs = []
        for idx in range(PAIRS + 1):
            alike = milliseconds(logits, [params] * num_rows, history, rows)
            other = milliseconds(logits, own, history, rows)
            pairs += [(alike, other)] if idx else []  # the first one warms up
        alike, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        more = statistics.median(b - a for a, b in pairs)
        results[name] = {"alike_ms": round(alike, 3), "differing_ms": round(other, 3), "more_ms": round(more, 3)}
        print(f"{num_rows} rows, {name:24} alike {alike:.3f} differing {other:.3f} more {more:.3f} ms")
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)

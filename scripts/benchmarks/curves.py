"""How the paged engine's cost moves: with the number of rows, the length of prompts, the slots, and the memory.

Usage: scripts/bench curves [rows] [prompts] [slots] [memory]     default: all
"""

import json
import sys
from typing import Any

from _workload import gauge, load, load_prompt_ids, run


def rows_of(prompt_ids: list[list[int]], num_tokens: int, num_rows: int) -> list[list[int]]:
    """Return prompts of an exact length without a common beginning: questions, one after the other, shifted."""
    stream = [token for ids in prompt_ids for token in ids]
    return [[stream[(row * 997 + at) % len(stream)] for at in range(num_tokens)] for row in range(num_rows)]


def measure(name: str, loaded: Any, prompts: list[list[int]], new_tokens: int, **config: Any) -> None:
    """Run once and print the figures."""
    figures = run(loaded, prompts, {"max_new_tokens": new_tokens, "ignore_eos": True}, config)
    micros = 1e6 * figures["secs"] / (figures["prompt_tokens"] + figures["completion_tokens"])
    shown = {"curve": name, **config, **figures, "micros_per_token": round(micros, 1)}
    print(json.dumps(shown), flush=True)


def main(curves: list[str]) -> None:
    """Measure each curve."""
    loaded, questions = load(), load_prompt_ids(200)
    print(json.dumps({"machine": gauge()}), flush=True)
    if "rows" in curves:
        for num_rows in (128, 1280):
            measure(f"{num_rows} rows", loaded, rows_of(questions, 64, num_rows), 16, max_batch_rows=64)
    if "prompts" in curves:
        for num_tokens in (100, 500, 1000, 2000):
            num_rows = 16_000 // num_tokens
            measure(f"prompts of {num_tokens} tokens", loaded, rows_of(questions, num_tokens, num_rows), 8)
    if "slots" in curves:
        for slots in (16, 64, 128, 256, 512):
            measure(f"{slots} slots", loaded, rows_of(questions, 64, max(64, slots)), 32, max_batch_rows=slots)
    if "memory" in curves:
        for mebi in (800, 400, 200, 100, 50):
            config = {"max_batch_rows": 128, "kv_cache_memory": mebi * 2**20}
            measure(f"{mebi} MiB", loaded, rows_of(questions, 64, 128), 64, **config)
    print(json.dumps({"machine": gauge()}))


if __name__ == "__main__":
    main(sys.argv[1:] or ["rows", "prompts", "slots", "memory"])

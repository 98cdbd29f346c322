"""The paged engine by itself on the common workload.

Usage: scripts/bench engine [NUM_PROMPTS] [--data FILE.jsonl] [--part K/N] [OPTION=VALUE ...]

OPTION is a field of EngineConfig or SamplingParams: max_batch_rows=64, temperature=0.8. ``--part 0/2`` takes every
second prompt: two such processes with one thread each are two replicas. The share of the floor is what the matrix
products alone would take, at the rate measured just before and after, over what the run took.
"""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from _workload import QUESTIONS, floor_tera, gauge, load, load_prompt_ids, run


def main(args: list[str]) -> None:
    """Run once and print the figures."""
    from job.config import EngineConfig
    from job.engine.paged.schedule.pages import num_common
    from job.tasks import SamplingParams

    num_prompts, data, part = 256, QUESTIONS, (0, 1)
    params: dict[str, Any] = {}
    config: dict[str, Any] = {}
    rest = iter(args)
    for arg in rest:
        if arg == "--data":
            data = Path(next(rest))
        elif arg == "--part":
            part = tuple(map(int, next(rest).split("/")))
        elif "=" in arg:
            name, _, value = arg.partition("=")
            own = {field.name for field in fields(EngineConfig)}
            assert name in own | {field.name for field in fields(SamplingParams)}, f"no option {name}"
            (config if name in own else params)[name] = json.loads(value)
        else:
            num_prompts = int(arg)
    loaded = load()
    prompt_ids = load_prompt_ids(num_prompts, data)[part[0] :: part[1]]
    before = gauge() if part[1] == 1 else None
    figures = run(loaded, prompt_ids, params, config)
    result = {"system": "paged engine", "options": config | params, **figures}
    if before is not None:
        after = gauge()
        common = min(num_common(prompt_ids[0], ids) for ids in prompt_ids)
        num_prompt_tokens = figures["prompt_tokens"] - common * (len(prompt_ids) - 1)
        tera = floor_tera(num_prompt_tokens, figures["completion_tokens"])
        floor_secs = tera * 1000 / ((before["gflops"] + after["gflops"]) / 2)
        result |= {"machine": [before, after], "floor_secs": round(floor_secs, 1)}
        result["share_of_floor"] = round(floor_secs / figures["secs"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])

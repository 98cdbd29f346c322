"""Labels by choices, ours and the peers in turn: review snippets under a common instruction, three choices.

Usage: scripts/bench choices [ROUNDS] [NUM_ROWS] [DATA.jsonl]

VLLM_PYTHON=path of vLLM's python adds its guided choice; SYSTEMS=paged,paged-2 for some only; ``paged-2`` is two
processes with one thread each. Run it on an idle machine, with a file of at least NUM_ROWS rows with a ``text``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from _choices import load_choice_ids, load_review_ids


def run_ours(num_rows: int, data: Path, part: tuple[int, int]) -> dict[str, Any]:
    """Score all rows with the paged engine; loading and tokenizing are not counted."""
    from _workload import load

    from job.config import EngineConfig
    from job.engine.paged.engine import PagedEngine
    from job.records import Request
    from job.tasks import Score

    loaded, task = load(), Score(choice_ids=tuple(map(tuple, load_choice_ids())))
    prompts = load_review_ids(num_rows, data)[part[0] :: part[1]]
    engine = PagedEngine(loaded.model, loaded.shapes, EngineConfig(), loaded.replica)
    start = time.perf_counter()
    for row_idx, ids in enumerate(prompts):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=task))
    done = []
    while engine.num_pending:
        done += engine.step()
    secs = time.perf_counter() - start
    assert len(done) == len(prompts) and not any(generation.error for generation in done)
    return {"system": "paged", "num_rows": len(prompts), "secs": round(secs, 2), "rows_per_sec": len(prompts) / secs}


def main(rounds: int = 3, num_rows: int = 200, data: str = "") -> None:
    """Run all systems in turn."""
    from _choices import REVIEWS
    from compare import in_turn, systems_of

    here, data = Path(__file__).parent, data or str(REVIEWS)
    ours = [sys.executable, str(here / "choices.py"), "--part"]
    ending = [str(num_rows), data]
    systems = {
        "paged": [[*ours, "0/1", *ending]],
        "paged-2": [[*ours, "0/2", *ending], [*ours, "1/2", *ending]],
        "transformers generate": [[sys.executable, str(here / "peer_choices.py"), "generate", *ending]],
        "log-likelihood loop": [[sys.executable, str(here / "peer_choices.py"), "loop", *ending]],
    }
    in_turn(systems_of(systems, "peer_choices.py", ["vllm", *ending]), rounds, "paged")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        index, _, count = sys.argv[2].partition("/")
        print(json.dumps(run_ours(int(sys.argv[3]), Path(sys.argv[4]), (int(index), int(count)))))
    else:
        main(*map(int, sys.argv[1:3]), *sys.argv[3:4])

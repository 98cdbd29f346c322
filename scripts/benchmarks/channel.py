"""What the tensor-parallel channel costs: the leader's message and the check for failures, between two ranks.

Usage: scripts/bench channel [NUM_ROWS]

Two processes on this machine run SmolLM2 at tensor-parallel 2. Decode steps are timed as a whole and in their messages.
"""

import json
import os
import subprocess
import sys
import time
from statistics import median

from _workload import MODEL, load_prompt_ids


def measure(num_rows: int) -> None:
    """Run on one rank; the leader prints the figures."""
    from job.config import EngineConfig, ModelConfig
    from job.engine.model.info import inspect_model
    from job.engine.model.loading import load_model
    from job.engine.paged.engine import PagedEngine
    from job.engine.paged.support import check_support
    from job.launch.environment import read_process_info
    from job.launch.replica import Replica
    from job.records import Request
    from job.remote.model_files import ModelFiles
    from job.tasks import Generate, SamplingParams

    replica = Replica(read_process_info(os.environ, 2))
    config = ModelConfig(model=str(MODEL), dtype="bfloat16")
    model = load_model(config, inspect_model(config, ModelFiles(name=config.model), replica.device, 2), replica, [])
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    task = Generate(params=SamplingParams(max_new_tokens=24, ignore_eos=True))
    engine = PagedEngine(model, shapes, EngineConfig(tensor_parallel_size=2, max_batch_rows=num_rows), replica)
    if replica.info.is_leader:
        sent: list[tuple[float, int]] = []
        checked: list[float] = []
        broadcast, any_failed = replica.broadcast_ints, replica.any_failed

        def timed_broadcast(values):  # type: ignore[no-untyped-def]
            start = time.perf_counter()
            result = broadcast(values)
            sent.append((time.perf_counter() - start, values.nbytes))
            return result

        def timed_check(failed):  # type: ignore[no-untyped-def]
            start = time.perf_counter()
            result = any_failed(failed)
            checked.append(time.perf_counter() - start)
            return result

        replica.broadcast_ints, replica.any_failed = timed_broadcast, timed_check  # type: ignore[method-assign]
        for row_idx, ids in enumerate(load_prompt_ids(num_rows)):
            engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=task))
        steps: list[float] = []
        while engine.num_pending:
            start = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - start)
        engine.close(0)
        decode = slice(-20, None)
        figures = {
            "num_rows": num_rows,
            "step_ms": round(1e3 * median(steps[decode]), 1),
            "used_bytes_of_16_KiB": median(size for _, size in sent[decode]),
            "message_ms": round(1e3 * median(secs for secs, _ in sent[decode]), 3),
            "check_ms": round(1e3 * median(checked[decode]), 3),
        }
        print(json.dumps(figures))
    else:
        engine.follow()
    replica.close()
    os._exit(0)


def main(num_rows: int = 64) -> None:
    """Start the two ranks."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(num_rows)], env=env | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in (0, 1)
    ]
    sys.exit(max(process.wait() for process in ranks))


if __name__ == "__main__":
    arguments = map(int, sys.argv[1:2])
    (measure if "RANK" in os.environ else main)(*arguments)

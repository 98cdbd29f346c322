"""One process of a replica that runs StaticEngine over several models: the tensor-parallel half of test_engine.

Usage: engine_process.py JOBS.json OUT.json TENSOR_PARALLEL_SIZE [DTYPE]. Each job has model, prompts, params and
max_batch_rows; the leader writes, for each job, [key, token ids, finish reason, error] of every request.
"""

import json
import os
import sys
from pathlib import Path

from job.config import EngineConfig, ModelConfig, SamplingParams
from job.distributed import Replica
from job.engine.loading import inspect_model, load_model
from job.engine.static import StaticEngine
from job.launch import read_process_info
from job.records import Request


def run_job(job: dict, replica: Replica, dtype: str) -> list:
    """Complete one job's prompts on all ranks; the leader returns what it got."""
    config = ModelConfig(model=job["model"], dtype=dtype)
    size = replica.info.tensor_parallel_size
    info = inspect_model(config, replica.device, size)
    model = load_model(config, info, replica, [])
    engine_config = EngineConfig(tensor_parallel_size=size, max_batch_rows=job["max_batch_rows"])
    engine = StaticEngine(model, SamplingParams(**job["params"]), engine_config, replica)
    if not replica.info.is_leader:
        engine.follow()
        return []
    for row_idx, prompt in enumerate(job["prompts"]):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=prompt))
    generations = []
    while engine.num_pending:
        generations += engine.step()
    engine.close(0)
    generations.sort(key=lambda generation: generation.request.key)
    return [[list(g.request.key), list(g.token_ids), g.finish_reason, g.error and str(g.error)] for g in generations]


def main(jobs: Path, out: Path, tensor_parallel_size: int, dtype: str = "float32") -> None:
    """Run all jobs."""
    replica = Replica(read_process_info(os.environ, tensor_parallel_size))
    results = [run_job(job, replica, dtype) for job in json.loads(jobs.read_text())]
    if replica.info.is_leader:
        out.write_text(json.dumps(results))
    replica.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])

"""One process of a replica that runs StaticEngine over several models: the tensor-parallel half of test_engine.

Usage: engine_process.py JOBS.json OUT.json TENSOR_PARALLEL_SIZE [DTYPE]. Each job has model, prompts, params and
max_batch_rows, perhaps breaks; the leader writes [key, token ids, finish reason, error] of every request of each job.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from job.config import EngineConfig, ModelConfig, SamplingParams
from job.distributed import Replica
from job.engine import choosers
from job.engine.loading import inspect_model, load_model
from job.engine.static import StaticEngine
from job.launch import read_process_info
from job.records import Request


def break_model(module: Any, breaks: str) -> None:
    """Let the model fail on every rank alike, or the leader alone while it chooses tokens."""
    forward, choose = module.forward, choosers.choose_tokens

    def broken_forward(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if breaks == "row" and 99 in input_ids:
            raise KeyError("an odd row")
        if breaks == "memory" and len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **kwargs)

    def broken_choose(logits: torch.Tensor, *args: Any) -> torch.Tensor:
        if breaks == "leader's memory" and len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choose(logits, *args)

    module.forward, choosers.choose_tokens = broken_forward, broken_choose


def run_job(job: dict, replica: Replica, dtype: str) -> list:
    """Complete one job's prompts on all ranks; the leader returns what it got."""
    config = ModelConfig(model=job["model"], dtype=dtype)
    size = replica.info.tensor_parallel_size
    info = inspect_model(config, replica.device, size)
    model = load_model(config, info, replica, [])
    engine_config = EngineConfig(tensor_parallel_size=size, max_batch_rows=job["max_batch_rows"])
    engine = StaticEngine(model, SamplingParams(**job["params"]), engine_config, replica)
    if "breaks" in job:
        break_model(model.module, job["breaks"])
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
    os._exit(0)  # as the command line does, and for its reason


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])

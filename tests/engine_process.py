"""One process of a replica that runs an engine over several models: the tensor-parallel half of the engines' tests.

Usage: engine_process.py TENSOR_PARALLEL_SIZE DTYPE, and on stdin a path NAME.json of jobs a line, whose results go to
NAME.out; ``ranks`` starts this. Each job has model, prompts and params, and perhaps engine ("paged" by default,
"static", or "chosen": what the job builds for "paged"), config (of EngineConfig), model_config (of ModelConfig),
choices, or size and pooling, in place of params, beams (of BeamSearch), answer (of StructuredMode), num_pages, breaks
and records (its steps, on the way of CUDA with plain operations); or mixed in place of prompts and params, for the
requests of test_mixed_tasks. The leader writes for each job its generations, [key, token ids, finish reason, error] of
every request, what the user was told, how often a row was preempted and a step replayed, and the sizes of its weights
and its KV cache.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import EngineConfig, ModelConfig
from job.data.tokenizer import Tokenizer
from job.engine.logits import pipeline
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.engine.protocol import Engine
from job.engine.registry import ENGINES
from job.engine.static.engine import StaticEngine
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.modes.structured import StructuredMode
from job.remote.model_files import ModelFiles
from job.tasks import BeamSearch, Generate, Pool, SamplingParams, Score, Task
from tests.serving import OVERLAP, cache_bytes, complete, finish, observe
from tests.tiny import make_tokenizer

EXIT_CODE = 3
"""With which the leader closes its engines."""


def build(job: dict, model: LoadedModel, replica: Replica, notes: list[str]) -> Engine:
    """Build the engine that a job names."""
    values = {"tensor_parallel_size": replica.info.tensor_parallel_size, "overlap": OVERLAP, **job.get("config", {})}
    name = job.get("engine", "paged")
    if name == "static":
        return StaticEngine(model, EngineConfig(**values), replica)
    if name == "chosen":
        config = EngineConfig(**values)
        return ENGINES[config.engine].build(model, config, replica, should_stop=lambda: False, note=notes.append)
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    if "num_pages" in job:
        values["kv_cache_memory"] = cache_bytes(shapes, job["num_pages"])
    return PagedEngine(model, shapes, EngineConfig(**values), replica)


def task_of(job: dict) -> Task:
    """Return what a job asks of every prompt."""
    if "choices" in job:
        return Score(choice_ids=tuple(map(tuple, job["choices"])))
    if "pooling" in job:
        return Pool(size=job["size"], pooling=job["pooling"])
    mode = StructuredMode(**job.get("answer", {}))
    grammar = mode.compiled(Tokenizer(make_tokenizer())) if mode.is_asked else None
    params = SamplingParams(**job["params"])
    return BeamSearch(params=params, **job["beams"]) if "beams" in job else Generate(params=params, grammar=grammar)


def kv_bytes_of(engine: PagedEngine) -> int:
    """Return the bytes of one token in this process's KV cache."""
    cache = engine._executor._cache
    pools = [*cache.keys.values(), *cache.values.values()]
    return sum(pool[0].numel() * pool.element_size() for pool in pools) // cache.page_tokens


def break_model(module: Any, breaks: str, patch: pytest.MonkeyPatch) -> None:
    """Let the model fail on every rank alike, or the leader alone while it chooses tokens."""
    forward = module.forward

    def broken_forward(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if breaks == "row" and 99 in input_ids:
            raise KeyError("an odd row")
        is_ragged = "position_ids" in kwargs and kwargs.get("attention_mask") is None
        if breaks == "memory" and (input_ids.shape[1] > 20 if is_ragged else len(input_ids) > 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **kwargs)

    largest = pipeline.largest

    def broken_largest(logits: torch.Tensor) -> Any:
        if breaks == "leader's memory" and len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return largest(logits)

    patch.setattr(module, "forward", broken_forward)
    patch.setattr(pipeline, "largest", broken_largest)


def run_job(job: dict, replica: Replica, dtype: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Complete one job's prompts on all ranks; the leader returns what it got."""
    config = ModelConfig(model=job["model"], dtype=dtype, **job.get("model_config", {}))
    files = ModelFiles.local(config.model, config.adapter)
    info = inspect_model(config, files, replica.device, replica.info.tensor_parallel_size)
    model = load_model(config, info, replica, [])
    notes: list[str] = []
    observed = observe(patch)
    replayed = []
    if "records" in job:
        from tests import plain_launches

        replayed = plain_launches.record(patch)
    engine = build(job, model, replica, notes)
    if "breaks" in job:
        break_model(model.module, job["breaks"], patch)
    if not replica.info.is_leader:
        assert engine.follow() == EXIT_CODE
        return {}
    engine.keep_alive()
    if job.get("mixed"):
        from tests.test_mixed_tasks import requests

        generations = finish(engine, requests())
    else:
        generations = complete(engine, job["prompts"], task_of(job))
    engine.close(EXIT_CODE)
    rows = [[list(g.request.key), list(g.token_ids), g.finish_reason, g.error and str(g.error)] for g in generations]
    scores = [g.numbers for g in generations]
    return {
        "generations": rows,
        "scores": scores,
        "logprobs": [g.logprobs for g in generations],
        "vectors": [None if g.vector is None else g.vector.tolist() for g in generations],
        "notes": notes,
        "num_replayed": len(replayed),
        "num_preempted": len(observed.put_back),
        "num_params": sum(parameter.numel() for parameter in model.module.parameters()),
        "kv_bytes_per_token": kv_bytes_of(engine) if isinstance(engine, PagedEngine) else None,
    }


def main(tensor_parallel_size: int, dtype: str) -> None:
    """Run all jobs."""
    replica = Replica(read_process_info(os.environ, tensor_parallel_size))
    for line in sys.stdin:
        jobs = Path(line.rstrip("\n"))
        results = []
        for job in json.loads(jobs.read_text()):
            with pytest.MonkeyPatch.context() as patch:
                results.append(run_job(job, replica, dtype, patch))
        if replica.info.is_leader:
            unfinished = jobs.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(results))
            unfinished.rename(jobs.with_suffix(".out"))
    replica.close()
    os._exit(0)  # as the command line does, and for its reason


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

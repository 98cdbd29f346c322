"""One process of a replica that runs an engine over several models: the tensor-parallel half of the engines' tests.

Usage: engine_process.py JOBS.json OUT.json TENSOR_PARALLEL_SIZE [DTYPE]. Each job has model, prompts and params, and
perhaps engine ("paged" by default, "static", or "chosen": what ``build_engine`` takes), config (of EngineConfig),
choices, answer (of AnswerConfig), num_pages and breaks. The leader writes for each job its generations, [key, token
ids, finish reason, error] of every request, what the user was told, and how often a row was preempted.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import AnswerConfig, EngineConfig, ModelConfig, SamplingParams
from job.data.grammar import compile_grammar
from job.engine.build import build_engine
from job.engine.logits.trie import ChoiceTrie
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.engine.paged.tasks import token_choice as choosing
from job.engine.protocol import Engine
from job.engine.static import token_choice as choosers
from job.engine.static.engine import StaticEngine
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from tests.serving import cache_bytes, complete, observe
from tests.tiny import make_tokenizer

EXIT_CODE = 3
"""With which the leader closes its engines."""


def build(job: dict, model: LoadedModel, replica: Replica, notes: list[str]) -> Engine:
    """Build the engine that a job names."""
    params = SamplingParams(**job["params"])
    values = {"tensor_parallel_size": replica.info.tensor_parallel_size, **job.get("config", {})}
    name = job.get("engine", "paged")
    grammar = (
        compile_grammar(AnswerConfig(**job.get("answer", {})), make_tokenizer()) if replica.info.is_leader else None
    )
    if name == "static":
        return StaticEngine(model, params, EngineConfig(**values), replica, grammar=grammar)
    if name == "chosen":
        config = EngineConfig(**values)
        return build_engine(
            model,
            params,
            config,
            replica,
            should_stop=lambda: False,
            ends_text=None,
            note=notes.append,
            choice_ids=job.get("choices"),
        )
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    if "num_pages" in job:
        values["kv_cache_memory"] = cache_bytes(shapes, job["num_pages"])
    trie = ChoiceTrie(job["choices"]) if "choices" in job else None
    return PagedEngine(model, shapes, params, EngineConfig(**values), replica, trie=trie, grammar=grammar)


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

    def break_choice(owner: Any, name: str) -> None:
        choose = getattr(owner, name)

        def broken_choose(logits: torch.Tensor, *args: Any) -> Any:
            if breaks == "leader's memory" and len(logits) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return choose(logits, *args)

        patch.setattr(owner, name, broken_choose)

    patch.setattr(module, "forward", broken_forward)
    break_choice(choosers, "choose_tokens")  # of StaticEngine
    break_choice(choosing, "largest")  # of PagedEngine


def run_job(job: dict, replica: Replica, dtype: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Complete one job's prompts on all ranks; the leader returns what it got."""
    config = ModelConfig(model=job["model"], dtype=dtype)
    info = inspect_model(config, replica.device, replica.info.tensor_parallel_size)
    model = load_model(config, info, replica, [])
    notes: list[str] = []
    observed = observe(patch)
    engine = build(job, model, replica, notes)
    if "breaks" in job:
        break_model(model.module, job["breaks"], patch)
    if not replica.info.is_leader:
        assert engine.follow() == EXIT_CODE
        return {}
    engine.keep_alive()
    generations = complete(engine, job["prompts"])
    engine.close(EXIT_CODE)
    rows = [[list(g.request.key), list(g.token_ids), g.finish_reason, g.error and str(g.error)] for g in generations]
    scores = [g.choice_logprobs for g in generations]
    return {"generations": rows, "scores": scores, "notes": notes, "num_preempted": len(observed.put_back)}


def main(jobs: Path, out: Path, tensor_parallel_size: int, dtype: str = "float32") -> None:
    """Run all jobs."""
    replica = Replica(read_process_info(os.environ, tensor_parallel_size))
    results = []
    for job in json.loads(jobs.read_text()):
        with pytest.MonkeyPatch.context() as patch:
            results.append(run_job(job, replica, dtype, patch))
    if replica.info.is_leader:
        out.write_text(json.dumps(results))
    replica.close()
    os._exit(0)  # as the command line does, and for its reason


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])

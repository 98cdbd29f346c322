"""Paged engines on tiny models in this process. A model is loaded once per session; every test makes its own engine."""

import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job.config import EngineConfig, ModelConfig
from job.engine.around import Around
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.paged.attention.cache import LayerShape
from job.engine.paged.attention.plain import PAGE_TOKENS
from job.engine.paged.engine import PagedEngine
from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.paged.support import check_support
from job.engine.protocol import Engine
from job.engine.registry import ENGINES
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Generation, Request
from job.remote.model_files import ModelFiles
from job.tasks import EndsText, Generate, Grammar, SamplingParams, Task
from tests.oracle import greedy

MAX_NEW_TOKENS = 12

OVERLAP: bool | None = bool(int(os.environ.get("JOB_TEST_OVERLAP", "0"))) or None
"""Whether engines overlap unless a test says otherwise. JOB_TEST_OVERLAP=1 lets all tests of the engine run so."""

AMPLE_PAGES = 256

MODES: dict[str, dict[str, Any]] = {
    "one row": {"config": {"max_batch_rows": 1}},
    "all rows": {"config": {"max_batch_rows": 64}},
    "chunks": {"config": {"max_batch_rows": 4, "max_batch_tokens": 7}},
    "few pages": {"config": {"max_batch_rows": 64}, "num_pages": 7},
    "few pages and chunks": {"config": {"max_batch_rows": 16, "max_batch_tokens": 32}, "num_pages": 7},
}
"""Shapes of the engine, as arguments of ``make_engine``. ``make_prompts`` cannot be computed in so few pages without
preemptions.
"""


@dataclass(frozen=True)
class Served:
    """A model that the paged engine can serve. Engines on it share the module, so tests must leave it as it was."""

    model: LoadedModel
    shapes: dict[int, LayerShape]
    replica: Replica


def load(model_dir: Path, dtype: str = "float32", **options: Any) -> tuple[LoadedModel, Replica]:
    """Load a model in this process, as the job does with these options of ``ModelConfig``."""
    replica = Replica(read_process_info({}, 1))
    config = ModelConfig(model=str(model_dir), dtype=dtype, **options)
    return load_model(
        config, inspect_model(config, ModelFiles.local(config.model, config.adapter), replica.device, 1), replica, []
    ), replica


@cache
def serve(model_dir: Path, dtype: str = "float32", task: str = "generate") -> Served:
    """Load a model once and let the paged engine accept it."""
    model, replica = load(model_dir, dtype, task=task)
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    return Served(model, shapes, replica)


def cache_bytes(shapes: dict[int, LayerShape], num_pages: int) -> int:
    """Return the memory of so many pages on this rank."""
    return num_pages * PAGE_TOKENS * sum(shape.num_bytes for shape in shapes.values())


def make_engine(
    served: Served,
    *,
    num_pages: int = AMPLE_PAGES,
    config: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PagedEngine:
    """Return an engine with an empty cache."""
    defaults = {"kv_cache_memory": cache_bytes(served.shapes, num_pages), "overlap": OVERLAP}
    engine_config = EngineConfig(**{**defaults, **(config or {})})
    return PagedEngine(served.model, served.shapes, engine_config, served.replica, should_stop)


def build_as_the_job_does(model_dir: Path, name: str = "paged", task: str = "generate") -> tuple[Engine, list[str]]:
    """Return the engine that the job builds for a model, and what the user is told of it."""
    model, replica = load(model_dir, task=task)
    notes: list[str] = []
    config = EngineConfig(engine=name, max_batch_rows=4)
    engine = ENGINES[name].build(model, config, replica, should_stop=lambda: False, note=notes.append)
    return engine, notes


def innermost(engine: Engine) -> Engine:
    """Return what is inside of engines around another one."""
    return innermost(engine._engine) if isinstance(engine, Around) else engine


def generate(
    grammar: Grammar | None = None,
    ends_text: EndsText | None = None,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **params: Any,
) -> Generate:
    """Return a task to generate with these sampling parameters."""
    params["max_new_tokens"] = max_new_tokens
    return Generate(params=SamplingParams(**params), grammar=grammar, ends_text=ends_text)


def ask(prompt_ids: Sequence[int], task: Task | None = None, *, row_idx: int = 0, sample_idx: int = 0) -> Request:
    """Return a request; without a task, one to generate greedily."""
    return Request(row_idx=row_idx, sample_idx=sample_idx, prompt_ids=prompt_ids, task=task or generate())


def complete(engine: Engine, prompts: Iterable[Sequence[int]], task: Task | None = None) -> list[Generation]:
    """Complete prompts and return them in their order."""
    return finish(engine, [ask(prompt, task, row_idx=row_idx) for row_idx, prompt in enumerate(prompts)])


def finish(engine: Engine, requests: Iterable[Request]) -> list[Generation]:
    """Complete requests and return them by their keys. An engine that gets nowhere fails the test."""
    for request in requests:
        engine.submit(request)
    generations: list[Generation] = []
    for _ in range(10_000):
        if not engine.num_pending:
            return sorted(generations, key=lambda generation: generation.request.key)
        generations += engine.step()
    raise AssertionError(f"{engine.num_pending} requests are still pending")


def tokens(generations: Iterable[Generation]) -> list[list[int]]:
    """Return the ids alone."""
    return [list(generation.token_ids) for generation in generations]


def make_prompts() -> list[list[int]]:
    """Return prompts of 1 to 94 tokens: two long common beginnings, one of them a prompt itself, and duplicates.

    Some end just before a page does, so that they need another page while they are completed.
    """
    rng = random.Random(5)

    def draw(num_tokens: int) -> list[int]:
        return [rng.randrange(2, 258) for _ in range(num_tokens)]

    instructions, examples = draw(40), draw(70)
    prompts = [draw(num_tokens) for num_tokens in (1, 2, 5, 28, 31, 32, 63)]
    prompts += [instructions, *(instructions + draw(num_tokens) for num_tokens in (1, 9, 22, 22))]
    prompts += [examples + draw(num_tokens) for num_tokens in (3, 5, 24)]
    prompts += [prompts[3], prompts[-1]]
    rng.shuffle(prompts)
    return prompts


_answers: dict[tuple[Path, int, tuple[int, ...]], list[int]] = {}


def expected_tokens(model_dir: Path, prompts: Iterable[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Return what the oracle generates; it is asked once per prompt."""
    asked = [(model_dir, max_new_tokens, tuple(prompt)) for prompt in prompts]
    new = list(dict.fromkeys(key for key in asked if key not in _answers))
    if new:
        _answers.update(zip(new, greedy(model_dir, [prompt for *_, prompt in new], max_new_tokens), strict=True))
    return [_answers[key] for key in asked]


@dataclass
class Observed:
    """What schedulers did while a test watched."""

    put_back: list[int] = field(default_factory=list)
    """For each time that a running sequence lost its pages: tokens that it had generated."""
    num_tokens: int = 0
    """Tokens computed, those computed again included."""
    most_tokens: int = 0
    """Tokens of the largest step."""


def observe(patch: pytest.MonkeyPatch) -> Observed:
    """Watch all schedulers of this process."""
    seen = Observed()
    put_back, to_step = Scheduler.put_back, Scheduler.to_step

    def watched_put_back(self: Scheduler, sequences: Any) -> None:
        sequences = list(sequences)
        seen.put_back += [sequence.num_generated for sequence in sequences]
        put_back(self, sequences)

    def watched_to_step(self: Scheduler, work: Any) -> Any:
        step = to_step(self, work)
        seen.num_tokens += len(step.token_ids)
        seen.most_tokens = max(seen.most_tokens, len(step.token_ids))
        return step

    patch.setattr(Scheduler, "put_back", watched_put_back)
    patch.setattr(Scheduler, "to_step", watched_to_step)
    return seen

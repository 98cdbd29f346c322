"""Kinds of tasks: each says what serves it, and a new kind needs nothing but its class and that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from job import tasks
from job.config import EngineConfig
from job.engine.duplicates import SharedCompletions
from job.engine.fake import FakeEngine
from job.engine.registry import ENGINES
from job.engine.static.batch_task import Room, together
from job.engine.static.engine import StaticEngine
from job.errors import JobError
from job.records import Generation, Request
from tests.serving import ask, finish, generate, load, make_engine, serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Return the last layer's output for the last token of the prompt."""

    served_by: ClassVar[Mapping[str, str]] = {"static": "tests.test_task_kinds:Embedding"}

    @property
    def is_deterministic(self) -> bool:
        return True


class Embedding:
    """Implements ``BatchTask`` for ``Embed``, one prompt at a time."""

    command_type: ClassVar[type] = list

    def __init__(self, model: Any, replica: Any, should_stop: Any, *, max_rows: int, max_tokens: int) -> None:
        self._model, self._replica = model, replica
        self.max_rows, self.max_tokens, self.num_computed_tokens = 1, max_tokens, 0

    def room(self, request: Request) -> Room:
        return Room(1, len(request.prompt_ids), 0)

    def compute(self, batch: list[Request]) -> list[Generation]:
        (request,) = batch
        command = list(request.prompt_ids)
        self._replica.command(command)
        found: list[torch.Tensor] = []
        together(self._replica, lambda: found.append(self._embed(command)))
        self.num_computed_tokens += len(command)
        return [Generation(request=request, token_ids=[], finish_reason="stop", numbers=found[0].tolist())]

    def obey(self, command: list[int]) -> None:
        together(self._replica, lambda: self._embed(command) and None)

    def _embed(self, prompt_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            output = self._model.module(input_ids=torch.tensor([prompt_ids]), output_hidden_states=True)
        return output.hidden_states[-1][0, -1]


@pytest.fixture
def with_embed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the kind to those that there are."""
    monkeypatch.setattr(tasks, "Task", tasks.Task | Embed)


@pytest.mark.parametrize("kind", get_args(tasks.Task))
def test_each_task_says_what_serves_it_in_every_engine(kind: Any) -> None:
    unserved = {"paged"} if kind is tasks.BeamSearch else set()  # it is for models that this engine does not serve
    assert set(kind.served_by) == set(ENGINES) - unserved
    for place in kind.served_by.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))


def test_a_new_kind_is_a_class_and_what_serves_it(tiny_model: Callable[..., Path], with_embed: None) -> None:
    """Beside others, in the engine as the job wraps it."""
    model, replica = load(tiny_model())
    engine = SharedCompletions(StaticEngine(model, EngineConfig(max_batch_rows=4), replica))
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7]]
    kinds: list[Any] = [Embed(), generate(max_new_tokens=2), tasks.Score(choice_ids=((5,), (6, 7)))]
    asked = [
        ask(ids, kind, row_idx=idx, sample_idx=s) for idx, ids in enumerate(prompts) for s, kind in enumerate(kinds)
    ]
    generations = finish(engine, asked)
    assert [len(generation.token_ids) for generation in generations] == [0, 2, 0] * 3
    plain = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    for prompt, generation in zip(prompts, generations[::3], strict=True):
        hidden = plain(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
        assert generation.numbers == pytest.approx(hidden.tolist(), abs=1e-4)


def test_the_fake_engine_answers_a_kind_that_it_does_not_know_with_an_error_row(with_embed: None) -> None:
    unknown, known = finish(FakeEngine(), [ask([5, 6], Embed()), ask([5, 6], row_idx=1)])  # type: ignore[arg-type]
    assert str(unknown.error) == "engine_error: the fake engine does not serve Embed"
    assert list(known.token_ids) == [6, 5]


def test_an_engine_that_does_not_serve_a_kind_names_one_that_does(
    tiny_model: Callable[..., Path], with_embed: None
) -> None:
    engine = make_engine(serve(tiny_model()))
    with pytest.raises(JobError, match=r"paged engine does not serve tasks of the kind Embed\. Use --engine static"):
        engine.submit(ask([5, 6], Embed()))  # type: ignore[arg-type]
    assert engine.num_pending == 0

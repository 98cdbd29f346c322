"""Scores choices after reasoning, whatever the engine: it is asked for the reasoning first, and then for the scores.

The paged engine keeps what it has cached of the reasoning, so scoring begins where that ended.
"""

from dataclasses import dataclass, replace

from job.engine.around import Around
from job.engine.protocol import Engine
from job.records import Generation, Request, SampleKey
from job.tasks import Generate, Score
from job.tasks.reasoning import Thought


@dataclass(slots=True)
class Asked:
    """A request on its way, and its reasoning once that has ended."""

    request: Request
    thought_ids: list[int] | None = None
    finish_reason: str | None = None
    """Of the reasoning."""


class ReasonedScores(Around):
    """Implements ``Engine`` around another one, on the leader."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine, which never receives a ``Score`` that asks for reasoning."""
        super().__init__(engine)
        self._asked: dict[SampleKey, Asked] = {}

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        task = request.task
        if isinstance(task, Score) and task.reason is not None:
            self._asked[request.key] = Asked(request)
            request = replace(request, task=task.reason)
        self._engine.submit(request)

    def withdraw(self) -> list[Request]:
        """See ``Engine``. What has reasoned goes on."""
        waiting = []
        for request in self._engine.withdraw():
            asked = self._asked.get(request.key)
            if asked is not None and asked.thought_ids is not None:
                self._engine.submit(request)
            else:
                self._asked.pop(request.key, None)
                waiting.append(request if asked is None else asked.request)
        return waiting

    def step(self) -> list[Generation]:
        """See ``Engine``."""
        return [result for generation in self._engine.step() for result in self._advance(generation)]

    def _advance(self, generation: Generation) -> list[Generation]:
        """Return what is finished by a generation of the engine inside: nothing if that was the reasoning."""
        asked = self._asked.get(generation.request.key)
        if asked is None:
            return [generation]
        if generation.error is None and asked.thought_ids is None:
            asked.thought_ids, asked.finish_reason = _closed(generation), generation.finish_reason
            self._engine.submit(scoring(asked.request, asked.thought_ids))
            return []
        del self._asked[generation.request.key]
        generation = replace(generation, request=asked.request)
        if generation.error is not None or asked.thought_ids is None:
            return [replace(generation, token_ids=[])]
        # A loop in the reasoning is told; where it was cut or ended by itself, its own tokens say so.
        finish_reason = "repetition" if asked.finish_reason == "repetition" else generation.finish_reason
        return [replace(generation, token_ids=asked.thought_ids, finish_reason=finish_reason)]


def _closed(generation: Generation) -> list[int]:
    """Return the tokens of reasoning up to its end, which may have to be added; none if the model did not reason."""
    ids = list(generation.token_ids)
    thought = _thought(generation, ids)
    if thought.answer_begin is None and generation.finish_reason == "stop":
        ids = ids[:-1]  # an end-of-sequence token
        thought = _thought(generation, ids)
    if thought.begin is None or thought.answer_begin == 0:
        return []
    return [*ids, *thought.closing]


def _thought(generation: Generation, ids: list[int]) -> Thought:
    task = generation.request.task
    assert isinstance(task, Generate) and task.reasoning is not None
    thought = Thought(task.reasoning, generation.request.prompt_ids, is_constrained=True)
    for token in ids:
        thought.accept(token)
    return thought


def scoring(request: Request, thought_ids: list[int]) -> Request:
    """Return the request for the scores after the reasoning."""
    task = request.task
    assert isinstance(task, Score)
    gap_ids = task.gap_ids if thought_ids else ()
    prompt_ids = [*request.prompt_ids, *thought_ids, *gap_ids]
    return replace(request, prompt_ids=prompt_ids, task=replace(task, reason=None, gap_ids=()))

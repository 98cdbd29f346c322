"""An engine without a model: a pure function of the ids. For testing and measuring everything around an engine."""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.engine.protocol import Engine, Load
from job.engine.reasoned_scores import ReasonedScores
from job.engine.task_kinds import servers
from job.records import Generation, Partial, PartialKey, Request, RowError
from job.tasks import Generate, Pool, Score, ScoreText

if TYPE_CHECKING:
    from job.config import EngineConfig
    from job.launch.replica import Replica

STEP_SECS = "JOB_FAKE_STEP_SECS"
"""Environment variable: how many seconds a step takes, or the path of a file that says so, which is read before each
step. For tests that interrupt a run.
"""


def build_fake(
    model: None,
    config: "EngineConfig",
    replica: "Replica",
    *,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> Engine:
    """Build the fake engine; see ``EngineKind.build``."""
    pace = os.environ.get(STEP_SECS, "0")
    return ReasonedScores(FakeEngine(should_stop=should_stop, step_secs=Path(pace) if "/" in pace else float(pace)))


class FakeEngine:
    """Answers by the functions below, which the tasks name. Prompts with ``poison_id`` fail."""

    def __init__(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        rows_per_step: int = 64,
        step_secs: float | Path = 0.0,
        poison_id: int | None = None,
    ) -> None:
        """Set how fast the engine is, and which token it fails on."""
        self._should_stop = should_stop
        self._rows_per_step, self._step_secs, self._poison_id = rows_per_step, step_secs, poison_id
        self._answers: dict[type, Callable[[Request], Generation]] = servers("fake")
        self._pending: deque[Request] = deque()
        self.num_computed_tokens = 0
        self.min_pending, self.max_pending = rows_per_step, 4 * rows_per_step

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return len(self._pending)

    @property
    def in_flight(self) -> list[Request]:
        """See ``Engine``."""
        return list(self._pending)[: self._rows_per_step]

    @property
    def load(self) -> Load:
        """See ``Engine``."""
        return Load(num_running=len(self.in_flight))

    def partials(self, known: Mapping[PartialKey, int]) -> list[Partial]:
        """See ``Engine``. It completes requests at once."""
        return []

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        self._pending.append(request)

    def withdraw(self) -> list[Request]:
        """See ``Engine``. The requests of the next step count as begun."""
        begun = {request.key for request in self.in_flight}
        waiting = [request for request in self._pending if request.key not in begun]
        self._pending = deque(request for request in self._pending if request.key in begun)
        return waiting

    def step(self) -> list[Generation]:
        """Complete some requests."""
        if self._should_stop() or not self._pending:
            return []
        pace = self._step_secs
        time.sleep(float(pace.read_text(encoding="utf-8")) if isinstance(pace, Path) else pace)
        return [self._complete(self._pending.popleft()) for _ in range(min(self._rows_per_step, len(self._pending)))]

    def keep_alive(self) -> None:
        """See ``Engine``."""

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""

    def follow(self) -> int:
        """See ``Engine``. A follower has nothing to do."""
        return 0

    def _complete(self, request: Request) -> Generation:
        if self._poison_id in request.prompt_ids:
            return _fail(request, f"token {self._poison_id} is poison")
        answer = self._answers.get(type(request.task))
        if answer is None:
            return _fail(request, f"the fake engine does not serve {type(request.task).__name__}")
        generation = answer(request)
        self.num_computed_tokens += len(request.prompt_ids) + len(generation.token_ids)
        return generation


def reverse_prompt(request: Request) -> Generation:
    """Answer ``Generate`` with the prompt's own ids, reversed and cut to ``max_new_tokens``."""
    assert isinstance(request.task, Generate)
    max_new_tokens = request.task.params.max_new_tokens
    ids = list(request.prompt_ids)[::-1][:max_new_tokens]
    return Generation(request=request, token_ids=ids, finish_reason="length" if len(ids) == max_new_tokens else "stop")


def score_choices(request: Request) -> Generation:
    """Answer ``Score`` with a function of the sums of the ids."""
    assert isinstance(request.task, Score)
    logprobs = [-float((sum(request.prompt_ids) + 7 * sum(ids)) % 11) for ids in request.task.choice_ids]
    return Generation(request=request, token_ids=[], finish_reason="stop", numbers=logprobs)


def score_text(request: Request) -> Generation:
    """Answer ``ScoreText`` with a function of each token and the one before it."""
    assert isinstance(request.task, ScoreText)
    pairs = pairwise([request.prompt_ids[-1], *request.task.text_ids])
    return request.scored([-float((before + 7 * token) % 11) for before, token in pairs])


def pool(request: Request) -> Generation:
    """Answer ``Pool`` with a function of the sum of the ids and of the place in the vector."""
    assert isinstance(request.task, Pool)
    total = sum(request.prompt_ids)
    return request.pooled(np.array([(total + 3 * idx) % 11 - 5 for idx in range(request.task.size)], np.float32))


def _fail(request: Request, detail: str) -> Generation:
    return Generation(request=request, token_ids=[], finish_reason=None, error=RowError("engine_error", detail))

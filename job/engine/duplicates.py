"""Equal requests with a deterministic task get equal answers, so each is computed only once, whatever the engine."""

from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from job.engine.around import Around
from job.engine.protocol import Engine
from job.records import Generation, Request
from job.tasks import Task

MAX_KEPT_TOKENS = 1_000_000
"""How many tokens of finished completions are kept in case their prompt comes again: about 40 MB."""

ROW_TOKENS = 16
"""Everything else that is kept of a completion takes about as much memory as this many tokens."""

Question = tuple[bytes, Task]
"""A digest of the prompt, and the task."""


class SharedCompletions(Around):
    """Implements ``Engine`` around another one, on the leader."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine, which receives only new requests and those that are not deterministic."""
        super().__init__(engine)
        self._duplicates: dict[Question, list[Request]] = {}
        self._finished: OrderedDict[Question, Generation] = OrderedDict()
        self._ready: list[Generation] = []
        self._num_duplicates = self._num_kept_tokens = 0

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return self._engine.num_pending + self._num_duplicates + len(self._ready)

    @property
    def min_pending(self) -> int:
        """See ``Engine``. Duplicates do not keep the engine busy."""
        return self._engine.min_pending + self._num_duplicates + len(self._ready)

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        question = _question(request)
        if question is None:
            self._engine.submit(request)
        elif question in self._finished:
            self._finished.move_to_end(question)
            self._ready.append(_copy(self._finished[question], request))
        elif question in self._duplicates:
            self._duplicates[question].append(request)
            self._num_duplicates += 1
        else:
            self._duplicates[question] = []
            self._engine.submit(request)

    def withdraw(self) -> list[Request]:
        """See ``Engine``. Duplicates of a request that has been begun stay."""
        waiting = []
        for request in self._engine.withdraw():
            question = _question(request)
            duplicates = [] if question is None else self._duplicates.pop(question)
            self._num_duplicates -= len(duplicates)
            waiting += [request, *duplicates]
        return waiting

    def step(self) -> list[Generation]:
        """See ``Engine``."""
        ready, self._ready = self._ready, []
        generations = self._engine.step() if self._engine.num_pending else []
        return ready + [copy for generation in generations for copy in self._with_duplicates(generation)]

    def _with_duplicates(self, generation: Generation) -> list[Generation]:
        question = _question(generation.request)
        if question is None:
            return [generation]
        duplicates = self._duplicates.pop(question)
        self._num_duplicates -= len(duplicates)
        if generation.error is None:  # kept without its prompt, which may be long: each copy has its own
            self._keep(question, replace(generation, request=replace(generation.request, prompt_ids=())))
        return [generation, *(_copy(generation, request) for request in duplicates)]

    def _keep(self, question: Question, generation: Generation) -> None:
        self._finished[question] = generation
        self._num_kept_tokens += _size(generation)
        while self._num_kept_tokens > MAX_KEPT_TOKENS:
            _, oldest = self._finished.popitem(last=False)
            self._num_kept_tokens -= _size(oldest)


def _size(generation: Generation) -> int:
    """Return how much memory a kept generation takes, in tokens."""
    arrays = ((2, generation.top_ids), (1, generation.vector))
    num_in_arrays = sum(factor * int(array.size) for factor, array in arrays if array is not None)
    lists = (generation.token_ids, generation.numbers or (), generation.logprobs or ())
    return ROW_TOKENS + sum(map(len, lists)) + num_in_arrays


def _question(request: Request) -> Question | None:
    """Return the key that equal requests share; None if their answers may differ."""
    if not request.task.is_deterministic:
        return None
    prompt = np.asarray([*request.decoder_ids, -1, *request.prompt_ids], np.int64)
    return blake2b(prompt.tobytes(), digest_size=16).digest(), request.task


def _copy(generation: Generation, request: Request) -> Generation:
    return replace(generation, request=request)

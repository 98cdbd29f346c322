"""The interface of tasks. The engine schedules and runs steps; a task uses their logits and decides when rows end.

What a task computes from logits is started and collected separately, so that the host can do other work in between. One
step may contain sequences of several kinds of tasks: ``LogitsTasks`` gives each kind its own rows.
"""

from collections import abc
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch

from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.schedule.work import Work
from job.engine.transfers import Upload
from job.records import Generation, Partial, PartialKey, Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a step's logits."""

    ended: list[Sequence] = field(default_factory=list)
    """Sequences that need no further step."""
    non_finite: list[Sequence] = field(default_factory=list)
    """Sequences whose logits are not finite; the logits were not used."""
    inexact: list[Sequence] = field(default_factory=list)
    """Sequences whose token was not the right one and was not used: it must be chosen again, from the same logits."""
    generations: list[Generation] = field(default_factory=list)
    """Requests that are finished."""


class Pending(Protocol):
    """What a device may still be computing from logits."""

    @property
    def tokens(self) -> torch.Tensor | None:
        """[B] int64, on the device: the next token of each sequence; None if no tokens are chosen."""

    def result(self) -> Any:
        """Wait for it, and return what ``LogitsTask.take`` needs."""


class LogitsTask(Protocol):
    """One kind of task. Exists on the leader only. The constructor takes a ``LoadedModel`` and ``num_slots``.

    Logits are used in two phases, so that a step that fails has changed nothing: what ``start`` begins may raise until
    its result is there, for example if memory runs out; ``take`` changes sequences, and a failure there is an error of
    a single row. In all of these, each item of ``work`` wants logits.
    """

    def begin(self, request: Request) -> list[Sequence]:
        """Return the sequences that a request needs."""

    def expect(self, work: abc.Sequence[Work]) -> None:
        """Prepare for a step's logits while the model computes them: what else is needed can be computed meanwhile."""

    def start(self, work: abc.Sequence[Work], logits: torch.Tensor) -> Pending:
        """Start to compute what ``take`` needs from logits [W, V]: those of the wanted tokens, sequence after sequence.

        Does not wait for the device, and changes no sequence.
        """

    def take(self, work: abc.Sequence[Work], result: Any) -> Outcome:
        """Advance the sequences by the result of what was started for the same work. Does not raise."""

    def partial(self, sequence: Sequence, start: int) -> Partial | None:
        """Return what a sequence has generated after its first ``start`` tokens; None if nothing can go on
        there."""

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """Drop a sequence that cannot be computed, and return its request's ``failure`` once that is finished."""


Part = tuple[LogitsTask, abc.Sequence[Work], Pending]
"""A task, its share of a step's work, and what it has started."""


class Choice:
    """What all tasks compute from the logits of a step, which the device may still be computing."""

    def __init__(self, parts: abc.Sequence[Part]) -> None:
        """Put the parts of the tasks together."""
        self._parts = parts
        self.work = [item for _, work, _ in parts for item in work]
        choosing = [(work, pending.tokens) for _, work, pending in parts if pending.tokens is not None]
        self.sequences = [item.sequence for work, _ in choosing for item in work]
        """The sequences whose next tokens are chosen."""
        tokens = [tokens for _, tokens in choosing]
        self.tokens = torch.cat(tokens) if len(tokens) > 1 else next(iter(tokens), None)
        """[len(self.sequences)] int64, on the device: these tokens. None if there are none."""

    def results(self) -> list[Any]:
        """Wait for the result of each part."""
        return [pending.result() for *_, pending in self._parts]

    def take(self, results: abc.Sequence[Any]) -> Outcome:
        """Advance all sequences by the results. Does not raise."""
        outcomes = [task.take(work, result) for (task, work, _), result in zip(self._parts, results, strict=True)]
        return Outcome(
            ended=[sequence for outcome in outcomes for sequence in outcome.ended],
            non_finite=[sequence for outcome in outcomes for sequence in outcome.non_finite],
            inexact=[sequence for outcome in outcomes for sequence in outcome.inexact],
            generations=[generation for outcome in outcomes for generation in outcome.generations],
        )


Expected = dict[type, list[Work]]
"""Of each kind of task: the work of which the logits are needed."""


class LogitsTasks:
    """All kinds of tasks of an engine."""

    def __init__(self, kinds: abc.Mapping[type, LogitsTask]) -> None:
        """Serve requests whose ``task`` is of one of these classes."""
        self._kinds = kinds

    @property
    def kinds(self) -> abc.Collection[type]:
        """The kinds that are served."""
        return self._kinds.keys()

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        return self._kinds[type(request.task)].begin(request)

    def expect(self, work: abc.Sequence[Work]) -> Expected:
        """See ``LogitsTask``. Returns what ``start`` needs."""
        work_of: Expected = {}
        for item in work:
            if item.is_needed:
                kind = type(item.sequence.request.task)
                if kind in work_of:
                    work_of[kind].append(item)
                else:
                    work_of[kind] = [item]
        for kind, task in self._kinds.items():  # also those without work: what they expected before no longer holds
            task.expect(work_of.get(kind, ()))
        return work_of

    def start(self, expected: Expected, work: abc.Sequence[Work], logits: torch.Tensor) -> Choice:
        """See ``LogitsTask``. Logits that are not expected are dropped."""
        parts: list[Part] = []
        for (kind, items), own in zip(expected.items(), _logits_of(expected, work, logits), strict=True):
            parts.append((self._kinds[kind], items, self._kinds[kind].start(items, own)))
        return Choice(parts)

    def partials(self, sequences: abc.Iterable[Sequence], known: abc.Mapping[PartialKey, int]) -> list[Partial]:
        """See ``Engine``."""
        found = []
        for sequence in sequences:
            request = sequence.request
            partial = self._kinds[type(request.task)].partial(sequence, known.get(request.partial_key, 0))
            if partial is not None and partial.token_ids:
                found.append(partial)
        return found

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``."""
        return self._kinds[type(sequence.request.task)].fail(sequence, failure)


def _logits_of(work_of: Expected, work: abc.Sequence[Work], logits: torch.Tensor) -> abc.Sequence[torch.Tensor]:
    """Return the logits [., V] of each kind, from those of the whole step [W, V]."""
    if len(work_of) == 1 and sum(item.num_wanted for items in work_of.values() for item in items) == len(logits):
        return [logits]
    num_wanted = [item.num_wanted for item in work]
    ends = dict(zip(work, accumulate(num_wanted), strict=True))
    rows_of = [
        [row for item in items for row in range(ends[item] - item.num_wanted, ends[item])] for items in work_of.values()
    ]
    indices = Upload(logits.device)(*(np.array(rows, np.int64) for rows in rows_of)) if rows_of else ()
    return [logits.index_select(0, index) for index in indices]

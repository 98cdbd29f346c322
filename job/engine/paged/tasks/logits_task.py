"""The interface of tasks. The engine schedules and runs steps; a task uses their logits and decides when rows end.

One step may contain sequences of several kinds of tasks: ``LogitsTasks`` gives each kind its own rows.
"""

from collections import abc
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from job.engine.paged.schedule.scheduler import Work
from job.engine.paged.schedule.sequences import Sequence
from job.engine.transfers import Upload
from job.records import Generation, Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a step's logits."""

    ended: list[Sequence] = field(default_factory=list)
    """Sequences that need no further step."""
    non_finite: list[Sequence] = field(default_factory=list)
    """Sequences whose logits are not finite; the logits were not used."""
    generations: list[Generation] = field(default_factory=list)
    """Requests that are finished."""


class LogitsTask(Protocol):
    """One kind of task. Exists on the leader only. The constructor takes a ``LoadedModel`` and ``num_slots``.

    Logits are used in two phases, so that a step that fails has changed nothing: ``read`` computes and may raise, for
    example if memory runs out; ``take`` changes sequences, and a failure there is an error of a single row.
    """

    def begin(self, request: Request) -> list[Sequence]:
        """Return the sequences that a request needs."""

    def expect(self, work: abc.Sequence[Work]) -> None:
        """Prepare for a step before it runs: what else its logits need can be computed meanwhile."""

    def read(self, work: abc.Sequence[Work], logits: torch.Tensor) -> Any:
        """Return what ``take`` needs from a step's logits [W, V]: those of the wanted tokens, sequence after sequence.

        Changes no sequence.
        """

    def take(self, work: abc.Sequence[Work], read: Any) -> Outcome:
        """Advance the sequences by what was read. Does not raise."""

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """Drop a sequence that cannot be computed, and return its request's ``failure`` once that is finished."""


Part = tuple[LogitsTask, abc.Sequence[Work], Any]
"""A task, its share of a step's work, and what it read from the logits."""


class LogitsTasks:
    """All kinds of tasks of an engine. Implements ``LogitsTask``."""

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

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""
        for kind, task in self._kinds.items():  # also those without work: what they expected before no longer holds
            task.expect([item for item in work if type(item.sequence.request.task) is kind])

    def read(self, work: abc.Sequence[Work], logits: torch.Tensor) -> list[Part]:
        """See ``LogitsTask``. All kinds read before any takes: if one raises, none has changed a sequence."""
        work_of, rows_of = self._divide(work)
        if len(work_of) == 1:
            (kind,) = work_of
            return [(self._kinds[kind], work, self._kinds[kind].read(work, logits))]
        parts: list[Part] = []
        indices = Upload(logits.device)(*(np.array(rows_of[kind], np.int64) for kind in work_of))
        for (kind, items), rows in zip(work_of.items(), indices, strict=True):
            parts.append((self._kinds[kind], items, self._kinds[kind].read(items, logits.index_select(0, rows))))
        return parts

    def take(self, work: abc.Sequence[Work], read: abc.Sequence[Part]) -> Outcome:
        """See ``LogitsTask``."""
        outcomes = [task.take(items, part) for task, items, part in read]
        return Outcome(
            ended=[sequence for outcome in outcomes for sequence in outcome.ended],
            non_finite=[sequence for outcome in outcomes for sequence in outcome.non_finite],
            generations=[generation for outcome in outcomes for generation in outcome.generations],
        )

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``."""
        return self._kinds[type(sequence.request.task)].fail(sequence, failure)

    def _divide(self, work: abc.Sequence[Work]) -> tuple[dict[type, list[Work]], dict[type, list[int]]]:
        """Return the work of each kind, and which rows of the step's logits belong to it."""
        work_of: dict[type, list[Work]] = {}
        rows_of: dict[type, list[int]] = {}
        num_rows = 0
        for item in work:
            kind = type(item.sequence.request.task)
            work_of.setdefault(kind, []).append(item)
            rows_of.setdefault(kind, []).extend(range(num_rows, num_rows + item.num_wanted))
            num_rows += item.num_wanted
        return work_of, rows_of

"""What the logits of a step are for. The engine schedules and runs steps; a purpose knows where rows begin and end."""

from collections import abc
from dataclasses import dataclass, field
from typing import Protocol

import torch

from job.engine.paged.schedule.scheduler import Work
from job.engine.paged.schedule.sequences import Sequence
from job.records import Generation, Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step's logits came to."""

    ended: list[Sequence] = field(default_factory=list)
    """Sequences that need no further step."""
    non_finite: list[Sequence] = field(default_factory=list)
    """Sequences whose logits are not finite; nothing was taken from them."""
    generations: list[Generation] = field(default_factory=list)
    """Requests that are finished."""


class LogitsTask(Protocol):
    """Lives on the leader."""

    def begin(self, request: Request) -> list[Sequence]:
        """Return the sequences that a request needs."""

    def expect(self, work: abc.Sequence[Work]) -> None:
        """Hear of a step before it runs: what its logits need besides may be computed meanwhile."""

    def take(self, work: abc.Sequence[Work], logits: torch.Tensor) -> Outcome:
        """Use the logits [W, V] of a step: of the wanted tokens, sequence after sequence.

        If it raises, it has changed nothing.
        """

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """Return what becomes of the request of a sequence that cannot be computed."""

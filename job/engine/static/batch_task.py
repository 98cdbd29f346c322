"""What a static batch is computed for: one kind of task, on all ranks of a replica."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from job.engine.failures import OUT_OF_MEMORY, BatchFailed, OutOfMemory, describe_failure
from job.errors import JobError
from job.launch.replica import Replica
from job.records import Generation, Request


@dataclass(frozen=True, slots=True)
class Room:
    """What a request takes in a batch."""

    num_rows: int
    num_prompt_tokens: int
    num_other_tokens: int
    """Tokens of each row after the prompt, at most."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, padded to one length."""
        return self.num_rows * (self.num_prompt_tokens + self.num_other_tokens)

    def beside(self, other: "Room") -> "Room":
        """Return what both take in one batch: the longest prompt and the longest completion may not be of one row."""
        return Room(
            self.num_rows + other.num_rows,
            max(self.num_prompt_tokens, other.num_prompt_tokens),
            max(self.num_other_tokens, other.num_other_tokens),
        )


class BatchTask(Protocol):
    """One kind of task. A batch holds requests of one kind."""

    command_type: ClassVar[type]
    """Class of what the leader sends to its followers for a batch."""
    max_rows: int
    max_tokens: int
    """Of a batch, padding included, at most."""
    num_computed_tokens: int

    def room(self, request: Request) -> Room:
        """Return what a request takes in a batch."""

    def compute(self, batch: list[Request]) -> list[Generation]:
        """Send a batch to the followers, compute it, and return what finished. Leader.

        Raises:
            OutOfMemory, BatchFailed: all ranks agree that it failed.
        """

    def obey(self, command: Any) -> None:
        """Compute the batch that the leader sent. Follower. Raises as ``compute`` does."""


def together(replica: Replica, compute: Callable[[], str | None]) -> None:
    """Compute on this rank, then hear how it went on the others.

    Args:
        compute: returns what has failed without raising, if anything.

    Raises:
        OutOfMemory, BatchFailed: all ranks agree that it failed.
    """
    try:
        failure = compute()
    except JobError:
        raise
    except Exception as error:  # whatever the model's code raises on these rows
        failure = describe_failure(error)
    # Outside the except block: the traceback held the tensors of the failed forward pass alive.
    statuses = [status for status in replica.gather_status(failure) if status is not None]
    if not statuses:
        return
    if replica.device.type == "cuda":
        torch.cuda.empty_cache()
    if OUT_OF_MEMORY in statuses:
        raise OutOfMemory
    raise BatchFailed(statuses[0])

"""The tasks of static batches: each batch is computed for one kind of task, on all ranks of a replica."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from job.engine.failures import OUT_OF_MEMORY, BatchFailed, OutOfMemory, describe_failure
from job.errors import JobError
from job.launch.replica import Replica
from job.records import Generation, Partial, Request


@dataclass(frozen=True, slots=True)
class Room:
    """The space that a request takes in a batch."""

    num_rows: int
    num_prompt_tokens: int
    num_other_tokens: int
    """The most tokens that a row can have after the prompt."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, padded to one length."""
        return self.num_rows * (self.num_prompt_tokens + self.num_other_tokens)

    def merged_with(self, other: "Room") -> "Room":
        """Return the space of both in one batch: the longest prompt and completion may belong to different rows."""
        return Room(
            self.num_rows + other.num_rows,
            max(self.num_prompt_tokens, other.num_prompt_tokens),
            max(self.num_other_tokens, other.num_other_tokens),
        )


class BatchTask(Protocol):
    """One kind of task. A batch holds requests of one kind.

    The constructor takes a ``LoadedModel``, a ``Replica``, ``should_stop``, ``max_rows`` and ``max_tokens``.
    """

    command_type: ClassVar[type]
    """The class of what the leader sends to its followers for a batch."""
    max_rows: int
    max_tokens: int
    """The most tokens in a batch, including padding."""
    num_computed_tokens: int
    unfinished: Sequence[Partial]
    """What the latest batch has of the requests that it has not finished, as far as they can go on there."""

    def room(self, request: Request) -> Room:
        """Return the space that a request takes in a batch."""

    def compute(self, batch: list[Request]) -> list[Generation]:
        """Send a batch to the followers, compute it, and return the finished requests. Leader only.

        Raises:
            OutOfMemory, BatchFailed: all ranks agree that it failed.
        """

    def obey(self, command: Any) -> None:
        """Compute the batch that the leader sent. Follower only. Raises what ``compute`` raises."""


def together(replica: Replica, compute: Callable[[], str | None]) -> None:
    """Compute on this rank, then find out whether any rank failed.

    Args:
        compute: returns a failure that it did not raise, if there is one.

    Raises:
        OutOfMemory, BatchFailed: all ranks agree that it failed.
    """
    try:
        failure = compute()
    except JobError:
        raise
    except Exception as error:  # whatever the model's code raises on these rows
        failure = describe_failure(error)
    # Outside the except block, where the traceback would keep the tensors of the failed forward pass alive.
    statuses = [status for status in replica.gather_status(failure) if status is not None]
    if not statuses:
        return
    if replica.device.type == "cuda":
        torch.cuda.empty_cache()
    if OUT_OF_MEMORY in statuses:
        raise OutOfMemory
    raise BatchFailed(statuses[0])

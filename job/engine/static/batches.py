"""What engines of static batches have in common: requests in, the longest ones of like length into a batch.

A batch lasts as long as its longest row, so pending requests are sorted by length, longest first: rows of a batch are
alike, and a batch that does not fit into memory shows at once and not at four in the morning.
"""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from job.engine.failures import OUT_OF_MEMORY, BatchFailed, OutOfMemory, describe_failure, failed
from job.errors import JobError
from job.launch.replica import Replica
from job.records import Generation, Request

PENDING_BATCHES = 16
"""So many batches' worth of requests are sorted together: enough to find rows of like length."""

KEEP_ALIVE = "keep alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The leader's last command."""

    exit_code: int


class StaticBatches(ABC):
    """Implements ``Engine`` but for what is computed of a batch."""

    def __init__(self, replica: Replica, should_stop: Callable[[], bool], *, max_rows: int, max_tokens: int) -> None:
        """Have nothing to do yet.

        Args:
            should_stop: asked by the leader before every batch.
            max_rows: of a batch.
            max_tokens: of a batch, each row taking ``_room``.
        """
        self._replica, self._should_stop = replica, should_stop
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._pending: deque[Request] = deque()
        self._is_sorted = True
        self._batch: list[Request] = []
        self.num_computed_tokens = 0

    @abstractmethod
    def _room(self, request: Request) -> int:
        """Return the tokens that a row takes in a batch of which it is the longest."""

    @abstractmethod
    def _complete(self, batch: list[Request]) -> list[Generation]:
        """Tell the replica a batch, compute it, and return what finished. Leader.

        Raises:
            OutOfMemory, BatchFailed: all ranks agree that it failed.
        """

    @abstractmethod
    def _obey(self, command: Any) -> None:
        """Compute the batch that the leader has told. Follower. Raises as ``_complete`` does."""

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return len(self._pending)

    @property
    def min_pending(self) -> int:
        """See ``Engine``."""
        return self._max_rows

    @property
    def max_pending(self) -> int:
        """See ``Engine``."""
        return PENDING_BATCHES * self._max_rows

    @property
    def in_flight(self) -> list[Request]:
        """See ``Engine``."""
        return self._batch

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        self._put_back([request])

    def step(self) -> list[Generation]:
        """Compute one batch of the longest pending requests."""
        if not self._pending or self._should_stop():
            return []
        self._batch = self._next_batch()
        return self._attempt(self._batch)

    def keep_alive(self) -> None:
        """See ``Engine``."""
        self._replica.command(KEEP_ALIVE)

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""
        self._replica.command(Closed(exit_code=exit_code))

    def follow(self) -> int:
        """See ``Engine``."""
        while True:
            command = self._replica.command()
            if isinstance(command, Closed):
                return command.exit_code
            if command != KEEP_ALIVE:
                # A failure that all ranks agree on: the leader sends what it decides to do about it.
                with contextlib.suppress(OutOfMemory, BatchFailed):
                    self._obey(command)

    def _next_batch(self) -> list[Request]:
        """Take the longest requests that fit the budget; at least one, whatever its size."""
        if not self._is_sorted:
            self._pending = deque(sorted(self._pending, key=lambda request: -len(request.prompt_ids)))
            self._is_sorted = True
        num_rows = max(1, min(self._max_rows, self._max_tokens // self._room(self._pending[0]), len(self._pending)))
        return [self._pending.popleft() for _ in range(num_rows)]

    def _put_back(self, requests: Sequence[Request]) -> None:
        self._pending.extend(requests)
        self._is_sorted = False

    def _attempt(self, batch: list[Request]) -> list[Generation]:
        """Compute a batch, or what can be computed of it."""
        try:
            return self._complete(batch)
        except OutOfMemory:
            return self._shrink(batch)
        except BatchFailed as error:
            return self._bisect(batch, str(error))

    def _shrink(self, batch: list[Request]) -> list[Generation]:
        """Keep all later batches to half of this one's tokens: memory that ran out once will run out again."""
        if len(batch) == 1:
            return [failed(batch[0], "out_of_memory", OUT_OF_MEMORY)]
        self._max_tokens = len(batch) // 2 * self._room(batch[0])
        self._put_back(batch)
        return []

    def _bisect(self, batch: list[Request], reason: str) -> list[Generation]:
        """Find the row on which the model fails: alone, it becomes an error row."""
        if len(batch) == 1:
            return [failed(batch[0], "engine_error", reason)]
        half = len(batch) // 2
        return [generation for part in (batch[:half], batch[half:]) for generation in self._attempt(part)]

    def _together(self, compute: Callable[[], str | None]) -> None:
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
        statuses = [status for status in self._replica.gather_status(failure) if status is not None]
        if not statuses:
            return
        if self._replica.device.type == "cuda":
            torch.cuda.empty_cache()
        if OUT_OF_MEMORY in statuses:
            raise OutOfMemory
        raise BatchFailed(statuses[0])

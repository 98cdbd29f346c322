"""Which rows this worker computes next in a random order: pieces of rows that follow each other in it.

A piece has rows of all shards. Its lease says who computes it, and a mark that all of its rows are in journals. Whoever
is free takes the first piece that has neither, or whose holder is dead. So the rows that are finished or in flight are
always the first ones of the order, and a stop leaves a random sample.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from job.output.parts.finished_keys import FinishedKeys
from job.output.parts.order import Rows, shuffled
from job.output.parts.plan import Plan
from job.output.sharing.leases import Leases
from job.output.store.directory import RunDirectory
from job.output.store.names import LEASES

MIN_PIECE_ROWS, MAX_PIECE_ROWS, MAX_PIECES = 32, 1024, 8192
"""Limits on pieces: small enough that all workers stop together, large enough that a lease for each costs little."""

LOOK_SECS = 10.0
"""How often pieces are listed again, since leases may have become stale; less often if the store asks for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows that are this worker's to compute."""

    piece_idx: int
    rows: Rows
    """In ascending order, those that are finished included."""
    order: Rows
    """The same in the random order."""
    is_whole: bool
    """False if it was cut because the launch stops within it."""


def piece_rows(num_rows: int) -> int:
    """Return the number of rows of a piece.

    >>> piece_rows(1000), piece_rows(1_000_000)
    (32, 123)
    """
    return min(max(MIN_PIECE_ROWS, -(-num_rows // MAX_PIECES)), MAX_PIECE_ROWS)


class Pieces:
    """Hands out the pieces of a random order to this worker."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        leases: Leases,
        finished: FinishedKeys,
        *,
        seed: int,
        num_rows: int | None = None,
    ) -> None:
        """Make the order.

        Args:
            finished: what is finished of the run. It is read here, from time to time.
            seed: of the order.
            num_rows: hand out only this many rows, the first ones.
        """
        self._directory, self._leases, self._finished = directory, leases, finished
        self._order = shuffled(plan.num_rows, seed)
        self._name = f"{seed}-{plan.num_rows}"
        """Of the order. Workers with another one, or whose run has grown, have leases of their own."""
        self._size = piece_rows(plan.num_rows)
        self._stop = plan.num_rows if num_rows is None else min(num_rows, plan.num_rows)
        self._left = list(range(-(-self._stop // self._size)))
        """The pieces that are not known to be finished."""
        self._mine: dict[int, Piece] = {}
        self._free: deque[int] = deque()
        self._look_secs = max(LOOK_SECS, directory.store.pause_secs)
        self._last_look = self._last_read = -self._look_secs

    @property
    def are_left(self) -> bool:
        """Whether some are not finished, as far as this worker knows."""
        return bool(self._left)

    def claim(self, *, at_once: bool = False) -> Piece | None:
        """Claim a piece and return it, or None if none is free at the moment.

        Args:
            at_once: look for pieces that dead workers have left, even if the last look was just now.
        """
        if time.monotonic() - self._last_look >= self._look_secs or (at_once and not self._free):
            self._look()
        while self._free:
            piece_idx = self._free.popleft()
            if (piece := self._try(piece_idx)) is not None:
                return piece
        return None

    def finish(self, piece: Piece) -> None:
        """Give back a piece all of whose rows are in journals, durably."""
        if piece.is_whole:  # of one that was cut, another launch computes the rest
            name = self._directory.names.piece_done(self._name, piece.piece_idx)
            self._directory.store.create_exclusively(name, b"", durable=False)
        self._settle(piece.piece_idx)

    def _try(self, piece_idx: int) -> Piece | None:
        """Claim a piece if it is free and has rows that are not finished."""
        names = self._directory.names
        if not self._leases.acquire_name(names.piece(self._name, piece_idx)):
            return None
        start, end = piece_idx * self._size, min((piece_idx + 1) * self._size, len(self._order))
        order = self._order[start : min(end, self._stop)]
        piece = Piece(piece_idx, np.sort(order), order, is_whole=end <= self._stop)
        if self._directory.store.exists(names.piece_done(self._name, piece_idx)):
            self._settle(piece_idx)
            return None
        # Its last holder may have stopped, or have been killed, in its middle.
        self._read(is_urgent=not piece.is_whole)
        if self._finished.are_done(piece.rows).all():
            self.finish(piece)
            return None
        self._mine[piece_idx] = piece
        return piece

    def _read(self, *, is_urgent: bool) -> None:
        if is_urgent or time.monotonic() - self._last_read >= self._look_secs:
            self._finished.look()
            self._last_read = time.monotonic()

    def _settle(self, piece_idx: int) -> None:
        self._mine.pop(piece_idx, None)
        # While this process was paused, another worker may have taken the piece over, and have finished it.
        self._left = [left for left in self._left if left != piece_idx]
        self._leases.release_name(self._directory.names.piece(self._name, piece_idx))

    def _look(self) -> None:
        """List the pieces that are not finished. Those with a lease are tried, too: their holders may be dead."""
        self._last_look = time.monotonic()
        done = set(self._done())
        self._left = [piece_idx for piece_idx in self._left if piece_idx not in done]
        self._free = deque(piece_idx for piece_idx in self._left if piece_idx not in self._mine)

    def _done(self) -> Iterator[int]:
        names = self._directory.names
        for entry in self._directory.store.list(LEASES):
            number = entry.name.removesuffix(".done").rpartition(".")[2]
            if number.isdecimal() and f"{LEASES}/{entry.name}" == names.piece_done(self._name, int(number)):
                yield int(number)

"""What this worker does next: a slice of a shard of its own, a new shard, or a slice of another worker's shard.

The worker that holds a shard's lease writes its part. It works through the shard slice by slice, in ascending order, so
that its data are read once. A worker that finds no free shard helps: it takes slices from
the end of shards that others hold, and writes its rows to a journal of its own, where the holder finds them. So even
the last shard, or the only one, keeps all workers busy. If everything is claimed, it takes rows that others offer.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from job.output.parts.plan import MIN_SLICE_ROWS, Plan
from job.output.sharing.leases import Leases
from job.output.sharing.offers import Key, Offers
from job.output.store.directory import RunDirectory
from job.output.store.names import LEASES, TOTALS

MAX_HELPED = 100
"""The number of other workers' shards that a helper considers at most."""

MAX_OFFERS = 8
"""Rows are offered in about this many pieces, since several workers may run out of rows at once."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that are this worker's to compute."""

    shard_idx: int
    rows: range
    only: frozenset[int] | None = None
    """Which of the rows; None: all."""


class Claims:
    """Hands out work to this worker."""

    def __init__(self, directory: RunDirectory, plan: Plan, leases: Leases, num_rows: int | None = None) -> None:
        """List the shards that are not done.

        Args:
            num_rows: hand out only this many rows, the first ones.
        """
        self._directory, self._plan, self._leases = directory, plan, leases
        self._stop = plan.num_rows if num_rows is None else num_rows
        done = directory.done_shards()
        self._remaining = [shard_idx for shard_idx in range(plan.num_shards) if shard_idx not in done]
        if self._remaining:
            # Parts may be replaced from now on. (Their identities may not show it: inodes are reused.)
            directory.store.delete(TOTALS)
        self._shards = deque(self._remaining)
        """Shards that have not been tried since they were last listed."""
        self._ours: set[int] = set()
        self._claimed: set[tuple[int, int]] = set()
        """Each (shard, slice) that was handed out."""
        self._own_slices: deque[tuple[int, int]] = deque()
        self._other_slices: deque[tuple[int, int]] = deque()
        self._offers = Offers(directory, leases)
        self._open_offers: deque[Key] = deque()

    def claim(self) -> Claim | None:
        """Claim work and return it, or None if nothing is free at the moment."""
        while self._own_slices or self._claim_shard():
            shard_idx, slice_idx = self._own_slices.popleft()
            # Nobody can help with a shard of one slice: its lease is enough.
            if len(self._plan.slices(shard_idx)) == 1 or self._leases.acquire(shard_idx, slice_idx):
                return self._claim_of(shard_idx, slice_idx)
        while self._other_slices:
            shard_idx, slice_idx = self._other_slices.popleft()
            # When the holder has written the part, it removes the leases of all slices, so one that looks free may be
            # done. (If that happens between these two checks, rows are computed twice, and the first ones count.)
            if not self._directory.is_done(shard_idx) and self._leases.acquire(shard_idx, slice_idx):
                return self._claim_of(shard_idx, slice_idx)
        while self._open_offers:
            key = self._open_offers.popleft()
            if not self._directory.is_done(key[0]) and (rows := self._offers.take(key, stop=self._stop)):
                return Claim(key[0], range(rows[0], rows[-1] + 1), frozenset(rows))
        return None

    def offer(self, rows: Sequence[int]) -> None:
        """Offer rows that this worker has claimed, in ascending order. They are not its own to compute until it is
        handed them once more."""
        size = max(MIN_SLICE_ROWS, -(-len(rows) // MAX_OFFERS))
        by_shard: dict[int, list[int]] = {}
        for row_idx in rows:
            by_shard.setdefault(self._plan.shard_of(row_idx), []).append(row_idx)
        for shard_idx, of_shard in by_shard.items():
            for start in range(0, len(of_shard), size):
                self._offers.make(shard_idx, of_shard[start : start + size])

    def close(self) -> None:
        """Offer nothing any more."""
        self._offers.close()

    @property
    def held(self) -> tuple[int, ...]:
        """The shards whose parts this worker is to write, even if helpers have claimed all their slices."""
        return tuple(self._ours)

    def holds(self, shard_idx: int) -> bool:
        """Whether this worker is to write the shard's part. If not, it helps."""
        return shard_idx in self._ours

    def skip(self, shard_idx: int) -> None:
        """Hand out no more of a shard of our own: all of its rows are finished."""
        self._own_slices = deque(key for key in self._own_slices if key[0] != shard_idx)

    def leave(self, shard_idx: int) -> None:
        """Give back a finished shard, with the leases of all its slices, including those of other workers."""
        self._claimed = {key for key in self._claimed if key[0] != shard_idx}
        # Once their leases are removed, the slices that others have done would look free.
        self._own_slices = deque(key for key in self._own_slices if key[0] != shard_idx)
        self._offers.forget(shard_idx)
        for slice_idx in range(len(self._plan.slices(shard_idx))):
            # First our own, so that the heartbeat forgets it; then one that a helper, perhaps dead, has left.
            self._leases.release(shard_idx, slice_idx)
            self._directory.store.delete(self._directory.names.lease(shard_idx, slice_idx))
        if shard_idx in self._ours:
            self._ours.discard(shard_idx)
            self._leases.release(shard_idx)

    def look_again(self) -> bool:
        """List what is left again, since leases may have become stale. False if everything is done."""
        done = self._directory.done_shards()
        self._remaining = [shard_idx for shard_idx in self._remaining if shard_idx not in done]
        others = [shard_idx for shard_idx in self._remaining if shard_idx not in self._ours]
        self._shards = deque(others)
        # Include slices that helpers have claimed: only the holder takes over those of dead helpers, in ``acquire``.
        self._own_slices = deque(self._unclaimed(sorted(self._ours)))
        listed = [entry.name for entry in self._directory.store.list(LEASES)]
        self._other_slices = deque(self._free_slices(others, listed))
        self._open_offers = deque(self._offers.of(self._remaining, listed))
        return bool(self._remaining)

    def _free_slices(self, shards: list[int], listed: Sequence[str]) -> list[tuple[int, int]]:
        """Return the slices of others' shards that have no lease, the last ones first.

        Leases of dead helpers are left to the holders. They are listed once, because trying each lease would cost a
        network file system thousands of requests.
        """
        leased = {f"{LEASES}/{name}" for name in listed}
        helped = [idx for idx in shards if len(self._plan.slices(idx)) > 1]
        random.shuffle(helped)  # spreads the helpers
        free = [key for key in self._unclaimed(helped[:MAX_HELPED]) if self._directory.names.lease(*key) not in leased]
        return free[::-1]

    def _claim_shard(self) -> bool:
        while self._shards:
            shard_idx = self._shards.popleft()
            if self._plan.rows(shard_idx).start >= max(1, self._stop):
                continue
            if self._directory.is_done(shard_idx) or not self._leases.acquire(shard_idx):
                continue
            # Check again while we hold the lease: a holder finishes its part before it gives the lease back, so a shard
            # whose lease was free is either done by now, or has no holder.
            if not self._directory.is_done(shard_idx):
                self._ours.add(shard_idx)
                self._own_slices.extend(self._unclaimed([shard_idx]))
                if self._own_slices:  # else this worker has claimed all of it before, as a helper
                    return True
            else:
                self._leases.release(shard_idx)
        return False

    def _unclaimed(self, shards: Iterable[int]) -> Iterable[tuple[int, int]]:
        for shard_idx in shards:
            for slice_idx, rows in enumerate(self._plan.slices(shard_idx)):
                if (shard_idx, slice_idx) not in self._claimed and rows.start < max(1, self._stop):
                    yield shard_idx, slice_idx

    def _claim_of(self, shard_idx: int, slice_idx: int) -> Claim:
        self._claimed.add((shard_idx, slice_idx))
        rows = self._plan.slices(shard_idx)[slice_idx]
        return Claim(shard_idx, rows[: max(0, self._stop - rows.start)])

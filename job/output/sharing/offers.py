"""Rows that a worker has claimed but not begun, which it offers to workers that have none.

An offer is an object that lists rows of a shard. Who takes it acquires its lease and removes the list. The worker that
made the offer still sees to it that these rows are finished: once it has nothing else to do, it takes back what nobody
has taken, or what a worker has that is dead. If it ends itself, its claims are free, with all of their rows.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence

from job.output.sharing.leases import Leases
from job.output.store.directory import RunDirectory

Key = tuple[int, int]
"""The shard, and the number of the offer."""

NUMBERS = range(10_000, 1_000_000)
"""Those of slices are lower. Drawn at random, so that no worker still has a lease of the same number."""


class Offers:
    """The offers of one worker, and those that it finds."""

    def __init__(self, directory: RunDirectory, leases: Leases) -> None:
        """Nothing is offered yet."""
        self._store, self._names, self._leases = directory.store, directory.names, leases
        self._own: dict[Key, Sequence[int]] = {}
        """What this worker has offered and not taken back."""
        self._taken: set[Key] = set()

    def make(self, shard_idx: int, rows: Sequence[int]) -> None:
        """Offer rows of a shard, in ascending order."""
        content = json.dumps(list(rows)).encode()
        while True:  # until the number is new: rows that are in no offer would be nobody's
            number = NUMBERS.start + secrets.randbelow(len(NUMBERS))
            if self._store.create_exclusively(self._names.offer(shard_idx, number), content, durable=False):
                break
        self._own[shard_idx, number] = rows

    def of(self, shards: Iterable[int], listed: Iterable[str]) -> Iterator[Key]:
        """Yield the offers of some shards: those of this worker, even if others have taken them, and what others offer.

        Args:
            listed: the names in the directory of leases.
        """
        wanted = set(shards)
        yield from (key for key in self._own if key[0] in wanted)
        for name in listed:
            match = re.fullmatch(r"(\d+)\.(\d+)\.rows", name, re.ASCII)
            if match and int(match[1]) in wanted and (key := (int(match[1]), int(match[2]))) not in self._own:
                yield key

    def take(self, key: Key, *, stop: int) -> Sequence[int] | None:
        """Take an offer, or take it back, and return its rows. None if another worker has it.

        Args:
            stop: leave an offer with rows from this one on.
        """
        rows = self._own.get(key) or self._read(self._names.offer(*key))
        if not rows or rows[-1] >= stop or not self._leases.acquire(*key):
            return None
        self._own.pop(key, None)
        self._taken.add(key)
        self._store.delete(self._names.offer(*key))
        return rows

    def forget(self, shard_idx: int) -> None:
        """Withdraw the offers of a shard and give back those that were taken: the shard is finished."""
        for key in [key for key in self._own if key[0] == shard_idx]:
            del self._own[key]
            self._store.delete(self._names.offer(*key))
        for key in [key for key in self._taken if key[0] == shard_idx]:
            self._taken.discard(key)
            self._leases.release(*key)

    def close(self) -> None:
        """Withdraw all offers, and give back those that were taken."""
        for shard_idx in {shard_idx for shard_idx, _ in (*self._own, *self._taken)}:
            self.forget(shard_idx)

    def _read(self, name: str) -> list[int]:
        try:
            rows = json.loads(self._store.read(name))
        except (FileNotFoundError, ValueError):  # another worker has taken it
            return []
        is_valid = isinstance(rows, list) and all(isinstance(row, int) for row in rows)
        return sorted(rows) if is_valid else []

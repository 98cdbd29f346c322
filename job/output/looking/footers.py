"""The counts in the footers of many parts, read fast enough for a person who is waiting.

Footers are read in threads, since on a network file system each one is a round trip, and within a time budget. A footer
is not read again unless its part is replaced.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from job.errors import JobError, Unavailable
from job.output.parts.counts import Counts
from job.output.store.directory import RunDirectory

NUM_THREADS = 32
PARTS_AT_ONCE = 8 * NUM_THREADS
"""The number of parts read between two checks of the time budget."""


class FooterCounts:
    """The counts of parts. Remembers which parts it has read."""

    def __init__(self) -> None:
        """Start with no parts."""
        self._seen: dict[int, tuple[str, Counts | None]] = {}
        """Shard to the identity of its part and the counts in it; None if they cannot be read."""
        self._total: Counts | None = None
        """The sum over all parts, until one of them changes."""

    def look(self, directory: RunDirectory, parts: Mapping[int, str], *, budget_secs: float) -> None:
        """Read the parts that are new, as many as the time allows, and drop those that were replaced or removed.

        Args:
            parts: shard to the identity of its part.
        """
        for shard_idx in [idx for idx, (identity, _) in self._seen.items() if parts.get(idx) != identity]:
            del self._seen[shard_idx]
            self._total = None
        new = [shard_idx for shard_idx in sorted(parts) if shard_idx not in self._seen]
        for shard_idx, counts in _read(directory, new, until=time.monotonic() + budget_secs):
            self._seen[shard_idx] = parts[shard_idx], None if isinstance(counts, JobError) else counts
            if self._total is not None and isinstance(counts, Counts):
                self._total.include(counts)

    def of(self, shard_idx: int) -> Counts | None:
        """Return the counts of a shard's part; None if it has not been read, or cannot be."""
        return self._seen.get(shard_idx, ("", None))[1]

    @property
    def total(self) -> Counts:
        """The sums over the parts that were read."""
        if self._total is None:
            self._total = Counts.total(counts for _, counts in self._seen.values() if counts is not None)
        return self._total

    @property
    def num_read(self) -> int:
        """The number of parts in the sums."""
        return len(self._seen) - self.num_unreadable

    @property
    def num_unreadable(self) -> int:
        """The number of files that are damaged, or are not parts."""
        return len(self.unreadable)

    @property
    def unreadable(self) -> list[int]:
        """The shards of these files."""
        return [shard_idx for shard_idx, (_, counts) in self._seen.items() if counts is None]


def count_parts(directory: RunDirectory, shards: Iterable[int]) -> dict[int, Counts]:
    """Return the counts of these shards' parts.

    Raises:
        JobError: a part cannot be read; the message says why.
    """
    found: dict[int, Counts] = {}
    for shard_idx, counts in _read(directory, shards):
        if isinstance(counts, JobError):
            raise counts
        found[shard_idx] = counts
    return found


def count_all(directory: RunDirectory) -> Counts:
    """Return the sums of a run in which every shard has its part.

    Raises:
        JobError: a part cannot be read.
    """
    return Counts.total(count_parts(directory, range(directory.names.num_shards)).values())


def _read(
    directory: RunDirectory, shards: Iterable[int], *, until: float | None = None
) -> Iterator[tuple[int, Counts | JobError]]:
    """Yield each shard with its counts, or why they cannot be read.

    Args:
        until: deadline by ``time.monotonic()``; parts that have not been started by then are left out.
    """

    def read(shard_idx: int) -> Counts | JobError:
        try:
            return Counts.of_part(directory.store, directory.names.part(shard_idx))
        except Unavailable:
            raise
        except JobError as error:
            return error

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for some in _cut(shards):
            if until is not None and time.monotonic() >= until:
                return
            yield from zip(some, pool.map(read, some), strict=True)


def _cut(shards: Iterable[int]) -> Iterator[list[int]]:
    waiting = list(shards)
    return (waiting[start : start + PARTS_AT_ONCE] for start in range(0, len(waiting), PARTS_AT_ONCE))

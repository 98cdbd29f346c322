"""What is finished of the shards that have no final part, counted from their journals.

Journals are read like the footers of parts: in threads, within a time budget, and only what is new since the last look.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from job.modes.mode import Mode
from job.output.parts.counts import Counts
from job.output.parts.journal import JournalReader
from job.output.parts.plan import Plan
from job.output.store.directory import RunDirectory
from job.records import SampleKey

NUM_THREADS = 16
JOURNALS_AT_ONCE = 2 * NUM_THREADS
"""The number of journals read between two checks of the time budget."""


class JournalCounts:
    """Sums over the journals of each shard. Remembers what it has read."""

    def __init__(self, directory: RunDirectory, plan: Plan, modes: Iterable[Mode] = ()) -> None:
        """Start with no journals. ``modes``: what they tally is counted, too, which may take a while."""
        self._directory, self._plan, self._modes = directory, plan, tuple(modes)
        self._shards: dict[int, _ShardRows] = {}
        self.num_journals = self.num_read = 0
        """How many there are, and how many of them were read in the last look."""

    def look(self, *, budget_secs: float) -> None:
        """Read what is new in all journals, or in as many as the time allows."""
        self._look(until=time.monotonic() + budget_secs)
        cut = [shard_idx for shard_idx, rows in self._shards.items() if rows.have_lost_some]
        if cut:
            for shard_idx in cut:
                del self._shards[shard_idx]
            self._look(until=time.monotonic() + budget_secs)

    def _look(self, *, until: float) -> None:
        journals = self._list()
        for shard_idx in [idx for idx, rows in self._shards.items() if not rows.are_of(journals.get(idx, {}))]:
            del self._shards[shard_idx]
        todo = [
            (self._shards.setdefault(shard_idx, _ShardRows(shard_idx, self._plan)), name, identity)
            for shard_idx, of_shard in sorted(journals.items())
            for name, identity in sorted(of_shard.items())
        ]
        todo.sort(key=lambda each: each[1] in each[0].readers)  # those that were never read first
        self.num_journals, self.num_read = len(todo), sum(name in rows.readers for rows, name, _ in todo)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for start in range(0, len(todo), JOURNALS_AT_ONCE):
                if time.monotonic() >= until:
                    return
                some = todo[start : start + JOURNALS_AT_ONCE]
                self.num_read += sum(name not in rows.readers for rows, name, _ in some)
                # Only the reading runs in threads: the rows of a shard may be in several of these journals.
                for (rows, _, _), found in zip(some, pool.map(self._read, some), strict=True):
                    if found is not None:
                        rows.add(found, self._modes)

    def of_shards(self) -> Mapping[int, Counts]:
        """Return what is finished of each shard that has a journal."""
        return {shard_idx: rows.counts for shard_idx, rows in self._shards.items()}

    def has(self, shard_idx: int, key: SampleKey) -> bool:
        """Whether a completion is in a journal that was read."""
        return shard_idx in self._shards and self._shards[shard_idx].has(key)

    def without(self, shard_idx: int, positions: Collection[int]) -> Counts:
        """Return what is finished of a shard in its journals, apart from the rows at some positions within the shard.

        Its journals are read again, so this is for those of a retry, which are small.
        """
        rows = _ShardRows(shard_idx, self._plan, positions)
        for name in self._directory.journals(shard_idx):
            if (found := self._read((rows, name, ""))) is not None:
                rows.add(found, self._modes)
        return rows.counts

    @property
    def damages(self) -> list[str]:
        """Why some journals, or the rest of them, cannot be used."""
        readers = [reader for rows in self._shards.values() for _, reader in rows.readers.values()]
        return [reader.damage for reader in readers if reader.damage is not None]

    def _list(self) -> dict[int, dict[str, str]]:
        """Return the identity of each journal, by shard and name."""
        found: dict[int, dict[str, str]] = {}
        for shard_idx, name, entry in self._directory.all_journals():
            if shard_idx < self._plan.num_shards:
                found.setdefault(shard_idx, {})[name] = entry.identity
        return found

    def _read(self, journal: "tuple[_ShardRows, str, str]") -> pa.Table | None:
        rows, name, identity = journal
        _, reader = rows.readers.setdefault(name, (identity, JournalReader.of(self._directory, name)))
        try:
            batches = list(reader.read_batches())
        except OSError as error:  # a look must not end a run: only the worker that needs these rows has to stop
            reader.damage = f"{self._directory.store.describe(name)} cannot be read: {error.strerror or error}"
            return None
        return pa.Table.from_batches(batches).combine_chunks() if batches else None


class _ShardRows:
    """The rows of one shard that are in journals. The first completion of a row counts, as for a worker."""

    def __init__(self, shard_idx: int, plan: Plan, left_out: Collection[int] = ()) -> None:
        """Start with none. Rows at the positions ``left_out`` will not be counted."""
        self._start, self._num_samples = plan.rows(shard_idx).start, plan.num_samples
        self._is_seen = np.zeros(len(plan.rows(shard_idx)) * plan.num_samples, np.bool_)
        self._is_seen[list(left_out)] = True
        self.readers: dict[str, tuple[str, JournalReader]] = {}
        """Name of a journal to its identity and its reader."""
        self.counts = Counts()

    def are_of(self, journals: Mapping[str, str]) -> bool:
        """Whether all of them come from these journals, by name and identity."""
        return all(journals.get(name) == identity for name, (identity, _) in self.readers.items())

    @property
    def have_lost_some(self) -> bool:
        """Whether some of them may be in no journal any more. Only a failed write cuts a journal."""
        return any(reader.has_restarted for _, reader in self.readers.values())

    def has(self, key: SampleKey) -> bool:
        """Whether a completion has been added."""
        place = (key[0] - self._start) * self._num_samples + key[1]
        return 0 <= place < len(self._is_seen) and bool(self._is_seen[place])

    def add(self, table: pa.Table, modes: Iterable[Mode]) -> None:
        """Count rows that have not been seen yet."""
        row_idx, sample_idx = (table[name].to_numpy() for name in ("row_idx", "sample_idx"))
        places = (row_idx - self._start) * self._num_samples + sample_idx
        is_valid = (places >= 0) & (places < len(self._is_seen)) & (sample_idx >= 0) & (sample_idx < self._num_samples)
        _, first = np.unique(places, return_index=True)
        fresh = np.sort(first[is_valid[first] & ~self._is_seen[np.where(is_valid, places, 0)[first]]])
        self._is_seen[places[fresh]] = True
        self.counts.add_batch(table.take(fresh), modes)

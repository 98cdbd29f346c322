"""What is finished of a run, counted from what is on disk: the footers of its parts, and its journals.

This is the truth about a run, whatever its workers have reported. What was read once is not read again.
"""

import contextlib
from collections.abc import Collection, Iterable, Mapping

from job.errors import JobError, UsageError
from job.modes.mode import Mode
from job.output.looking.footers import FooterCounts
from job.output.looking.journal_counts import JournalCounts
from job.output.parts.counts import Counts
from job.output.parts.plan import Plan
from job.output.parts.retry_marks import Mark, positions_to_stay, read_mark
from job.output.store.directory import RunDirectory


class FinishedRows:
    """Counts the finished rows of a run, once or repeatedly. An error row that is to be retried is not finished."""

    def __init__(self, directory: RunDirectory, plan: Plan, modes: Iterable[Mode] = ()) -> None:
        """Start with nothing read. ``modes``: what they tally is counted in journals, too, which takes longer."""
        self._directory, self._plan = directory, plan
        self.journals, self.footers = JournalCounts(directory, plan, modes), FooterCounts()
        self._num_looks = 0
        self._parts: Mapping[int, str] = {}
        self._marks: dict[int, Mark] = {}
        """Shards with rows to be retried."""
        self._retried: dict[int, Counts] = {}
        """What is in the journals of these shards."""

    def look(self, *, budget_secs: float) -> None:
        """Count again, and read as much as the time allows.

        Raises:
            OSError: the directory cannot be listed.
        """
        self.read_journals(budget_secs=budget_secs)
        to_retry = self._directory.shards_to_retry()
        parts = {shard_idx: entry.identity for shard_idx, entry in self._directory.parts()}
        self.read_parts(parts, to_retry, budget_secs=budget_secs)

    def read_journals(self, *, budget_secs: float) -> None:
        """Do the first half of a look. It comes before parts are listed, because a journal that is deleted in between
        belongs to a shard whose part is then in the list."""
        self.journals.look(budget_secs=budget_secs)

    def read_parts(self, parts: Mapping[int, str], to_retry: Collection[int], *, budget_secs: float) -> None:
        """Do the second half of a look.

        Args:
            parts: shard to the identity of its part.
            to_retry: the shards with a marker, listed before the parts.
        """
        self._parts = parts
        self._marks = {shard_idx: self._mark_of(shard_idx) for shard_idx in to_retry if shard_idx in parts}
        self._num_looks += 1
        # A part under retry is read each time: its identity may not show that it was replaced, since inodes are reused.
        identities = {idx: f"{parts[idx]} {self._num_looks}" for idx in self._marks}
        self.footers.look(self._directory, {**parts, **identities}, budget_secs=budget_secs)
        # A worker that was killed after it had replaced a part has left journals with rows that are in the part.
        self._retried = {
            shard_idx: self.journals.without(shard_idx, self._positions_to_stay(shard_idx))
            for shard_idx in self.journals.of_shards().keys() & self._marks.keys()
        }

    def _positions_to_stay(self, shard_idx: int) -> list[int]:
        with contextlib.suppress(JobError):
            return positions_to_stay(self._directory, shard_idx, self._marks[shard_idx])
        return []  # a damaged part counts in full

    def _mark_of(self, shard_idx: int) -> Mark:
        with contextlib.suppress(OSError, UsageError):  # a worker that meets a damaged marker reports it
            return read_mark(self._directory, shard_idx) or Mark(kinds=())
        return Mark(kinds=())

    @property
    def is_partial(self) -> bool:
        """Whether there was no time to read all parts and journals, so that there are more rows than were counted."""
        all_parts = self.footers.num_read + self.footers.num_unreadable == len(self._parts)
        return not all_parts or self.journals.num_read < self.journals.num_journals

    def num_part_rows(self, without: Collection[int] = ()) -> int:
        """Return the number of rows in parts, except in these shards. Parts that cannot be read count in full."""
        marked = [(idx, counts) for idx in self._marks if (counts := self.footers.of(idx)) and idx not in without]
        num_to_retry = sum(counts.num_rows - self._marks[idx].left(counts).num_rows for idx, counts in marked)
        return self._plan.count(idx for idx in self._parts if idx not in without) - num_to_retry

    def num_rows(self, without: Collection[int] = ()) -> int:
        """Return the number of finished rows, except in these shards."""
        return self.num_part_rows(without) + sum(counts.num_rows for counts in self._journaled(without))

    def in_parts(self, without: Collection[int] = ()) -> Counts:
        """Return what is in the parts that were read, except in these shards."""
        if not self._marks and not any(idx in self._parts for idx in without):
            return self.footers.total
        found = ((idx, self.footers.of(idx)) for idx in self._parts if idx not in without)
        return Counts.total(
            self._marks[idx].left(counts) if idx in self._marks else counts
            for idx, counts in found
            if counts is not None
        )

    def counts(self, without: Collection[int] = ()) -> Counts:
        """Return what is in parts and journals together, as far as they were read."""
        return Counts.total([self.in_parts(without), *self._journaled(without)])

    def _journaled(self, without: Collection[int]) -> list[Counts]:
        found = {**self.journals.of_shards(), **self._retried}
        is_final = self._parts.keys() - self._marks.keys()
        return [counts for idx, counts in found.items() if idx not in is_final and idx not in without]

"""Which rows belong to which shard. Depends on the dataset, ``rows_per_shard`` and the limits alone (law 2)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from job.records import SampleKey

MIN_SLICE_ROWS = 32
MAX_SLICES = 64
"""Limits on slices, with which workers that have no shard of their own help others: small enough that all workers
finish together, large enough that a lease for each slice costs almost nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How ``num_rows`` rows are cut into shards.

    >>> plan = Plan(num_rows=25, rows_per_shard=10)
    >>> plan.num_shards, plan.rows(2)
    (3, range(20, 25))

    The shards of a run that grows keep their rows, even a short last one: new shards begin after them.

    >>> grown = Plan(num_rows=48, rows_per_shard=10, cuts=(25,))
    >>> grown.num_shards, grown.rows(2), grown.rows(3), grown.shard_of(47)
    (6, range(20, 25), range(25, 35), 5)
    """

    num_rows: int
    rows_per_shard: int
    num_samples: int = 1
    """Completions of each row."""
    cuts: tuple[int, ...] = ()
    """The numbers of rows that the run had before it grew, in ascending order and without ``num_rows``."""

    @property
    def num_shards(self) -> int:
        """Number of part files. A dataset without rows gives one empty part, so that readers find a schema."""
        first, rows = list(self._pieces())[-1]
        return first + self._num_shards_of(rows)

    @property
    def num_completions(self) -> int:
        """Rows of the output, over all shards."""
        return self.num_rows * self.num_samples

    @property
    def unit(self) -> str:
        """What an output row is called in numbers for people, so that it is not taken for a row of the dataset."""
        return "rows" if self.num_samples == 1 else "samples"

    def count(self, shards: Iterable[int]) -> int:
        """Return the number of output rows in these shards."""
        return sum(len(self.rows(shard_idx)) for shard_idx in shards) * self.num_samples

    def rows(self, shard_idx: int) -> range:
        """Return the row indices of a shard."""
        first, piece = [(first, piece) for first, piece in self._pieces() if first <= shard_idx][-1]
        start = piece.start + (shard_idx - first) * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, piece.stop))

    def shard_of(self, row_idx: int) -> int:
        """Return the shard of a row."""
        first, piece = [(first, piece) for first, piece in self._pieces() if piece.start <= row_idx][-1]
        return first + (row_idx - piece.start) // self.rows_per_shard

    def _pieces(self) -> Iterator[tuple[int, range]]:
        """Yield the rows that the run began with, and those by which it grew each time, after their first shard."""
        first = 0
        for start, stop in pairwise((0, *self.cuts, self.num_rows)):
            yield first, range(start, stop)
            first += self._num_shards_of(range(start, stop))

    def _num_shards_of(self, piece: range) -> int:
        return max(1, -(-len(piece) // self.rows_per_shard))

    def slices(self, shard_idx: int) -> list[range]:
        """Return the slices in which workers claim a shard's rows. They do not affect the output.

        >>> Plan(num_rows=70, rows_per_shard=100).slices(0)
        [range(0, 32), range(32, 64), range(64, 70)]
        """
        rows = self.rows(shard_idx)
        size = max(MIN_SLICE_ROWS, -(-len(rows) // MAX_SLICES))
        return [rows[start : start + size] for start in range(0, len(rows), size)] or [rows]

    def keys(self, shard_idx: int) -> Iterator[SampleKey]:
        """Yield (row_idx, sample_idx) of every output row of a shard, in the order they are written."""
        for row_idx in self.rows(shard_idx):
            yield from self.keys_of_row(row_idx)

    def keys_of_row(self, row_idx: int) -> Iterator[SampleKey]:
        """Yield (row_idx, sample_idx) of a row's completions."""
        return ((row_idx, sample_idx) for sample_idx in range(self.num_samples))

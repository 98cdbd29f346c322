"""Which rows are which shard. Depends on the dataset and ``rows_per_shard`` alone (law 2)."""

from collections.abc import Iterator
from dataclasses import dataclass

from job.records import SampleKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Cut of ``num_rows`` rows into shards.

    >>> plan = Plan(num_rows=25, rows_per_shard=10)
    >>> plan.num_shards, plan.rows(2)
    (3, range(20, 25))
    """

    num_rows: int
    rows_per_shard: int
    num_samples: int = 1
    """Completions of each row."""

    @property
    def num_shards(self) -> int:
        """Number of part files. A dataset without rows gives one empty part, so that readers find a schema."""
        return max(1, -(-self.num_rows // self.rows_per_shard))

    @property
    def num_completions(self) -> int:
        """Rows of the output, over all shards."""
        return self.num_rows * self.num_samples

    def rows(self, shard_idx: int) -> range:
        """Return the row indices of a shard."""
        start = shard_idx * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_rows))

    def keys(self, shard_idx: int) -> Iterator[SampleKey]:
        """Yield (row_idx, sample_idx) of every output row of a shard, in the order they are written."""
        for row_idx in self.rows(shard_idx):
            yield from self.keys_of_row(row_idx)

    def keys_of_row(self, row_idx: int) -> Iterator[SampleKey]:
        """Yield (row_idx, sample_idx) of a row's completions."""
        return ((row_idx, sample_idx) for sample_idx in range(self.num_samples))

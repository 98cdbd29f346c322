"""Opens a part for reading."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.parquet as pq

from job.output.store.directory import RunDirectory


@contextmanager
def opened_part(directory: RunDirectory, shard_idx: int) -> Iterator[pq.ParquetFile]:
    """Open the part of a shard, and close it when the block ends.

    Raises:
        OSError, pa.ArrowException: it cannot be read. So may reading in the block.
    """
    with directory.store.open(directory.names.part(shard_idx)) as source, pq.ParquetFile(source) as file:
        yield file

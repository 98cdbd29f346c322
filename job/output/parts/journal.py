"""The journal: finished rows of an unfinished shard, on disk within seconds.

One log per shard and worker. Rows after a batch that is torn or wrong are recomputed.
"""

import time
from collections.abc import Iterator
from typing import Self

import pyarrow as pa

from job.output.parts.batch_log import BatchLog, BatchReader
from job.output.parts.part_schema import BASE
from job.output.parts.rows import from_batch, to_batch
from job.output.store.directory import RunDirectory
from job.output.store.store import Store
from job.records import Completion


class Journal:
    """Appends the completions of one shard. Not thread-safe."""

    def __init__(self, store: Store, name: str, schema: pa.Schema, *, sync_secs: float = 2.0) -> None:
        """Prepare a journal; the object is created with the first batch.

        Args:
            schema: the columns of completions.
            sync_secs: a kill loses at most the rows that finished in this many seconds.
        """
        self.name, self._schema, self._sync_secs = name, schema, sync_secs
        self._log = BatchLog(store, name, schema)
        self._buffer: list[Completion] = []
        self._last_sync = time.monotonic()

    def append(self, completion: Completion) -> None:
        """Add a row. It is durable after the next sync."""
        self._buffer.append(completion)

    def sync_if_due(self) -> None:
        """Sync if the last sync is long enough ago."""
        if time.monotonic() - self._last_sync >= self._sync_secs:
            self.sync()

    def sync(self) -> None:
        """Write what was appended and wait until it is on disk."""
        self._last_sync = time.monotonic()
        if self._buffer:
            self._log.append(to_batch(self._buffer, self._schema))
            self._buffer.clear()

    def rest(self) -> None:
        """Hold no file until the next sync."""
        self._log.rest()

    def close(self) -> None:
        """Sync and close. The journal is closed even if the sync fails."""
        with self._log.closing():
            self.sync()


class JournalReader(BatchReader):
    """Reads a journal that may still grow; each read yields only new rows. Not thread-safe."""

    def __init__(self, store: Store, name: str, max_bytes: int | None = None) -> None:
        """Start at the beginning of the object. See ``BatchReader``."""
        super().__init__(store, name, [column for column in BASE.names if column != "error_kind"], max_bytes)

    @classmethod
    def of(cls, directory: RunDirectory, name: str) -> Self:
        """Read what counts of a journal of a run."""
        return cls(directory.store, name, directory.names.num_sealed_bytes(name))

    def read(self) -> Iterator[Completion]:
        """Yield the rows since the last read, up to the first batch that is torn or damaged."""
        for batch in self.read_batches():
            yield from from_batch(batch)

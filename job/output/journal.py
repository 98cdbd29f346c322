"""The journal: finished rows of an unfinished shard, on disk within seconds.

One file per shard and worker, an Arrow IPC stream that is only appended to. Each batch carries the CRC-32 of its
rows, because a power cut can leave a tail of the right length and the wrong contents. Reading stops at the first
batch that is torn or wrong; the rows behind it are done again.
"""

import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from job.output.files import fsync_dir
from job.records import Completion

COMPLETION_SCHEMA = pa.schema(
    [
        pa.field("row_idx", pa.int64(), nullable=False),
        pa.field("sample_idx", pa.int32(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_completion_tokens", pa.int32(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("token_logprobs", pa.list_(pa.float32())),
        pa.field("cumulative_logprob", pa.float64()),
    ]
)
"""The columns of a completion, in the order of the output; the kept columns come after the first two."""

LOGPROB_COLUMNS = ("token_ids", "token_logprobs", "cumulative_logprob")
"""Written only if log probabilities are asked for."""

_NAMES = [field.name for field in fields(Completion)]


class Journal:
    """Appends completions of one shard. Not thread-safe."""

    def __init__(self, path: Path, *, sync_secs: float = 2.0) -> None:
        """Prepare a journal; the file is created with the first batch.

        Args:
            sync_secs: a kill loses at most the rows that finished in so many seconds.
        """
        self.path, self._sync_secs = path, sync_secs
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._buffer: list[Completion] = []
        self._last_sync = time.monotonic()

    def append(self, completion: Completion) -> None:
        """Add a row. It is durable after the next sync."""
        self._buffer.append(completion)

    def sync_if_due(self) -> None:
        """Sync if the last time is long enough ago."""
        if time.monotonic() - self._last_sync >= self._sync_secs:
            self.sync()

    def sync(self) -> None:
        """Write what was appended and wait until it is on disk."""
        self._last_sync = time.monotonic()
        if not self._buffer:
            return
        if self._file is None:
            self._file = self.path.open("wb")
            self._writer = pa.ipc.new_stream(self._file, COMPLETION_SCHEMA)
            fsync_dir(self.path.parent)
        batch = completions_to_batch(self._buffer)
        self._writer.write_batch(batch, custom_metadata={"crc32": _checksum(self._buffer)})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._buffer.clear()

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        if self._file is not None:
            self._writer.close()
            self._file.close()
            self._file = None


def read_journal(path: Path) -> Iterator[Completion]:
    """Yield the rows of a journal up to the first torn batch."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    try:  # from memory: a damaged length cannot ask for more than there is
        with pa.ipc.open_stream(data) as reader:
            if not reader.schema.equals(COMPLETION_SCHEMA):
                return
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                batch.validate(full=True)  # before a value is touched: damaged offsets point outside of the batch
                completions = [Completion(**row) for row in batch.to_pylist()]
                if metadata is None or metadata.get(b"crc32") != _checksum(completions):
                    return
                yield from completions
    except (StopIteration, pa.ArrowException, OSError):
        return  # the end, or what pyarrow makes of a damaged message


def completions_to_batch(completions: Iterable[Completion]) -> pa.RecordBatch:
    """Turn completions into Arrow."""
    rows = list(completions)
    columns = [pa.array([getattr(row, name) for row in rows], COMPLETION_SCHEMA.field(name).type) for name in _NAMES]
    return pa.record_batch(columns, schema=COMPLETION_SCHEMA)


def _checksum(completions: list[Completion]) -> bytes:
    """Return the CRC-32 of the rows' values, in digits. (Arrow's buffers gain padding on their way, values do not.)"""
    return str(zlib.crc32(repr(completions).encode())).encode()

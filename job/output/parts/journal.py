"""The journal: finished rows of an unfinished shard, on disk within seconds.

One file per shard and worker, an Arrow IPC stream that is only appended to. Each batch carries the CRC-32 of its
rows, because a power cut can leave a tail of the right length and the wrong contents. Reading stops at the first
batch that is torn or wrong; the rows behind it are done again.
"""

import contextlib
import io
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import pyarrow as pa

from job.output.store.store import Appender, Store
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
        pa.field("choice_logprobs", pa.list_(pa.float64())),
        pa.field("choice_probs", pa.list_(pa.float64())),
        pa.field("choice_margin", pa.float64()),
    ]
)
"""The columns of a completion, in the order of the output; the kept columns come after the first two."""

_NAMES = [field.name for field in fields(Completion)]


class Journal:
    """Appends completions of one shard. Not thread-safe."""

    def __init__(self, store: Store, name: str, *, sync_secs: float = 2.0) -> None:
        """Prepare a journal; the object is created with the first batch.

        Args:
            sync_secs: a kill loses at most the rows that finished in so many seconds.
        """
        self.name, self._store, self._sync_secs = name, store, sync_secs
        self._open = contextlib.ExitStack()
        self._end: Appender | None = None
        self._stream = io.BytesIO()
        """What the writer has made of batches, on its way to the end of the object."""
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
        if self._end is None:
            self._end = self._open.enter_context(self._store.append(self.name))
            self._writer = pa.ipc.new_stream(self._stream, COMPLETION_SCHEMA)
        batch = completions_to_batch(self._buffer)
        self._writer.write_batch(batch, custom_metadata={"crc32": _checksum(self._buffer)})
        self._append(self._end)
        self._buffer.clear()

    def close(self) -> None:
        """Sync and close. It is closed even if it cannot be synced."""
        with self._open:
            self.sync()
            end, self._end = self._end, None
            if end is not None:
                self._writer.close()
                self._append(end)

    def _append(self, end: Appender) -> None:
        """Append what the writer has made. If that fails, it is the first of the next attempt: schema and batches count
        only in their order."""
        end.append(self._stream.getvalue())
        self._stream.seek(0)
        self._stream.truncate()


class JournalReader:
    """Reads a journal that may still grow: each time only what is new. Not thread-safe."""

    def __init__(self, store: Store, name: str) -> None:
        """Read nothing yet."""
        self._store, self._name = store, name
        self._identity: str | None = None
        self._schema = b""
        """The file's first message, without which no other can be read."""
        self._offset = 0
        """End of the last whole message. What follows is read again the next time: its writer may complete it."""

    def read(self) -> Iterator[Completion]:
        """Yield the rows behind those of the last time, up to the first torn batch."""
        data = self._new_bytes()
        stream = pa.BufferReader(self._schema + data)
        behind = self._offset - len(self._schema)
        try:  # from memory: a damaged length cannot ask for more than there is
            with pa.ipc.open_stream(stream) as reader:
                if not reader.schema.equals(COMPLETION_SCHEMA):
                    return
                self._schema = self._schema or data[: stream.tell()]
                self._offset = behind + stream.tell()
                while True:
                    completions = _next_batch(reader)
                    self._offset = behind + stream.tell()
                    yield from completions
        except (StopIteration, pa.ArrowException, OSError):
            return  # the end, or what pyarrow makes of a damaged message

    def _new_bytes(self) -> bytes:
        """Return what stands behind the last whole batch; everything if the file is another one."""
        with contextlib.suppress(FileNotFoundError):
            data, stamp = self._store.look(self._name, self._offset)
            if stamp.identity != self._identity or stamp.num_bytes < self._offset:
                is_read = self._offset == 0
                self._identity, self._schema, self._offset = stamp.identity, b"", 0
                return data if is_read else self._store.read(self._name)
            return data
        return b""


def _next_batch(reader: Any) -> list[Completion]:
    """Raises:
    StopIteration: there is none.
    pa.ArrowException, OSError: it is torn or damaged.
    """
    batch, metadata = reader.read_next_batch_with_custom_metadata()
    batch.validate(full=True)  # before a value is touched: damaged offsets point outside of the batch
    completions = [Completion(**row) for row in batch.to_pylist()]
    if metadata is None or metadata.get(b"crc32") != _checksum(completions):
        raise pa.ArrowInvalid("these rows are not those that were written")
    return completions


def completions_to_batch(completions: Iterable[Completion]) -> pa.RecordBatch:
    """Turn completions into Arrow."""
    rows = list(completions)
    columns = [pa.array([getattr(row, name) for row in rows], COMPLETION_SCHEMA.field(name).type) for name in _NAMES]
    return pa.record_batch(columns, schema=COMPLETION_SCHEMA)


def _checksum(completions: list[Completion]) -> bytes:
    """Return the CRC-32 of the rows' values, in digits. (Arrow's buffers gain padding on their way, values do not.)"""
    return str(zlib.crc32(repr(completions).encode())).encode()

"""Arrow batches that are appended to an object, each with the checksum of its bytes.

One object is an Arrow IPC stream of one process. Each batch carries the CRC-32 of its bytes, because a power cut can
leave a tail of the right length and the wrong contents. Reading stops at the first batch that is torn or wrong.
"""

import contextlib
import io
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from job.errors import first_line
from job.output.parts.older_formats import FORMAT_2_JOURNAL
from job.output.store.store import Appender, Store

CHECKSUM, OLD_CHECKSUM = b"checksum", b"crc32"
"""Keys of the checksum in a batch's metadata: in this version, and in version 0.1."""


class BatchLog:
    """Appends batches. Not thread-safe."""

    def __init__(self, store: Store, name: str, schema: pa.Schema, *, durable: bool = True) -> None:
        """Prepare a log; the object is created with the first batch.

        Args:
            durable: whether a batch survives a power cut once it is appended; else only the death of the process.
        """
        self.name, self._store, self._schema, self._durable = name, store, schema, durable
        self._open = contextlib.ExitStack()
        self._end: Appender | None = None
        self._stream = io.BytesIO()
        """What the writer has serialized and the object does not contain yet."""
        self._writer: Any = None
        self.num_bytes = 0
        """How much has been appended."""

    def append(self, batch: pa.RecordBatch) -> None:
        """Append a batch."""
        if self._end is None:
            self._end = self._open.enter_context(self._store.append(self.name))
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._stream, self._schema)
        self._writer.write_batch(batch, custom_metadata=_checksum_entry(_as_read(batch)))
        self._flush(self._end)

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Close the log when the block ends, even if the block fails."""
        with self._open:
            yield
            end, self._end = self._end, None
            if end is not None:
                self._writer.close()
                self._flush(end)

    def rest(self) -> None:
        """Hold no file until the next batch: a process may have only some hundred open at once."""
        if not self._store.pause_secs:  # a store that wants few requests has no files to hold
            self._open.close()
            self._end = None

    def close(self) -> None:
        """Stop appending."""
        with self.closing():
            pass

    def _flush(self, end: Appender) -> None:
        """Append what the writer has serialized. If that fails, the next attempt starts with the same bytes, since the
        schema and the batches can be read only in their order."""
        end.append(self._stream.getvalue(), durable=self._durable)
        self.num_bytes += self._stream.tell()
        self._stream.seek(0)
        self._stream.truncate()


def to_bytes(batch: pa.RecordBatch) -> bytes:
    """Return a log of one batch, compressed."""
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch, custom_metadata=_checksum_entry(_as_read(batch)))
    return stream.getvalue()


class BatchReader:
    """Reads a log that may still grow; each read yields only new batches. Not thread-safe."""

    def __init__(self, store: Store, name: str, columns: Sequence[str], max_bytes: int | None = None) -> None:
        """Start at the beginning of the object.

        Args:
            columns: a batch without one of these is damaged.
            max_bytes: read only this much of it; None: all.
        """
        self._store, self._name, self._columns, self._max_bytes = store, name, columns, max_bytes
        self._identity: str | None = None
        self._schema = b""
        """The first message of the object, without which no other can be read."""
        self._offset = 0
        """End of the last whole message. What follows is read again the next time: its writer may complete it."""
        self.has_restarted = False
        """Whether the object has been replaced or cut since the reader began, so that rows came twice."""
        self.damage: str | None = None
        """Why the rest of the log cannot be used, or None. A torn end is not damage: every kill leaves one."""

    @property
    def num_bytes(self) -> int:
        """How much of the object has been read: whole batches, all of them right."""
        return self._offset

    def read_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches since the last read, up to the first that is torn or damaged."""
        data, self.damage = self._new_bytes(), None
        stream = pa.BufferReader(self._schema + data)
        start = self._offset - len(self._schema)
        try:  # reads from memory: a damaged length cannot ask for more than there is
            with pa.ipc.open_stream(stream) as reader:
                schema = self._schema or data[: stream.tell()]
                while True:
                    batch = _next_batch(reader, self._columns)
                    # The checksum is right, and it covers the schema.
                    self._schema, self._offset = schema, start + stream.tell()
                    yield batch
        except (StopIteration, pa.ArrowException, OSError):
            return  # the end, or pyarrow's error for a torn message
        except _Damaged as damaged:
            # Only zeros are the end: of a power cut, or of a file whose data has not arrived yet.
            if stream.read().strip(b"\0"):
                where = f"{self._store.describe(self._name)} is damaged at byte {self._offset:,}"
                self.damage = f"{where}: {damaged}; its later rows are recomputed"

    def _new_bytes(self) -> bytes:
        """Return the bytes after the last whole batch; all bytes if the object has been replaced."""
        data = self._bytes_there()
        return data if self._max_bytes is None else data[: max(0, self._max_bytes - self._offset)]

    def _bytes_there(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            data, stamp = self._store.look(self._name, self._offset)
            if stamp.identity != self._identity or stamp.num_bytes < self._offset:
                is_whole = self._offset == 0
                self.has_restarted |= not is_whole
                self._identity, self._schema, self._offset = stamp.identity, b"", 0
                return data if is_whole else self._store.read(self._name)
            return data
        return b""


class _Damaged(Exception):
    """A batch is complete, but does not contain what was written."""


def _next_batch(reader: Any, columns: Sequence[str]) -> pa.RecordBatch:
    """Return the next batch.

    Raises:
        StopIteration: the log ends here.
        pa.ArrowException, OSError: the batch is torn.
        _Damaged: the batch is complete, but wrong.
    """
    batch, metadata = reader.read_next_batch_with_custom_metadata()
    metadata = metadata or {}
    try:
        batch.validate(full=True)  # before any value is read: damaged offsets point outside the batch
        if CHECKSUM in metadata:
            is_right = metadata[CHECKSUM] == _checksum(batch)
        else:
            is_right = metadata.get(OLD_CHECKSUM) == _old_checksum(batch)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _Damaged(first_line(error)) from None
    if not is_right:
        raise _Damaged("its checksum is wrong")
    lacking = [name for name in columns if name not in batch.schema.names]
    if lacking:
        raise _Damaged(f"it has no column {lacking[0]}")
    return batch


def _as_read(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch as a reader gets it: writing may change the padding of buffers, which is part of their bytes."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)


def _checksum_entry(batch: pa.RecordBatch) -> dict[bytes, bytes]:
    """Return a batch's checksum in the form that the readers of its run understand."""
    is_old = batch.schema.equals(pa.schema(FORMAT_2_JOURNAL))
    return {OLD_CHECKSUM: _old_checksum(batch)} if is_old else {CHECKSUM: _checksum(batch)}


def _checksum(batch: pa.RecordBatch) -> bytes:
    """Return the CRC-32 of a batch's bytes, in digits. Columns and types are not in the bytes, so they are added."""
    columns = "\n".join(f"{column.name}: {column.type}" for column in batch.schema)
    return str(zlib.crc32(batch.serialize(), zlib.crc32(columns.encode()))).encode()


def _old_checksum(batch: pa.RecordBatch) -> bytes:
    """Return the CRC-32 of version 0.1: over the ``repr`` of dataclasses whose fields were the columns."""
    rows = [", ".join(f"{name}={value!r}" for name, value in row.items()) for row in batch.to_pylist()]
    text = ", ".join(f"Completion({row})" for row in rows)
    return str(zlib.crc32(f"[{text}]".encode())).encode()

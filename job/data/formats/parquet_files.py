"""Parquet files that are opened for one pass: local ones are mapped into memory, remote ones read by column chunks.

A remote file is read with few requests: its end, once, and each column chunk that is needed, once for as long as there
is room to keep it. Chunks are fetched in threads, some ahead of the row group that is being decoded.
"""

import io
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from job.data.source import BLOCK_ROWS
from job.launch.activity import doing
from job.remote.ranges import RangedFile
from job.remote.tree import NUM_THREADS

TAIL_BYTES = 32 << 10
"""What is read from the end of a file to begin with: most footers fit."""

PIECE_BYTES = 16 << 20
"""The most that one request asks for: what is interrupted begins anew."""

MAGIC = (b"PAR1", b"PARE")
"""What a Parquet file ends with. The second is of encrypted ones."""

MAX_GAP_BYTES = 16 << 10
"""What lies as close together is fetched with one request."""

KEPT_BYTES = 256 << 20
"""How much of what was fetched is kept: shards are shorter than row groups, and end within them."""


class ParquetFile(Protocol):
    """A file that can be opened any number of times."""

    @property
    def name(self) -> str:
        """For messages."""

    def open(self) -> "OpenFile":
        """Open it, for one thread."""


class OpenFile(Protocol):
    """A file that one thread reads."""

    @property
    def parquet(self) -> pq.ParquetFile:
        """The file as pyarrow knows it."""

    def fetch(self, group_idx: int, names: Sequence[str]) -> int:
        """Start to fetch columns of a row group, and return how many bytes they are; 0 if nothing needs fetching."""

    def batches(self, group_idx: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Decode columns of a row group."""


@dataclass(frozen=True, slots=True)
class LocalParquet:
    """A path."""

    name: str

    def open(self) -> OpenFile:
        """Map it into memory."""
        return _OpenLocal(pq.ParquetFile(self.name, memory_map=True))


@dataclass(frozen=True, slots=True)
class _OpenLocal:
    parquet: pq.ParquetFile

    def fetch(self, group_idx: int, names: Sequence[str]) -> int:
        return 0

    def batches(self, group_idx: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self.parquet.iter_batches(BLOCK_ROWS, row_groups=[group_idx], columns=list(names))


class Chunks:
    """Bytes of remote files: fetched in threads, and kept while there is room. For any number of passes."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="ranges")
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[RangedFile, range], Future[bytes]] = OrderedDict()
        """The least recently used first."""
        self._of_file: defaultdict[RangedFile, set[range]] = defaultdict(set)
        self._num_bytes = 0

    def fetch(self, file: RangedFile, chunks: Iterable[range]) -> dict[range, Future[bytes]]:
        """Start to fetch what is not there yet. Returns ranges that together contain the chunks."""
        parts = sorted((part for chunk in chunks for part in _parts(chunk)), key=lambda part: part.start)
        with self._lock:
            known = {part: self._containing(file, part) for part in parts}
            new = _joined([part for part in parts if known[part] is None])
            wanted = dict.fromkeys([*filter(None, known.values()), *new])
            return {piece: self._piece(file, piece) for piece in wanted}

    def _containing(self, file: RangedFile, part: range) -> range | None:
        found = (piece for piece in self._of_file[file] if piece.start <= part.start and part.stop <= piece.stop)
        return next((piece for piece in found if not _has_failed(self._kept[file, piece])), None)

    def _piece(self, file: RangedFile, piece: range) -> Future[bytes]:
        future = self._kept.pop((file, piece), None)
        if future is not None:
            self._num_bytes -= len(piece)
        if future is None or _has_failed(future):
            future = self._pool.submit(file.read, piece.start, piece.stop)
        self._keep(file, piece, future)
        return future

    def keep(self, file: RangedFile, content: bytes) -> None:
        """Keep a whole file that is here already."""
        future: Future[bytes] = Future()
        future.set_result(content)
        with self._lock:
            self._keep(file, range(len(content)), future)

    def _keep(self, file: RangedFile, piece: range, future: Future[bytes]) -> None:
        self._kept[file, piece] = future
        self._of_file[file].add(piece)
        self._num_bytes += len(piece)
        while self._num_bytes > KEPT_BYTES and len(self._kept) > 1:
            (old_file, old), _ = self._kept.popitem(last=False)
            self._of_file[old_file].remove(old)
            self._num_bytes -= len(old)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteParquet:
    """A remote file whose footer has been read."""

    file: RangedFile
    footer: bytes
    """The end of the file, from the footer on."""
    chunks: Chunks

    @property
    def name(self) -> str:
        """See ``RangedFile``."""
        return self.file.name

    def open(self) -> OpenFile:
        """Parse the footer. Nothing is requested."""
        content = _Content(self.file)
        metadata = pq.read_metadata(io.BytesIO(self.footer))  # of the file itself, pyarrow would read 64 kB
        return _OpenRemote(pq.ParquetFile(content, metadata=metadata), self.file, self.chunks, content)


@dataclass(frozen=True, slots=True)
class _OpenRemote:
    parquet: pq.ParquetFile
    file: RangedFile
    chunks: Chunks
    content: "_Content"
    fetched: dict[int, dict[range, Future[bytes]]] = field(default_factory=dict)
    """Row group to its bytes, from ``fetch`` until they are decoded."""

    def fetch(self, group_idx: int, names: Sequence[str]) -> int:
        ranges = _column_chunks(self.parquet.metadata.row_group(group_idx), names)
        self.fetched[group_idx] = self.chunks.fetch(self.file, ranges)
        return sum(map(len, ranges))

    def batches(self, group_idx: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        pieces = {piece.start: future.result() for piece, future in self.fetched.pop(group_idx).items()}
        with self.content.holding(pieces):
            yield from self.parquet.iter_batches(BLOCK_ROWS, row_groups=[group_idx], columns=list(names))


class _Content(io.RawIOBase):
    """A remote file as pyarrow wants to see it. What is not among the pieces is requested."""

    def __init__(self, file: RangedFile) -> None:
        self._file, self._at = file, 0
        self._pieces: Mapping[int, bytes] = {}
        """Position in the file to the bytes there."""

    @contextmanager
    def holding(self, pieces: Mapping[int, bytes]) -> Iterator[None]:
        """Have these pieces inside this context."""
        self._pieces = pieces
        try:
            yield
        finally:
            self._pieces = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.num_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._file.num_bytes if size < 0 else min(self._at + size, self._file.num_bytes)
        parts = []
        while self._at < stop:
            parts.append(self._part(stop))
            self._at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, stop: int) -> bytes:
        for start, piece in self._pieces.items():
            if start <= self._at < start + len(piece):
                return piece[self._at - start : stop - start]
        return self._file.read(self._at, min([stop, *(start for start in self._pieces if start > self._at)]))


def open_remote(files: Sequence[RangedFile]) -> dict[str, ParquetFile]:
    """Read the footers of remote files, several at a time. Returns the files by their paths.

    Raises:
        UsageError, Unavailable: a file cannot be read.
    """
    chunks, num_done = Chunks(), 0
    opened: dict[str, ParquetFile] = {}
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        for file, end in zip(files, pool.map(_end, files), strict=True):
            if len(end) == file.num_bytes:
                chunks.keep(file, end)
            num_done += 1
            doing(f"reading the footers of {file.tree.name}", f"{num_done:,} of {len(files):,}")
            opened[file.path] = RemoteParquet(file=file, footer=end[-_footer_bytes(end) :], chunks=chunks)
    finally:
        pool.shutdown(cancel_futures=True)  # one failure is enough
    return opened


def _end(file: RangedFile) -> bytes:
    """Return the end of a file, with at least the footer; all of a small file."""
    start = max(0, file.num_bytes - TAIL_BYTES)
    tail = file.read(start, file.num_bytes)
    missing = min(_footer_bytes(tail), file.num_bytes) - len(tail)
    return file.read(start - missing, start) + tail if missing > 0 else tail


def _footer_bytes(end: bytes) -> int:
    """Return the length of a footer with the 8 bytes that follow it: the length, and a number that pyarrow checks.

    Of a file that is not Parquet, the length could be anything.
    """
    return (int.from_bytes(end[-8:-4], "little") if end[-4:] in MAGIC else 0) + 8


def _column_chunks(group: pq.RowGroupMetaData, names: Sequence[str]) -> list[range]:
    """Return where columns of a row group lie in the file."""
    found = []
    for idx in range(group.num_columns):
        chunk = group.column(idx)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in names):
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            found.append(range(start, start + chunk.total_compressed_size))
    return found


def _parts(chunk: range) -> Iterator[range]:
    for start in range(chunk.start, chunk.stop, PIECE_BYTES):
        yield range(start, min(start + PIECE_BYTES, chunk.stop))


def _joined(parts: Sequence[range]) -> list[range]:
    """Join parts that are close to each other.

    >>> _joined([range(0, 10), range(12, 30), range(100_000, 100_001)])
    [range(0, 30), range(100000, 100001)]
    """
    joined: list[range] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and part.start - last.stop <= MAX_GAP_BYTES and part.stop - last.start <= PIECE_BYTES:
            joined[-1] = range(last.start, part.stop)
        else:
            joined.append(part)
    return joined


def _has_failed(future: Future[bytes]) -> bool:
    return future.done() and future.exception() is not None

"""Where the lines of a file begin. The file is scanned once for line ends, about as fast as the disk reads; after that,
any row is reached by one seek.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from job.errors import JobError, UsageError

STRIDE = 256
"""The index keeps one offset per this many rows: 8 bytes per 256 rows."""

SCAN_BYTES = 16 << 20

WHITE_SPACE = np.frombuffer(b" \t\r\v\f", np.uint8)


@dataclass(frozen=True, slots=True)
class LineIndex:
    """The offsets of the lines of one file."""

    path: str
    name: str
    """The user's file: what is indexed may be an unpacked or converted copy of it."""
    keeps_blank: bool
    """Whether a blank line is a row: in text files it is, in JSON lines it is skipped."""
    num_rows: int
    offsets: Any
    """[ceil(num_rows / STRIDE)] int64: byte offset of rows 0, STRIDE, 2*STRIDE, ..."""


def index_lines(path: str, *, keeps_blank: bool, name: str | None = None) -> LineIndex:
    """Scan a file for its lines.

    Args:
        name: the user's file, if this is a copy of it.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            starts = list(_stride_starts(file, keeps_blank))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from None
    num_rows = starts.pop()
    return LineIndex(path, name or path, keeps_blank, num_rows, np.array(starts, np.int64))


def _stride_starts(file: BinaryIO, keeps_blank: bool) -> Iterator[int]:
    """Yield the offset of every STRIDE-th row, and finally the number of rows."""
    num_rows, base, carry = 0, 0, b""
    while True:
        block = file.read(SCAN_BYTES)
        data = carry + block
        if not block and data:
            data += b"\n"  # the last line may lack a line end
        codes = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(codes == 10)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        if not keeps_blank:
            blank = ends == starts
            for idx in np.flatnonzero(np.isin(codes[starts], WHITE_SPACE)):
                blank[idx] = not data[starts[idx] : ends[idx]].strip()
            starts = starts[~blank]
        first = -num_rows % STRIDE
        yield from (starts[first::STRIDE] + base).tolist()
        num_rows += len(starts)
        consumed = int(ends[-1]) + 1 if len(ends) else 0
        carry, base = data[consumed:], base + consumed
        if not block:
            yield num_rows
            return


def read_lines(index: LineIndex, start: int, stop: int) -> Iterator[bytes]:
    """Yield the lines of rows ``start`` to ``stop`` of one file."""
    if start >= stop:
        return
    try:
        with Path(index.path).open("rb") as file:
            file.seek(int(index.offsets[start // STRIDE]))
            row_idx = start - start % STRIDE
            for line in file:
                if not index.keeps_blank and not line.strip():
                    continue
                if row_idx >= start:
                    yield line.removeprefix(b"\xef\xbb\xbf")
                row_idx += 1
                if row_idx == stop:
                    return
    except OSError as error:
        raise JobError(f"{index.name}: {error.strerror}. Run the same command again once the file is back.") from None

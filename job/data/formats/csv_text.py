"""One csv file as cells of text: pyarrow splits the rows. It refuses a row with another number of cells, where pandas
would move the cells to other columns. The text is given to it as UTF-8 without the header, followed by one record of
ours: if that does not come back, the file ends within quotes.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from job.data.compression import open_bytes, unpacking
from job.errors import UsageError, first_line, reading, shorten

READ_BYTES = 1 << 20
BLOCK_BYTES = (4 << 20, 64 << 20, 1 << 30)
"""How much pyarrow reads at once. A row must fit; only a file with longer rows is read with the larger ones."""

LAST = "\x1cend\x1c"

csv.field_size_limit(2**31 - 1)


class StraddlingRow(Exception):
    """A row of the file is longer than a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """A csv file, and how its bytes become cells."""

    path: str
    encoding: str
    mark: bytes
    """The byte order mark that it begins with."""
    delimiter: str
    header: tuple[str, ...]
    """The names of the columns as they are in the file; some may be empty."""
    num_cells: int
    """The number of cells in the first row. More than the header has are accepted if they are empty in all rows."""
    skipped: str
    """The text up to the first row."""
    notes: tuple[str, ...]
    """What was recognized that the user did not say."""

    def batches(self, block_bytes: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows, all cells as text. Only an empty cell without quotes is a null. Columns are numbered.

        Raises:
            UsageError: a row has another number of cells, or the text is not in the encoding.
            StraddlingRow: a row is longer than a block.
        """
        names = [str(idx) for idx in range(self.num_cells)]
        try:
            with reading(self.path), unpacking(self.path), io.BufferedReader(_Rows(self), READ_BYTES) as text:
                reader = pa_csv.open_csv(
                    text,
                    pa_csv.ReadOptions(column_names=names, use_threads=False, block_size=block_bytes),
                    pa_csv.ParseOptions(
                        delimiter=self.delimiter, newlines_in_values=True, ignore_empty_lines=len(names) > 1
                    ),
                    pa_csv.ConvertOptions(
                        column_types=dict.fromkeys(names, pa.string()),
                        strings_can_be_null=True,
                        null_values=[""],
                        quoted_strings_can_be_null=False,
                    ),
                )
                for batch in _without_last(reader):
                    if any(pc.any(pc.not_equal(column, "")).as_py() for column in batch.columns[len(self.header) :]):
                        raise pa.ArrowInvalid("a row has more cells than the header")
                    yield batch.select(names[: len(self.header)])
        except (UnicodeDecodeError, pa.ArrowInvalid) as error:
            if "straddl" in str(error):
                raise StraddlingRow(self.path) from None
            raise self._fault(first_line(error)) from None

    def _fault(self, reason: str) -> UsageError:
        """Find the first place that cannot be read. Slow, because it is needed once.

        Args:
            reason: what to say if there is none.
        """
        num_skipped = sum(1 for _ in csv.reader(io.StringIO(self.skipped, newline=""), delimiter=self.delimiter))
        first: tuple[int, list[str]] | None = None
        line = 1
        try:
            records = csv.reader(chain(self._lines(), ["\n", LAST]), delimiter=self.delimiter)
            for idx, record in enumerate(records):
                if record == [LAST]:
                    break
                if any(LAST in cell for cell in record):
                    return UsageError(
                        f"{self.path}, line {line}: a quotation mark opens a cell that does not end. Close it, or put "
                        "the cell into quotes and double the mark if it is part of the text."
                    )
                if idx >= num_skipped and record:
                    first = first or (line, record)
                    if len(record) != self.num_cells or any(record[len(self.header) :]):
                        return self._wrong_number(*(first if len(record) == len(self.header) else (line, record)))
                line = records.line_num + 1
        except UnicodeDecodeError:
            return self.wrong_bytes()
        return UsageError(f"{self.path}: {reason}.")

    def _wrong_number(self, line: int, record: Sequence[str]) -> UsageError:
        cells = "1 cell" if len(record) == 1 else f"{len(record)} cells"
        return UsageError(
            f"{self.path}, line {line} has {cells}, but the header has {len(self.header)}: "
            f"{shorten(self.delimiter.join(record))!r}. Give each row as many cells as the header, with quotes around "
            f"a cell that contains {show(self.delimiter)}; if something else separates the cells, set --csv-delimiter."
        )

    def wrong_bytes(self) -> UsageError:
        """Return the error for bytes that are not in the encoding."""
        is_utf8 = self.encoding == "utf-8"
        wrong = re.compile("[\udc80-\udcff]" if is_utf8 else "\ufffd")
        lines = enumerate(self._lines("surrogateescape" if is_utf8 else "replace"), start=1)
        line, found = next(((line, found) for line, text in lines if (found := wrong.search(text))), (1, None))
        byte = f"the byte 0x{ord(found[0]) - 0xDC00:02x}" if found and is_utf8 else "a byte"
        return UsageError(
            f"{self.path}, line {line}: {byte} is not {self.encoding.upper()}. Set --csv-encoding to the encoding of "
            "the file, for example cp1252 (Windows, Western Europe)."
        )

    def _lines(self, errors: str = "strict") -> Iterator[str]:
        """Yield the lines as the csv module wants them."""
        with open_bytes(self.path) as raw:
            raw.read(len(self.mark))
            yield from io.TextIOWrapper(raw, self.encoding, errors, newline="")


def show(delimiter: str) -> str:
    """Return a delimiter as text for a message."""
    return "a tab" if delimiter == "\t" else f"'{delimiter}'"


def _without_last(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield all rows but the last one, which must be ours."""
    held: pa.RecordBatch | None = None
    for batch in batches:
        if held is not None and len(batch):
            yield held
        held = batch if len(batch) else held
    if held is None or any(column[-1].as_py() != LAST for column in held.columns):
        raise pa.ArrowInvalid("the last row is within quotes")
    yield held.slice(0, len(held) - 1)


class _Rows(io.RawIOBase):
    """The text of a file after its header, as UTF-8, followed by our record."""

    def __init__(self, file: CsvFile) -> None:
        self._blocks = _utf8(file)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer with text in UTF-8, and return the number of bytes; 0 at the end."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        num_bytes = min(len(buffer), len(self._rest))
        buffer[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes


def _utf8(file: CsvFile) -> Iterator[bytes]:
    to_skip, ending = len(file.skipped.encode(errors="surrogateescape")), b"\n"
    decoder = None if file.encoding == "utf-8" else codecs.getincrementaldecoder(file.encoding)()
    with open_bytes(file.path) as raw:
        raw.read(len(file.mark))
        while data := raw.read(READ_BYTES):
            block = decoder.decode(data).encode() if decoder else data
            block, to_skip = block[to_skip:], max(0, to_skip - len(block))
            ending = block[-1:] or ending
            yield block
        if decoder:
            yield decoder.decode(b"", final=True).encode()
    yield (b"" if ending in b"\r\n" else b"\n") + file.delimiter.join([LAST] * file.num_cells).encode() + b"\n"

"""The head of a csv file: its encoding, what separates its cells, and the names of its columns."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from job.data.compression import open_bytes, unpacking
from job.data.formats.csv_text import CsvFile, show
from job.errors import UsageError, reading

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may separate cells although nobody said so."""

HEAD_CHARS = 1 << 18
LOOKED_AT = 20
"""Records that must have as many cells as the header for a delimiter to be recognized."""

EXCELS_LINE = re.compile("sep=([^\r\n])(\r\n?|\n)", re.IGNORECASE)


def read_head(path: str, delimiter: str | None, encoding: str | None) -> CsvFile:
    """Read the header of a file, and recognize what was not given.

    Raises:
        UsageError: the file is empty, or is not text.
    """
    with reading(path), unpacking(path):
        return _read_head(path, delimiter, encoding)


def _read_head(path: str, delimiter: str | None, encoding: str | None) -> CsvFile:
    mark, known = _encoding(path, encoding)
    head, notes, skipped = _head(path, known, mark), [], ""
    if said := EXCELS_LINE.match(head):
        skipped = said[0]
        if delimiter is None:
            delimiter = said[1]
            notes.append(f"{Path(path).name}: its first line says that {show(delimiter)} separates the cells")
    text, name = head[len(skipped) :], Path(path).name
    if delimiter is None:
        delimiter = _recognized(text)
        if delimiter != ",":
            notes.append(
                f"{name}: {DELIMITERS[delimiter]} separate the cells; if something else does, set --csv-delimiter"
            )
    consumed, records = _first_records(text, delimiter)
    if not records:
        raise UsageError(f"{path} is empty. The first line of a csv file must be the names of its columns.")
    header = records[0]
    if "\0" in "".join(header):
        raise UsageError(
            f"{path} is not {known.upper()} text. Set --csv-encoding, for example --csv-encoding utf-16-le."
        )
    num_cells = max(len(header), len(records[1]) if len(records) > 1 else 0)
    if num_cells > len(header):
        more = "1 empty cell" if num_cells == len(header) + 1 else f"{num_cells - len(header)} empty cells"
        notes.append(f"{name}: each row has {more} more than the header, left out")
    file = CsvFile(
        path=path,
        encoding=known,
        mark=mark,
        delimiter=delimiter,
        header=tuple(header),
        num_cells=num_cells,
        skipped=skipped + consumed,
        notes=tuple(notes),
    )
    if re.search("[\udc80-\udcff]", "".join(header)):
        raise file.wrong_bytes()
    return file


def _encoding(path: str, wanted: str | None) -> tuple[bytes, str]:
    """Return the byte order mark of a file, and its encoding."""
    with open_bytes(path) as raw:
        start = raw.read(4)
    mark = next((mark for mark in BYTE_ORDER_MARKS if start.startswith(mark)), b"")
    known = codecs.lookup(wanted).name.removesuffix("-sig") if wanted else BYTE_ORDER_MARKS.get(mark, "utf-8")
    if mark and not BYTE_ORDER_MARKS[mark].startswith(known):  # utf-16 is also utf-16-le
        raise UsageError(
            f"{path} begins with the mark of {BYTE_ORDER_MARKS[mark].upper()}, which is not --csv-encoding {wanted}. "
            "Leave the option out."
        )
    return mark, BYTE_ORDER_MARKS.get(mark, known)


def _head(path: str, encoding: str, mark: bytes) -> str:
    errors = "surrogateescape" if encoding == "utf-8" else "replace"
    with open_bytes(path) as raw:
        raw.read(len(mark))
        return io.TextIOWrapper(raw, encoding, errors, newline="").read(HEAD_CHARS)


def _first_records(text: str, delimiter: str) -> tuple[str, list[list[str]]]:
    """Return the text up to the end of the header, and the header with the records that follow it."""
    lines = io.StringIO(text, newline="")
    consumed: list[str] = []

    def watched() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line

    reader = csv.reader(watched(), delimiter=delimiter)
    header = next((record for record in reader if record), None)
    if header is None:
        return "", []
    end = len(consumed)
    following = [record for record, _ in zip(filter(None, reader), range(LOOKED_AT), strict=False)]
    if len(text) >= HEAD_CHARS - len("sep=;\r\n") and len(following) < LOOKED_AT:
        following = following[:-1]  # the head of the file may end within it
    return "".join(consumed[:end]), [header, *following]


def _recognized(text: str) -> str:
    """Return the delimiter that all of the first records agree on; a comma unless only another one does."""
    fitting = []
    for delimiter in (",", *DELIMITERS):
        _, records = _first_records(text, delimiter)
        if records and len(records[0]) > 1 and all(len(record) >= len(records[0]) for record in records):
            fitting.append(delimiter)
    return fitting[0] if len(fitting) == 1 else ","

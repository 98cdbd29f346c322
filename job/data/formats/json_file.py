"""JSON files, each with a list of objects: they are written once as JSON lines, which are then read like any others.

A file may also hold objects one after the other, or a single object, which is one row. A list of texts is read as rows
with the column ``text``.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.data.compression import open_bytes, unpacking
from job.data.conversions import converted
from job.data.formats import converted as by_datasets
from job.data.formats.files import Files, Opened
from job.data.lines import LinesSource
from job.errors import NoRows, UsageError

READER = "json-2"
"""Goes into the manifest: the version of the rules in this module."""

READ_CHARS = 1 << 20

NEAR_END = 16
"""A value that is cut off by the end of what has been read is an error at most this many characters before it, or the
beginning of a number, such as the 1 of 1.5e3.
"""

WHITE_SPACE = re.compile(r"[ \t\r\n]*")


def open_files(files: Files) -> Opened:
    """Write the files as JSON lines, and index these.

    Raises:
        UsageError: a file is not JSON, or is damaged.
    """
    if files.is_older or files.options:
        return by_datasets.open_files(files)
    directory = converted(files.names, READER, [], lambda directory: _write(files.names, directory))
    paths = sorted(str(path) for path in directory.glob("*.jsonl"))
    source = LinesSource(paths, is_json=True, limit=files.config.limit, names=files.names)
    return Opened(source=source, notes=tuple(_notes(directory)), reading={"reader": READER})


def _notes(directory: Path) -> Iterator[str]:
    path = directory / "notes.json"
    if path.exists():
        yield from json.loads(path.read_text(encoding="utf-8"))


def _write(files: tuple[str, ...], directory: Path) -> None:
    notes, num_rows = [], 0
    for idx, file in enumerate(files):
        name = Path(file).name if len(files) == 1 else f"{idx:06}-{Path(file).name}"
        values = Values(file)
        with (
            unpacking(file),
            (directory / f"{name}.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as lines,
        ):
            for text, value in values:
                num_rows += 1
                if isinstance(value, str):
                    text = json.dumps({"text": value})
                lines.write(re.sub(r"[\r\n]", " ", text) + "\n")
        if values.rows_within:
            notes.append(
                f"{Path(file).name} is a single object, so it is one row. If the rows are the list in "
                f"{values.rows_within!r}, write that list alone to a file: jq '.[{json.dumps(values.rows_within)}]'"
            )
    if not num_rows:
        raise NoRows(f"{files[0]}: it has no rows, so no columns either.")
    (directory / "notes.json").write_text(json.dumps(notes), encoding="utf-8")


class Values:
    """Yields the text and the value of each row. Memory grows with the longest row, not with the file."""

    def __init__(self, path: str) -> None:
        """Read a file when iterated."""
        self.rows_within: str | None = None
        """If the file is a single object: its only member that is a list of objects."""
        self._path = path
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._line = "", 0, 1
        self._is_at_end = False

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        with open_bytes(self._path) as raw:
            mark = raw.read(4)
        encoding = "utf-16" if mark[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        with open_bytes(self._path) as raw:
            self._file = io.TextIOWrapper(raw, encoding, newline="")
            try:
                yield from self._list() if self._next_char() == "[" else self._sequence()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise self._error(f"near this line, the byte 0x{byte:02x} is not {encoding[:5].upper()}") from None

    def _list(self) -> Iterator[tuple[str, Any]]:
        self._at += 1
        is_first = True
        while (char := self._next_char()) != "]" or not is_first:
            yield self._value()
            char, is_first = self._next_char(), False
            if char == "]":
                break
            if char != ",":
                raise self._error("a comma or the end of the list is missing" if char else "the list does not end")
            self._at += 1
        self._at += 1
        if self._next_char():
            raise self._error("there is something after the end of the list")

    def _sequence(self) -> Iterator[tuple[str, Any]]:
        num_values, value = 0, None
        while self._next_char():
            text, value = self._value()
            num_values += 1
            yield text, value
        if num_values == 1 and isinstance(value, dict):
            lists = [name for name, inner in value.items() if isinstance(inner, list) and inner]
            if len(lists) == 1 and all(isinstance(inner, dict) for inner in value[lists[0]]):
                self.rows_within = lists[0]

    def _next_char(self) -> str:
        """Skip white space, and return the next character; an empty text at the end."""
        while True:
            match = WHITE_SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(READ_CHARS):
                return ""

    def _value(self) -> tuple[str, Any]:
        self._next_char()
        num_chars = READ_CHARS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                may_go_on = isinstance(value, int | float) and end > len(self._text) - NEAR_END
                if (end < len(self._text) and not may_go_on) or self._is_at_end:
                    text, self._at = self._text[self._at : end], end
                    return text, value
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._text) - NEAR_END or error.msg.startswith("Unterminated string")
                if not is_cut or self._is_at_end:
                    self._at = error.pos
                    raise self._error(error.msg) from None
            except RecursionError:
                raise self._error("lists or objects are nested too deeply") from None
            self._read(num_chars)  # the value may go on
            num_chars *= 2

    def _read(self, num_chars: int) -> bool:
        """Read on, and forget what is done. Return False at the end of the file."""
        more = self._file.read(num_chars)
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + more, 0
        self._is_at_end = not more
        return bool(more)

    def _error(self, reason: str) -> UsageError:
        line = self._line + self._text.count("\n", 0, self._at)
        return UsageError(f"{self._path}, line {line}: {reason}. A .json file must be a list of objects.")

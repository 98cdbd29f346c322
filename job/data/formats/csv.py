"""Tables of text: csv and, with tabs, tsv. Local files are read by us: once to find the types of all columns and to
check all rows, and once to write them to an Arrow file.

``datasets`` reads what a dataset's card describes with options that only pandas knows, and the files of runs that an
earlier version started.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from job.data.conversions import converted
from job.data.formats import converted as by_datasets
from job.data.formats.cells import ColumnType, cast
from job.data.formats.csv_head import read_head
from job.data.formats.csv_text import BLOCK_BYTES, CsvFile, StraddlingRow
from job.data.formats.files import Files, Opened
from job.data.formats.names import name_notes, unique_names
from job.data.source import ArrowSource
from job.errors import NoRows, UsageError

READER = "csv-2"
"""Goes into the manifest: the version of the rules in this module, in ``csv_text`` and in ``cells``."""

TABLE = "table.arrow"

MIN_BATCH_BYTES = 1 << 20
"""Batches of short files are put together up to this size: each batch costs time for every column."""

MAX_NOTES = 3

OUR_OPTIONS = {"sep", "delimiter", "encoding"}
"""What a dataset's card may say about csv without needing pandas."""


def open_files(files: Files, delimiter: str | None = None) -> Opened:
    """Read the files.

    Args:
        delimiter: what separates the cells unless the user says otherwise. None: it is recognized.

    Raises:
        UsageError: a file is not a table, or the files have different columns.
    """
    if files.is_older or files.options.keys() - OUR_OPTIONS:
        return _open_by_datasets(files, delimiter)
    delimiter = files.config.csv_delimiter or files.options.get("sep") or files.options.get("delimiter") or delimiter
    encoding = files.config.csv_encoding or files.options.get("encoding")
    table = _Table.of(files.names, delimiter, encoding, files.config.limit)
    facts = [table.limit, *([file.delimiter, file.encoding] for file in table.files)]
    directory = converted(files.names, READER, facts, table.write)
    source = ArrowSource([directory / TABLE])
    if not source.num_rows:
        raise NoRows(f"{files.names[0]} has a header and no rows.")
    return Opened(source=source, notes=table.notes(source.schema.names), reading=table.reading, infers_types=True)


def _open_by_datasets(files: Files, delimiter: str | None) -> Opened:
    config = files.builder().config
    given = {"csv_delimiter": files.config.csv_delimiter, "csv_encoding": files.config.csv_encoding}
    options: dict[str, Any] = {
        "sep": given["csv_delimiter"] or (delimiter if config.sep == "," else None) or config.sep
    }
    if files.config.csv_encoding:
        options["encoding"] = files.config.csv_encoding
    if config.keep_default_na and not config.na_values:
        # Only an empty cell is a null: pandas would also turn NA, None, null and a dozen other texts into nulls.
        options |= {"keep_default_na": False, "na_values": [""]}
    return replace(by_datasets.open_files(files, options), reading=given)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """What one pass over all rows finds."""

    schema: pa.Schema
    num_rows: int
    block_bytes: int
    """The block size that all rows fit."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Files with the same columns, in any order."""

    files: Sequence[CsvFile]
    names: Sequence[Sequence[str]]
    """The columns of each file."""
    limit: int | None
    """Rows after the first ``limit`` are not looked at."""

    @classmethod
    def of(cls, paths: Sequence[str], delimiter: str | None, encoding: str | None, limit: int | None) -> "_Table":
        """Read the headers of the files.

        Raises:
            UsageError: they have different columns. The message names a file and a column.
        """
        files = [read_head(path, delimiter, encoding) for path in paths]
        names = [unique_names(file.header) for file in files]
        for file, own in zip(files, names, strict=True):
            _check_names(files[0].path, names[0], file.path, own)
        return cls(files, names, limit)

    @property
    def reading(self) -> dict[str, Any]:
        """What decides how the bytes of the files become rows."""
        delimiters = "".join(sorted({file.delimiter for file in self.files}))
        encodings = " ".join(sorted({file.encoding for file in self.files}))
        return {"reader": READER, "csv_delimiter": delimiters, "csv_encoding": encodings}

    def scan(self) -> _Scan:
        """Read all rows, and find the types of the columns.

        Raises:
            UsageError: a row cannot be read.
        """
        for block_bytes in BLOCK_BYTES:
            try:
                return self._scan(block_bytes)
            except StraddlingRow as error:
                path = error
        raise UsageError(f"{path}: a row is longer than {BLOCK_BYTES[-1] >> 20} MiB. Is a quotation mark missing?")

    def _scan(self, block_bytes: int) -> _Scan:
        types, num_rows = {name: ColumnType() for name in self.names[0]}, 0
        for batch in self._cells(block_bytes):
            num_rows += len(batch)
            for name, cells in zip(batch.schema.names, batch.columns, strict=True):
                types[name].add(cells)
        titles = dict(zip(self.names[0], self.files[0].header, strict=True))
        fields = [(name, found.type) for name, found in types.items() if titles[name] or not found.is_empty]
        return _Scan(schema=pa.schema(fields), num_rows=num_rows, block_bytes=block_bytes)

    def batches(self, scan: _Scan) -> Iterator[pa.RecordBatch]:
        """Yield all rows in their types."""
        for batch in self._cells(scan.block_bytes):
            columns = [cast(batch.column(field.name), field.type) for field in scan.schema]
            yield pa.RecordBatch.from_arrays(columns, schema=scan.schema)

    def _cells(self, block_bytes: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all files, all cells as text, with the columns in the order of the first file."""
        waiting: list[pa.RecordBatch] = []
        num_bytes = 0
        for batch in self._file_batches(block_bytes):
            waiting.append(batch)
            num_bytes += batch.nbytes
            if num_bytes >= MIN_BATCH_BYTES:
                yield from _together(waiting)
                waiting, num_bytes = [], 0
        yield from _together(waiting)

    def _file_batches(self, block_bytes: int) -> Iterator[pa.RecordBatch]:
        left = self.limit
        for file, names in zip(self.files, self.names, strict=True):
            for batch in file.batches(block_bytes):
                yield batch.slice(0, left).rename_columns(names).select(self.names[0])
                left = None if left is None else left - len(batch)
                if left is not None and left <= 0:
                    return

    def tables(self, scan: _Scan) -> Iterator[pa.Table]:
        """Yield all rows in their types, as tables."""
        return (pa.Table.from_batches([batch]) for batch in self.batches(scan))

    def write(self, directory: Path) -> None:
        """Write all rows to an Arrow file."""
        scan = self.scan()
        with pa.OSFile(str(directory / TABLE), "wb") as sink, pa.ipc.new_file(sink, scan.schema) as writer:
            for batch in self.batches(scan):
                writer.write_batch(batch)

    def notes(self, kept: Sequence[str]) -> tuple[str, ...]:
        """Return what the user should know about the way the files were read.

        Args:
            kept: the columns that there are in the end.
        """
        found = [note for file in self.files for note in file.notes]
        if len(found) > MAX_NOTES:
            found = [*found[:MAX_NOTES], f"{len(found) - MAX_NOTES} more notes of this kind on other files"]
        return (*found, *name_notes(Path(self.files[0].path).name, self.files[0].header, self.names[0], kept))


def _together(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return the rows of batches in as few as possible."""
    found: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches() if batches else []
    return found


def _check_names(first_file: str, first_names: Sequence[str], file: str, names: Sequence[str]) -> None:
    files = {file: dict.fromkeys(names), first_file: dict.fromkeys(first_names)}
    for lacking, having in ((file, first_file), (first_file, file)):
        missing = [name for name in files[having] if name not in files[lacking]]
        if missing:
            raise UsageError(
                f"{lacking} has no column {missing[0]!r}, but {having} has. Give files with the same columns."
            )

"""Spreadsheets in the format of Excel (.xlsx): one sheet, whose first row is the names of its columns.

A column has the type of its cells if they all have the same, and is text otherwise. Formulas have the values that the
spreadsheet program has saved with them.
"""

import datetime
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from job.data.conversions import converted
from job.data.dataset import some
from job.data.formats.files import Files, Opened
from job.data.formats.names import name_notes, unique_names
from job.data.source import ArrowSource
from job.errors import UsageError, first_line, reading

READER = "spreadsheet-1"
"""Goes into the manifest: the version of the rules in this module."""

TABLE = "table.arrow"

BATCH_ROWS = 10_000

LARGEST_EXACT = 2**53
"""Integers beyond this are not exact in a double."""

Cells = tuple[Any, ...]


def open_files(files: Files) -> Opened:
    """Convert a sheet of each file to Arrow.

    Raises:
        UsageError: the library is missing, a file has no such sheet, or the files have different columns.
    """
    _check_library()
    sheets = [_Sheet.of(path, files.config.sheet) for path in files.names]
    first = sheets[0]
    for sheet in sheets:
        if sorted(sheet.names) != sorted(first.names):
            raise UsageError(f"{sheet.where} has other columns than {first.where}. Give files with the same columns.")
    limit = files.config.limit
    directory = converted(files.names, READER, [files.config.sheet, limit], lambda into: _write(sheets, limit, into))
    source = ArrowSource([directory / TABLE])
    if not source.num_rows:
        raise UsageError(f"{first.where} has a header and no rows.")
    notes = (*first.notes, *name_notes(Path(first.path).name, first.header, first.names, source.schema.names))
    return Opened(source=source, notes=notes, reading={"reader": READER, "sheet": first.name}, infers_types=True)


def _check_library() -> None:
    try:
        import openpyxl  # noqa: F401
    except ImportError:
        raise UsageError(
            "Reading .xlsx needs the package openpyxl. Install it (pip install openpyxl), or save the sheet as csv."
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """A sheet of a file."""

    path: str
    name: str
    header: Sequence[str]
    """The names of the columns as they are in the sheet; some may be empty."""
    num_above: int
    """The number of rows up to and including the header."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: str, wanted: str | None) -> "_Sheet":
        """Find a sheet and its header.

        Raises:
            UsageError: there is none.
        """
        with reading(path):
            book = _load(path, values=True)
            names = [sheet.title for sheet in book.worksheets]
            name = wanted or names[0]
            if name not in names:
                raise UsageError(f"{path} has no sheet {name!r}. Sheets: {some(names, 10)}. Set --sheet.")
            header, num_above, width = None, 0, 0
            for cells in _rows(book, name):
                width = max(width, _width(cells))
                if header is None:
                    num_above += 1
                    header = cells if width else None
            book.close()
        if header is None:
            raise UsageError(f"{path}: sheet {name!r} is empty. Its first row must be the names of its columns.")
        others = [other for other in names if other != name]
        is_told = others and wanted is None
        notes = (f"{Path(path).name}: reading sheet {name!r}, not {some(others, 3)}; choose with --sheet",)
        titles = ["" if cell is None else str(cell) for cell in header]
        header = tuple((titles + [""] * width)[:width])
        return cls(path=path, name=name, header=header, num_above=num_above, notes=notes if is_told else ())

    @property
    def where(self) -> str:
        """The sheet, for messages."""
        return f"{self.path}, sheet {self.name!r},"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, each once."""
        return unique_names(self.header)

    def rows(self, limit: int | None) -> Iterator[Cells]:
        """Yield the rows up to the last one that is not empty.

        Raises:
            UsageError: a formula has no value.
        """
        with reading(self.path):
            values, formulas = _load(self.path, values=True), _load(self.path, values=False)
            empty: list[Cells] = []
            pairs = zip(_rows(values, self.name), _rows(formulas, self.name), strict=True)
            for idx, (cells, typed) in enumerate(pairs):
                if idx < self.num_above or (limit is not None and idx - self.num_above >= limit):
                    continue
                self._check_formulas(idx, cells, typed)
                empty.append(cells)
                if _width(cells):
                    yield from ((*row, *[None] * len(self.header))[: len(self.header)] for row in empty)
                    empty = []
            values.close()
            formulas.close()

    def _check_formulas(self, row_idx: int, cells: Cells, typed: Cells) -> None:
        for idx, (value, formula) in enumerate(zip(cells, typed, strict=False)):
            if value is None and formula is not None:
                from openpyxl.utils import get_column_letter

                raise UsageError(
                    f"{self.where} cell {get_column_letter(idx + 1)}{row_idx + 1}: the file has no value for the "
                    "formula. Open it in a spreadsheet program and save it, or save the sheet as csv."
                )


def _load(path: str, *, values: bool) -> Any:
    import openpyxl

    try:
        return openpyxl.load_workbook(path, read_only=True, data_only=values)
    except (zipfile.BadZipFile, KeyError, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise UsageError(
            f"{path} is not an .xlsx file, or is protected by a password: {first_line(error)}. Save it as csv."
        ) from None


def _rows(book: Any, name: str) -> Iterator[Cells]:
    sheet = book[name]
    sheet.reset_dimensions()  # programs write wrong ones, and cells beyond them would be left out
    return iter(sheet.iter_rows(values_only=True))


def _width(cells: Cells) -> int:
    """Return the number of cells up to the last one that is not empty."""
    return next((idx + 1 for idx in reversed(range(len(cells))) if cells[idx] not in (None, "")), 0)


def _write(sheets: Sequence[_Sheet], limit: int | None, directory: Path) -> None:
    kinds: dict[str, set[type]] = {name: set() for name in sheets[0].names}
    are_days, are_exact = dict.fromkeys(kinds, True), dict.fromkeys(kinds, True)
    for row in _all_rows(sheets, limit):
        for name, value in row.items():
            if value not in (None, ""):
                kinds[name].add(type(value))
                are_days[name] &= not isinstance(value, datetime.datetime) or value.time() == datetime.time()
                are_exact[name] &= not isinstance(value, int) or abs(value) <= LARGEST_EXACT
    titles = dict(zip(sheets[0].names, sheets[0].header, strict=True))
    columns = {
        name: _column_of(found, is_day=are_days[name], is_exact=are_exact[name])
        for name, found in kinds.items()
        if titles[name] or found
    }
    schema = pa.schema([(name, data_type) for name, (data_type, _) in columns.items()])
    with pa.OSFile(str(directory / TABLE), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in _all_rows(sheets, limit):
            filled = {name: row[name] for name in columns if row[name] not in (None, "")}
            batch.append({name: columns[name][1](value) for name, value in filled.items()})
            if len(batch) == BATCH_ROWS:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                batch = []
        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _all_rows(sheets: Sequence[_Sheet], limit: int | None) -> Iterator[dict[str, Any]]:
    num_rows = 0
    for sheet in sheets:
        for cells in sheet.rows(None if limit is None else limit - num_rows):
            num_rows += 1
            yield dict(zip(sheet.names, cells, strict=True))


def _column_of(kinds: set[type], *, is_day: bool, is_exact: bool) -> tuple[pa.DataType, Callable[[Any], Any]]:
    """Return the type of a column whose cells have these Python types, and what makes its values of cells."""
    if kinds == {int} and is_exact:
        return pa.int64(), int
    if kinds and kinds <= {int, float} and is_exact:
        return pa.float64(), float
    if kinds == {bool}:
        return pa.bool_(), bool
    if kinds == {datetime.datetime}:
        return (pa.date32(), datetime.datetime.date) if is_day else (pa.timestamp("us"), lambda value: value)
    return pa.string(), _text


def _text(value: Any) -> str:
    """Return a cell as text.

    >>> _text(12), _text(1.5), _text(True), _text(datetime.datetime(2024, 1, 5))
    ('12', '1.5', 'TRUE', '2024-01-05 00:00:00')
    """
    return str(value).upper() if isinstance(value, bool) else str(value)

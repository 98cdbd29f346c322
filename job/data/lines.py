"""JSON lines and text files, read in place. This is our own reader because of law 3: a line that cannot be parsed must
become an error row with its position, while the readers of pyarrow and datasets give up on the whole file.

Where the lines begin is known from ``line_index``, so any row is reached by one seek.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from job.data.line_index import index_lines, read_lines
from job.data.source import BLOCK_ROWS
from job.errors import JobError, NoRows, UsageError, shorten
from job.records import Row, RowBlock, RowError

SAMPLE_ROWS = 1000
"""Columns are inferred from this many rows, until ``fix_columns`` reads them all."""

MAX_DEPTH = 16
"""Lists and objects nested deeper than this are kept as JSON text: Parquet has a limit, and each level doubles the time
that DuckDB needs.
"""

CONVERSION_ERRORS = (
    *(pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError),
    *(UnicodeEncodeError, OverflowError),
)
"""What pyarrow raises on values that do not fit a type."""


class LinesSource:
    """JSON lines (one object per line) or text files (one column, ``text``)."""

    problems: Mapping[str, str] = {}
    is_remote = False

    def __init__(
        self, files: Sequence[str], *, is_json: bool, limit: int | None = None, names: Sequence[str] | None = None
    ) -> None:
        """Index the files and infer the columns from the first rows.

        Args:
            names: the user's files, if ``files`` are copies of them.

        Raises:
            UsageError: a file cannot be read, there are no rows, or none of the first rows is a JSON object.
        """
        self._is_json = is_json
        self._indices = [
            index_lines(path, keeps_blank=not is_json, name=name)
            for path, name in zip(files, names or files, strict=True)
        ]
        self._firsts = np.concatenate([[0], np.cumsum([index.num_rows for index in self._indices])])
        self.num_rows = int(self._firsts[-1])
        self._limit = self.num_rows if limit is None else min(limit, self.num_rows)
        if is_json and not self.num_rows:
            raise NoRows(f"{self._indices[0].name} has no rows, so no columns either.")
        self.schema = pa.schema([("text", pa.string())])
        if is_json:
            self.schema, _ = self._infer(min(SAMPLE_ROWS, self._limit))
        if is_json and self._limit and not self.schema.names:
            raise self._no_objects(min(SAMPLE_ROWS, self._limit))

    def _no_objects(self, num_rows: int) -> UsageError:
        name = next(index.name for index in self._indices if index.num_rows)
        which = f"none of the first {num_rows} rows is" if num_rows > 1 else "the first row is not"
        error = next(self._rows(0, 1)).error
        return UsageError(f"{name}: {which} a JSON object with keys. {error.detail if error else 'It is empty'}.")

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Read all rows once: a sample would miss a single row that differs, and columns that first occur late."""
        new = {*needed} - {*self.schema.names}
        if not self._is_json or not (kept or new):
            return
        wanted = None if "*" in (*kept, *needed) else {*kept, *new}
        full, widened = self._infer(self._limit, wanted)
        types = dict(zip(self.schema.names, self.schema.types, strict=True))  # keeps the order; late columns come last
        types |= zip(full.names, full.types, strict=True)
        types |= dict.fromkeys(self._misfits({name: types[name] for name in widened}), pa.string())
        self.schema = pa.schema(list(types.items()))

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Seek to ``start`` and parse the lines."""
        schema = pa.schema([self.schema.field(name) for name in kept])
        rows: list[Row] = []
        for row in self._rows(start, stop):
            rows.append(row)
            if len(rows) == BLOCK_ROWS:
                yield RowBlock(rows=rows, kept=_rows_to_table(rows, schema))
                rows = []
        if rows:
            yield RowBlock(rows=rows, kept=_rows_to_table(rows, schema))

    def _rows(self, start: int, stop: int) -> Iterator[Row]:
        file_idx = int(np.searchsorted(self._firsts, start, side="right")) - 1
        row_idx = start
        while row_idx < stop:
            index, first = self._indices[file_idx], int(self._firsts[file_idx])
            name = Path(index.name).name
            for line in read_lines(index, row_idx - first, min(stop - first, index.num_rows)):
                yield self._parse(line, row_idx, f"{name}, row {row_idx - first}")
                row_idx += 1
            if row_idx < min(stop, first + index.num_rows):
                raise JobError(f"{index.name} has lost rows since the run began. Restore it, or use a new --output.")
            file_idx += 1

    def _parse(self, line: bytes, row_idx: int, where: str) -> Row:
        if not self._is_json:
            try:
                return Row(row_idx=row_idx, values={"text": line.rstrip(b"\r\n").decode()})
            except UnicodeDecodeError as error:
                return Row(row_idx=row_idx, values={}, error=RowError("invalid_unicode", f"{where}: {error}"))
        try:
            value = json.loads(line.rstrip())  # with the line end, json would report the error on "line 2"
        except UnicodeDecodeError as error:
            return Row(row_idx=row_idx, values={}, error=RowError("invalid_unicode", f"{where}: {error}"))
        except (ValueError, RecursionError) as error:
            return Row(row_idx=row_idx, values={}, error=RowError("invalid_json", f"{where}: {error}"))
        if not isinstance(value, dict):
            detail = f"{where}: a row must be a JSON object, but this is {shorten(json.dumps(value), 40)}"
            return Row(row_idx=row_idx, values={}, error=RowError("invalid_json", detail))
        if (key := _non_text_key(value)) is not None:
            detail = f"{where}: the key {key!a} has a lone surrogate, which a column name cannot"
            return Row(row_idx=row_idx, values={}, error=RowError("invalid_unicode", detail))
        return Row(row_idx=row_idx, values=value)

    def _infer(self, num_rows: int, wanted: Collection[str] | None = None) -> tuple[pa.Schema, set[str]]:
        """Return the columns of the first rows with types that fit all values; string (JSON text) if no other does.

        Args:
            wanted: the columns to look at; None means all of them.

        Returns:
            The columns, and the names of those whose type was widened by later rows.
        """
        types: dict[str, pa.DataType] = {}
        widened: set[str] = set()
        for rows in self._chunks(num_rows):
            for name in dict.fromkeys(key for values in rows for key in values if wanted is None or key in wanted):
                known = types.get(name, pa.null())
                types[name] = _merge(known, [values.get(name) for values in rows])
                if types[name] != known and not pa.types.is_null(known):
                    widened.add(name)
        return pa.schema([(name, t if _is_storable(t) else pa.string()) for name, t in types.items()]), widened

    def _misfits(self, types: Mapping[str, pa.DataType]) -> set[str]:
        """Return the columns whose widened type cannot hold earlier values: a double cannot hold 2**60 + 1."""
        found: set[str] = set()
        for rows in self._chunks(self._limit if types else 0):
            for name in types.keys() - found:
                if _convert([values.get(name) for values in rows], types[name]) is None:
                    found.add(name)
        return found

    def _chunks(self, num_rows: int) -> Iterator[list[Mapping[str, Any]]]:
        """Yield the values of the first rows in chunks."""
        for first in range(0, num_rows, SAMPLE_ROWS):
            yield [row.values for row in self._rows(first, min(first + SAMPLE_ROWS, num_rows))]


def _non_text_key(keys: Iterable[str]) -> str | None:
    """Return the first key with a lone surrogate; None if there is none."""
    try:
        "".join(keys).encode()
    except UnicodeEncodeError:
        return next(key for key in keys if not key.isascii() and key.encode(errors="ignore").decode() != key)
    return None


def _merge(known: pa.DataType, values: list[Any]) -> pa.DataType:
    """Return a type that fits these values and the earlier ones; string (JSON text) if there is none."""
    try:
        found = pa.array(values).type
        merged = (
            pa.unify_schemas([pa.schema([("x", known)]), pa.schema([("x", found)])], promote_options="permissive")
            .field("x")
            .type
        )
    except CONVERSION_ERRORS:
        return pa.string()
    return merged if merged == found or _convert(values, merged) is not None else pa.string()


def _is_storable(data_type: pa.DataType, depth: int = 0) -> bool:
    """Whether Parquet and its readers support a type: not columns of nulls only, objects that are always empty, or
    deep nesting.
    """
    if pa.types.is_null(data_type) or depth > MAX_DEPTH:
        return False
    inner = [data_type.field(idx).type for idx in range(data_type.num_fields)]
    if pa.types.is_struct(data_type) and not inner:
        return False
    return all(pa.types.is_null(t) or _is_storable(t, depth + 1) for t in inner)


def _convert(values: list[Any], data_type: pa.DataType) -> pa.Array | None:
    """Return the values as an Arrow array; None if they do not fit the type."""
    try:
        return pa.array(values, data_type)
    except CONVERSION_ERRORS:
        return None


def _rows_to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    if not schema.names:
        return pa.table({"": pa.nulls(len(rows))}).select([])
    columns = [_to_array([row.values.get(f.name) for row in rows], f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _to_array(values: list[Any], data_type: pa.DataType) -> pa.Array:
    array = _convert(values, data_type)
    if array is None and pa.types.is_string(data_type):
        array = pa.array([_to_text(value) for value in values], data_type)
    if array is None:
        raise JobError(
            f"A value no longer fits its column's type {data_type}: the file has changed since the run began. "
            "Restore it, or use a new --output."
        )
    return array


def _to_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()

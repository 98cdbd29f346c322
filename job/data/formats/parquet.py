"""Parquet files as one table of rows by index, read in place: only the row groups and columns that are needed."""

import bisect
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from job.arrow.features import known_features
from job.arrow.types import common_type, readable
from job.data.formats import converted
from job.data.formats.files import Files, Opened
from job.data.source import BLOCK_ROWS, table_to_block, union
from job.errors import JobError, first_line, reading
from job.records import RowBlock


def open_files(files: Files) -> Opened:
    """Open the files in place. Files on the Hub are downloaded and converted, unless the user wants a stream."""
    if files.are_local or files.config.streaming:
        return Opened(source=ParquetSource(files.names))
    return converted.open_files(files)


class ParquetSource:
    """Parquet files, local or at URLs."""

    def __init__(self, files: Sequence[str]) -> None:
        """Read the footers.

        Raises:
            OSError, pyarrow.ArrowInvalid: a file is missing, or is not a Parquet file.
        """
        self._files = list(files)
        # (first row, file, row group), ascending: the index for finding row n.
        self._groups: list[tuple[int, int, int]] = []
        self.num_rows = 0
        columns = _CommonColumns()
        for file_idx, file in enumerate(self._files):
            with reading(file):
                opened = self._open(file)
            columns.add(file, opened.schema_arrow)
            for group_idx in range(opened.num_row_groups):
                self._groups.append((self.num_rows, file_idx, group_idx))
                self.num_rows += opened.metadata.row_group(group_idx).num_rows
        self.schema, self.problems = columns.schema, columns.problems

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: the footers already give the columns and types."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Decode from the row group that holds ``start`` up to ``stop``."""
        schema = pa.schema([self.schema.field(name) for name in union(columns, kept)])
        first_group = max(0, bisect.bisect_right(self._groups, (start, len(self._files), 0)) - 1)
        for group_start, file_idx, group_idx in self._groups[first_group:]:
            if group_start >= stop:
                break
            with reading(self._files[file_idx]):
                yield from self._read_group(group_start, file_idx, group_idx, range(start, stop), schema, columns, kept)

    def _read_group(
        self,
        group_start: int,
        file_idx: int,
        group_idx: int,
        rows: range,
        schema: pa.Schema,
        columns: Sequence[str],
        kept: Sequence[str],
    ) -> Iterator[RowBlock]:
        position = group_start
        file = self._open(self._files[file_idx])
        names = schema.names or [file.schema_arrow.names[0]]  # a batch without columns has no length
        for batch in file.iter_batches(BLOCK_ROWS, row_groups=[group_idx], columns=names):
            skip, end = max(0, rows.start - position), min(len(batch), rows.stop - position)
            if skip < end:
                table = pa.Table.from_batches([batch]).slice(skip, end - skip)
                if schema.names:
                    table = self._cast(table.select(schema.names), schema, self._files[file_idx])
                yield table_to_block(table, position + skip, columns, kept)
            position += len(batch)
            if position >= rows.stop:
                return

    def _cast(self, table: pa.Table, schema: pa.Schema, file: str) -> pa.Table:
        """Cast the rows of one file to the types that all files share."""
        try:
            return table.cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise JobError(
                f"{file}: a value does not fit the type that all files share for its column: {first_line(error)}. "
                "Give files whose columns have the same types."
            ) from None

    def _open(self, file: str) -> pq.ParquetFile:
        if "://" not in file:
            return pq.ParquetFile(file, memory_map=True)
        import fsspec

        return pq.ParquetFile(fsspec.open(file).open())


class _CommonColumns:
    """Collects the columns of all files, with types that hold the values of each. Files are added one by one."""

    def __init__(self) -> None:
        """Start without files or columns."""
        self._fields: dict[str, pa.Field] = {}
        self._files: dict[str, str] = {}
        """Column name to the first file that has the column."""
        self._first: tuple[str, pa.Schema] | None = None
        self.problems: dict[str, str] = {}
        """Column name to an error message. Reading the column is an error, having it is not."""

    @property
    def schema(self) -> pa.Schema:
        """The columns, in the order of the first file."""
        metadata = None if self._first is None else known_features(self._first[1].metadata)
        return pa.schema(list(self._fields.values()), metadata=metadata)

    def add(self, file: str, schema: pa.Schema) -> None:
        """Add a file."""
        self._first = first_file, _ = self._first or (file, schema)
        for name in self._fields.keys() - set(schema.names):
            self._note(name, f"{file} has no column {name!r}, but {self._files[name]} has.")
        for field in schema:
            field = field.with_type(readable(field.type))
            if schema.names.count(field.name) > 1:
                self._note(field.name, f"{file} has several columns named {field.name!r}.")
            if field.name in self._fields:
                self._widen(file, field)
                continue
            if file != first_file:
                self._note(field.name, f"{first_file} has no column {field.name!r}, but {file} has.")
            self._fields[field.name], self._files[field.name] = field, file

    def _widen(self, file: str, field: pa.Field) -> None:
        known = self._fields[field.name]
        data_type = common_type(known.type, field.type)
        if data_type is not None:
            self._fields[field.name] = known.with_type(data_type).with_nullable(known.nullable or field.nullable)
            return
        first = self._files[field.name]
        self._note(field.name, f"{file}: column {field.name!r} is {field.type}, but {known.type} in {first}.")

    def _note(self, name: str, what: str) -> None:
        self.problems.setdefault(name, f"{what} Give files with the same columns, each of them once and with one type.")

"""Parquet files as one table of rows by index, read in place: only the row groups and columns that are needed."""

import bisect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from job.arrow.features import known_features
from job.arrow.types import common_type, readable
from job.data.formats.files import Files, Opened
from job.data.formats.parquet_files import LocalParquet, OpenFile, ParquetFile, open_remote
from job.data.source import table_to_block, union
from job.errors import JobError, first_line, reading
from job.records import RowBlock
from job.remote.ranges import RangedFile
from job.remote.tree import RemoteTree

AHEAD_GROUPS, AHEAD_BYTES = 16, 32 << 20
"""How many row groups are fetched ahead of the one that is decoded, and how many bytes at most with it."""

Group = tuple[int, int, int]
"""First row, file, row group in the file."""


def open_files(files: Files) -> Opened:
    """Open the files in place."""
    if files.tree is None:
        return Opened(source=ParquetSource(files.names))
    return Opened(source=ParquetSource.remote(files.tree, files.names))


class ParquetSource:
    """Parquet files, local or remote."""

    def __init__(self, files: Iterable[str | ParquetFile]) -> None:
        """Read the footers.

        Raises:
            OSError, pyarrow.ArrowInvalid: a file is missing, or is not a Parquet file.
        """
        self._files = [LocalParquet(file) if isinstance(file, str) else file for file in files]
        self.is_remote = not all(isinstance(file, LocalParquet) for file in self._files)
        self._groups: list[Group] = []
        """Ascending: the index for finding row n."""
        self.num_rows = 0
        columns = _CommonColumns()
        for file_idx, file in enumerate(self._files):
            with reading(file.name):
                parquet = file.open().parquet
            columns.add(file.name, parquet.schema_arrow)
            for group_idx in range(parquet.num_row_groups):
                self._groups.append((self.num_rows, file_idx, group_idx))
                self.num_rows += parquet.metadata.row_group(group_idx).num_rows
        self.schema, self.problems = columns.schema, columns.problems

    @classmethod
    def remote(cls, tree: RemoteTree, paths: Sequence[str]) -> "ParquetSource":
        """Open files of a tree. Those that have been fetched are read like any local ones.

        Raises:
            UsageError, Unavailable: a file cannot be read.
            pyarrow.ArrowInvalid: a file is not a Parquet file.
        """
        opened = open_remote([RangedFile(tree=tree, path=path) for path in paths if not tree.has(path)])
        return cls([opened.get(path) or str(tree.path(path)) for path in paths])

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: the footers already give the columns and types."""

    @property
    def largest_group(self) -> int:
        """The most rows of a row group: as many are decoded to reach one row."""
        ends = [first for first, _, _ in self._groups[1:]] + [self.num_rows]
        return max((end - first for end, (first, _, _) in zip(ends, self._groups, strict=True)), default=0)

    @property
    def paths(self) -> list[str]:
        """The files, if they are local."""
        return [file.name for file in self._files]

    def tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns of all rows, as they are."""
        schema = pa.schema([self.schema.field(name) for name in names])
        for (_, file_idx, group_idx), file in self._fetched(self._groups, names):
            for batch in file.batches(group_idx, _names_in(file, names)):
                with reading(self._files[file_idx].name):
                    yield self._cast(pa.Table.from_batches([batch]).select(names), schema, self._files[file_idx].name)

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Decode from the row group that holds ``start`` up to ``stop``."""
        schema = pa.schema([self.schema.field(name) for name in union(columns, kept)])
        first = max(0, bisect.bisect_right(self._groups, (start, len(self._files), 0)) - 1)
        last = bisect.bisect_left(self._groups, (stop, 0, 0))
        for group, file in self._fetched(self._groups[first:last], schema.names):
            with reading(self._files[group[1]].name):
                yield from self._read_group(group, file, range(start, stop), schema, columns, kept)

    def _fetched(self, groups: Iterable[Group], names: Sequence[str]) -> Iterator[tuple[Group, OpenFile]]:
        """Open the files of row groups, and have those that follow fetched at the same time."""
        waiting: deque[tuple[Group, OpenFile]] = deque()
        sizes: deque[int] = deque()
        opened = -1
        for group in groups:
            _, file_idx, group_idx = group
            if file_idx != opened:
                with reading(self._files[file_idx].name):
                    opened, file = file_idx, self._files[file_idx].open()
            waiting.append((group, file))
            sizes.append(file.fetch(group_idx, _names_in(file, names)))
            while waiting and not (0 < sum(sizes) <= AHEAD_BYTES and len(sizes) <= AHEAD_GROUPS):
                sizes.popleft()
                yield waiting.popleft()
        yield from waiting

    def _read_group(
        self,
        group: Group,
        file: OpenFile,
        rows: range,
        schema: pa.Schema,
        columns: Sequence[str],
        kept: Sequence[str],
    ) -> Iterator[RowBlock]:
        position, file_idx, group_idx = group
        for batch in file.batches(group_idx, _names_in(file, schema.names)):
            skip, end = max(0, rows.start - position), min(len(batch), rows.stop - position)
            if skip < end:
                table = pa.Table.from_batches([batch]).slice(skip, end - skip)
                if schema.names:
                    table = self._cast(table.select(schema.names), schema, self._files[file_idx].name)
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


def _names_in(file: OpenFile, names: Sequence[str]) -> Sequence[str]:
    return names or [file.parquet.schema_arrow.names[0]]  # a batch without columns has no length


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

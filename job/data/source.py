"""Datasets as rows with an index. Any row can be asked for; what that costs depends on the form:

| form                                   | class           | reaching row n                                       |
|----------------------------------------|-----------------|------------------------------------------------------|
| Parquet (local; on the Hub: streaming) | ParquetSource   | decodes from the start of its row group              |
| Arrow (``save_to_disk``), map-style    | TableSource     | nothing: memory-mapped                               |
| JSON lines, text (local)               | LinesSource     | reads at most 256 lines; lines are counted at start  |
| anything else, streaming               | StreamSource    | decodes everything before it, once per worker        |

``datasets.split_dataset_by_node`` and ``.skip()`` are not used: the first has lost rows, the second repeats them when
they are combined (huggingface/datasets#8079, #8568). Rows are addressed by their index in the split alone.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, first_line
from job.json_columns import to_rows
from job.records import Row, RowBlock

BLOCK_ROWS = 256
"""Rows that travel together. Bounds what one read keeps in memory."""


class Source(Protocol):
    """A split of a dataset."""

    @property
    def num_rows(self) -> int:
        """Number of rows of the split."""

    @property
    def schema(self) -> pa.Schema:
        """Columns with their Arrow types. Metadata holds HuggingFace's ``features`` where there are any."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Yield rows ``start`` to ``stop``, in order; fewer if there are fewer.

        Args:
            columns: whose values the rows must have.
            kept: which go into the block's Arrow table.

        Raises:
            JobError: the data cannot be read any more, or is not what it was.
        """


def read_rows(
    source: Source, name: str, rows: range, columns: Sequence[str], kept: Sequence[str]
) -> Iterator[RowBlock]:
    """Read from a source; check for all sources alike that no row is missing, and say which dataset failed if it does.

    Args:
        name: of the dataset, as the user gave it.

    Raises:
        JobError: the data cannot be read any more, or is not what it was.
    """
    num_rows = 0
    try:
        for block in source.read(rows.start, rows.stop, columns, kept):
            num_rows += len(block.rows)
            yield block
    except (OSError, pa.ArrowException) as error:
        raise JobError(
            f"--dataset {name} cannot be read any more: {first_line(error)}. What is finished is safe; "
            "the same command continues once the data is back."
        ) from error
    if num_rows != len(rows):
        raise JobError(
            f"The dataset gave {num_rows} rows for {rows.start} to {rows.stop}. It has changed since the run began; "
            "restore it, or use a new --output."
        )


def table_to_block(table: pa.Table, start: int, columns: Sequence[str], kept: Sequence[str]) -> RowBlock:
    """Turn an Arrow table whose first row is row ``start`` of the dataset into a block."""
    values = to_rows(table.select(list(columns))) if columns else [{}] * len(table)
    rows = [Row(row_idx=start + offset, values=value) for offset, value in enumerate(values)]
    return RowBlock(rows=rows, kept=table.select(list(kept)))


def _union(columns: Sequence[str], kept: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*columns, *kept]))


class TableSource:
    """A map-style ``datasets.Dataset``: memory-mapped Arrow."""

    def __init__(self, dataset: Any) -> None:
        """Wrap it; nothing is read."""
        self._dataset = dataset.with_format("arrow")
        self.num_rows = len(dataset)
        self.schema = dataset.features.arrow_schema

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Slice the table."""
        wanted = _union(columns, kept) or self.schema.names[:1]  # a table of no columns has no length
        dataset = self._dataset.select_columns(wanted)
        for first in range(start, stop, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, stop)
            yield table_to_block(dataset[first:last], first, columns, kept)


class ParquetSource:
    """Parquet files, read in place: only the row groups and the columns that are needed."""

    def __init__(self, files: Sequence[str]) -> None:
        """Read the footers.

        Raises:
            OSError, pyarrow.ArrowInvalid: a file is missing or no Parquet file.
            UsageError: a file lacks a column that the first one has.
        """
        self._files = list(files)
        self.schema = self._open(self._files[0]).schema_arrow
        footers = [self._footer(file) for file in self._files]
        # (first row, file, row group), ascending: the index that makes row n reachable.
        self._groups: list[tuple[int, int, int]] = []
        self.num_rows = 0
        for file_idx, footer in enumerate(footers):
            for group_idx in range(footer.num_row_groups):
                self._groups.append((self.num_rows, file_idx, group_idx))
                self.num_rows += footer.row_group(group_idx).num_rows

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Decode from the row group that holds ``start`` up to ``stop``."""
        wanted = _union(columns, kept)
        schema = pa.schema([self.schema.field(name) for name in wanted])
        first_group = max(0, bisect.bisect_right(self._groups, (start, len(self._files), 0)) - 1)
        for group_start, file_idx, group_idx in self._groups[first_group:]:
            if group_start >= stop:
                break
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
        names = schema.names or [file.schema_arrow.names[0]]  # a batch of no columns has no length
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

    def _footer(self, file: str) -> pq.FileMetaData:
        opened = self._open(file)
        missing = [name for name in self.schema.names if name not in opened.schema_arrow.names]
        if missing:
            raise UsageError(
                f"{file} has no column {missing[0]!r}, but {self._files[0]} has. Give files with the same columns."
            )
        return opened.metadata

    def _cast(self, table: pa.Table, schema: pa.Schema, file: str) -> pa.Table:
        """Give the rows of any file the types of the first one."""
        try:
            return table.cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise JobError(f"{file} does not have the column types of {self._files[0]}: {first_line(error)}.") from None

    def _open(self, file: str) -> pq.ParquetFile:
        if "://" not in file:
            return pq.ParquetFile(file, memory_map=True)
        import fsspec

        return pq.ParquetFile(fsspec.open(file).open())


class StreamSource:
    """A ``datasets.IterableDataset`` of unknown inside: read in order, from the start.

    Keeps its place, and the table that it has decoded last: who takes rows in ascending order, with gaps or without,
    decodes the dataset once.
    """

    def __init__(self, dataset: Any, num_rows: int, schema: pa.Schema) -> None:
        """Wrap it.

        Args:
            num_rows: as ``count_rows`` or the dataset's card says.
        """
        self._dataset = dataset.with_format("arrow")
        self.num_rows, self.schema = num_rows, schema
        self._tables: Iterator[pa.Table] = iter(())
        self._table, self._start = schema.empty_table(), 0
        """The table decoded last, and which row of the split is its first."""
        self._restart()

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Go on to ``start``, or begin again if it lies before the last table."""
        position = start
        while position < stop and self._reach(position):
            first = position - self._start
            block = self._table.slice(first, min(BLOCK_ROWS, stop - position)).cast(self.schema)
            yield table_to_block(block, position, columns, kept)
            position += len(block)

    def _reach(self, row_idx: int) -> bool:
        """Decode up to the table that holds a row. False if there is no such row."""
        if row_idx < self._start:
            self._restart()
        while row_idx >= self._start + len(self._table):
            table = next(self._tables, None)
            if table is None:
                return False
            self._start, self._table = self._start + len(self._table), table
        return True

    def _restart(self) -> None:
        self._table, self._start = self.schema.empty_table(), 0
        self._tables = iter(self._dataset.iter(batch_size=1000))


def count_rows(dataset: Any, limit: int | None) -> int:
    """Count the rows of an iterable dataset by decoding it; up to ``limit``."""
    num_rows = 0
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        num_rows += len(table)
        if limit is not None and num_rows >= limit:
            return limit
    return num_rows

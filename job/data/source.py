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

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from job.arrow.types import readable
from job.arrow.values import null_broken, to_python
from job.errors import JobError, UsageError, first_line
from job.records import Row, RowBlock, RowError

BLOCK_ROWS = 256
"""Rows that travel together. Bounds what one read keeps in memory."""


TORN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
"""What reading a compressed file raises that ends too early or is damaged."""


class Source(Protocol):
    """A split of a dataset."""

    @property
    def num_rows(self) -> int:
        """Number of rows of the split."""

    @property
    def schema(self) -> pa.Schema:
        """Columns with their Arrow types. Metadata holds HuggingFace's ``features`` where there are any."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Columns that cannot be read, because files differ in them: what is wrong, and what to do."""

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Make ``schema`` hold for all rows, where the first ones cannot tell. Call it before rows are read.

        Args:
            kept: columns whose types must fit all values; ``*`` stands for all.
            needed: columns that must be in the schema if any row has them; ``*`` stands for all.
        """

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Yield rows ``start`` to ``stop``, in order; fewer if there are fewer.

        Args:
            columns: whose values the rows must have.
            kept: which go into the block's Arrow table.

        Raises:
            JobError: the data cannot be read any more, or is not what it was.
        """


def check_columns(source: Source, columns: Iterable[str]) -> None:
    """Look whether columns can be read, as far as it can be known without reading.

    Raises:
        UsageError: one cannot.
    """
    for name in columns:
        if name in source.problems:
            raise UsageError(source.problems[name])


def read_rows(
    source: Source, name: str, rows: range, columns: Sequence[str], kept: Sequence[str]
) -> Iterator[RowBlock]:
    """Read from a source; check for all sources alike that no row is missing, and say which dataset failed if it does.

    Args:
        name: of the dataset, as the user gave it.

    Raises:
        UsageError: see ``check_columns``.
        JobError: the data cannot be read any more, or is not what it was.
    """
    check_columns(source, union(columns, kept))
    num_rows = 0
    try:
        for block in source.read(rows.start, rows.stop, columns, kept):
            num_rows += len(block.rows)
            yield block
    except (*TORN, OSError) as error:
        raise JobError(
            f"--dataset {name} cannot be read any more: {first_line(error)}. What is finished is safe; "
            "the same command continues once the data is back."
        ) from error
    except pa.ArrowException as error:
        raise JobError(
            f"--dataset {name} cannot be read: {first_line(error)}. What is finished is safe, but the same command "
            "stops here again until the data is mended."
        ) from error
    if num_rows != len(rows):
        raise JobError(
            f"The dataset gave {num_rows} rows for {rows.start} to {rows.stop}. It has changed since the run began; "
            "restore it, or use a new --output."
        )


def table_to_block(table: pa.Table, start: int, columns: Sequence[str], kept: Sequence[str]) -> RowBlock:
    """Turn an Arrow table whose first row is row ``start`` of the dataset into a block."""
    values = to_python(table.select(list(columns))) if columns else [{}] * len(table)
    kept_table, errors = null_broken(table.select(list(kept)))
    rows = []
    for offset, found in enumerate(values):
        error = found if isinstance(found, RowError) else errors.get(offset)
        rows.append(Row(row_idx=start + offset, values={} if isinstance(found, RowError) else found, error=error))
    return RowBlock(rows=rows, kept=kept_table)


def union(columns: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Return the columns that must be read."""
    return list(dict.fromkeys([*columns, *kept]))


def readable_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns with the types in which they can be kept."""
    return pa.schema([field.with_type(readable(field.type)) for field in schema], metadata=schema.metadata)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give columns their types in the schema."""
    for idx, name in enumerate(table.column_names):
        field = schema.field(name)
        if table.schema.field(idx).type != field.type:
            table = table.set_column(idx, field, table.column(idx).cast(field.type))
    return table


class TableSource:
    """A map-style ``datasets.Dataset``: memory-mapped Arrow."""

    problems: Mapping[str, str] = {}

    def __init__(self, dataset: Any) -> None:
        """Wrap it; nothing is read."""
        self._dataset = dataset.with_format("arrow")
        self.num_rows = len(dataset)
        self.schema = readable_schema(dataset.features.arrow_schema)

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: columns and types are those of all rows."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Slice the table."""
        wanted = union(columns, kept) or self.schema.names[:1]  # a table of no columns has no length
        dataset = self._dataset.select_columns(wanted)
        for first in range(start, stop, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, stop)
            yield table_to_block(_conform(dataset[first:last], self.schema), first, columns, kept)


class StreamSource:
    """A ``datasets.IterableDataset`` of unknown inside: read in order, from the start.

    Keeps its place, and the table that it has decoded last: who takes rows in ascending order, with gaps or without,
    decodes the dataset once.
    """

    problems: Mapping[str, str] = {}

    def __init__(self, dataset: Any, num_rows: int, schema: pa.Schema) -> None:
        """Wrap it.

        Args:
            num_rows: as ``count_rows`` or the dataset's card says.
        """
        self._dataset = dataset.with_format("arrow")
        self.num_rows, self.schema = num_rows, readable_schema(schema)
        self._tables: Iterator[pa.Table] = iter(())
        self._table, self._start = self.schema.empty_table(), 0
        """The table decoded last, and which row of the split is its first."""
        self._restart()

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: columns and types are those of all rows."""

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


def count_rows(dataset: Any, schema: pa.Schema, limit: int | None) -> int:
    """Count the rows of an iterable dataset by decoding it; up to ``limit``.

    Raises:
        pyarrow.ArrowException: some of them do not fit the schema.
    """
    num_rows = 0
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        num_rows += len(table.cast(schema))
        if limit is not None and num_rows >= limit:
            return limit
    return num_rows

"""Datasets as rows with an index. Any row can be read; the cost of reaching it depends on the form:

| form                                   | class           | reaching row n                                       |
|----------------------------------------|-----------------|------------------------------------------------------|
| Parquet, also read in place elsewhere | ParquetSource     | decodes from the start of its row group              |
| Arrow (``save_to_disk``), map-style    | TableSource     | nothing: memory-mapped                               |
| csv, converted to Arrow                | ArrowSource     | nothing: memory-mapped                               |
| JSON lines, text (local)               | LinesSource     | reads at most 256 lines; lines are counted at start  |

``datasets.split_dataset_by_node`` and ``.skip()`` are not used: the first has lost rows, the second repeats them when
they are combined (huggingface/datasets#8079, #8568). Rows are addressed by their index in the split alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from job.arrow.types import readable
from job.arrow.values import null_broken, to_python
from job.data.compression import TORN
from job.data.templates import quoted_template
from job.errors import JobError, UsageError, explain, is_foreign
from job.records import Row, RowBlock, RowError

BLOCK_ROWS = 256
"""Rows per block. Limits how much one read keeps in memory."""


class Source(Protocol):
    """A split of a dataset."""

    @property
    def num_rows(self) -> int:
        """Number of rows in the split."""

    @property
    def schema(self) -> pa.Schema:
        """Columns with their Arrow types. The metadata contains Hugging Face's ``features`` if there are any."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Columns that cannot be read because the files differ, with an error message for each."""

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Make ``schema`` valid for all rows, if it was inferred from the first ones. Call it before reading rows.

        Args:
            kept: columns whose types must fit all values; ``*`` means all columns.
            needed: columns that must be in the schema if any row has them; ``*`` means all columns.
        """

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Yield rows ``start`` to ``stop`` in order, or fewer if the dataset ends before.

        Args:
            columns: columns whose values the rows must have.
            kept: columns that go into the block's Arrow table.

        Raises:
            JobError: the data can no longer be read, or has changed.
        """


def check_columns(source: Source, columns: Iterable[str]) -> None:
    """Check that columns can be read, as far as this is known without reading.

    Raises:
        UsageError: one of them cannot be read.
    """
    for name in columns:
        if name in source.problems:
            raise UsageError(source.problems[name])


def read_rows(
    source: Source, name: str, rows: range, columns: Sequence[str], kept: Sequence[str]
) -> Iterator[RowBlock]:
    """Read from any source. Check that no row is missing, and name the dataset in errors.

    Args:
        name: the dataset as the user named it, for error messages.

    Raises:
        UsageError: see ``check_columns``.
        JobError: the data can no longer be read, or has changed.
    """
    check_columns(source, union(columns, kept))
    num_rows = 0
    try:
        for block in source.read(rows.start, rows.stop, columns, kept):
            num_rows += len(block.rows)
            yield block
    except (*TORN, OSError) as error:
        raise JobError(
            f"--dataset {name} can no longer be read: {explain(error, name)}. Finished rows are safe; "
            "run the same command again once the data is back."
        ) from error
    except UsageError as error:  # of a server that no longer lets the user read: the run has begun
        raise JobError(str(error)) from error
    except JobError:
        raise
    except Exception as error:
        if not is_foreign(error):
            raise
        raise JobError(
            f"--dataset {name} cannot be read: {explain(error, name)}. Finished rows are safe, but the same command "
            "will stop here again until the data is repaired."
        ) from error
    if num_rows != len(rows):
        raise JobError(
            f"The dataset returned {num_rows} rows for {rows.start} to {rows.stop}. It has changed since the run "
            "began; restore it, or use a new --output."
        )


def table_to_block(table: pa.Table, start: int, columns: Sequence[str], kept: Sequence[str]) -> RowBlock:
    """Turn an Arrow table, whose first row is row ``start`` of the dataset, into a block."""
    values = to_python(table.select(list(columns))) if columns else [{}] * len(table)
    kept_table, errors = null_broken(table.select(list(kept)))
    rows = []
    for offset, found in enumerate(values):
        error = found if isinstance(found, RowError) else errors.get(offset)
        rows.append(Row(row_idx=start + offset, values={} if isinstance(found, RowError) else found, error=error))
    return RowBlock(rows=rows, kept=kept_table)


def union(columns: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Return all columns that must be read, without duplicates."""
    return list(dict.fromkeys([*columns, *kept]))


def readable_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns with types in which they can be kept."""
    return pa.schema([field.with_type(readable(field.type)) for field in schema], metadata=schema.metadata)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast the columns to their types in the schema."""
    for idx, name in enumerate(table.column_names):
        field = schema.field(name)
        if table.schema.field(idx).type != field.type:
            table = table.set_column(idx, field, table.column(idx).cast(field.type))
    return table


class TableSource:
    """A map-style ``datasets.Dataset``: memory-mapped Arrow."""

    problems: Mapping[str, str] = {}
    is_remote = False

    def __init__(self, dataset: Any) -> None:
        """Wrap a dataset. Nothing is read."""
        self._dataset = dataset.with_format("arrow")
        self.num_rows = len(dataset)
        self.schema = readable_schema(dataset.features.arrow_schema)

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: the columns and types are valid for all rows."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Slice the table."""
        wanted = union(columns, kept) or self.schema.names[:1]  # a table without columns has no length
        dataset = self._dataset.select_columns(wanted)
        for first in range(start, stop, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, stop)
            yield table_to_block(_conform(dataset[first:last], self.schema), first, columns, kept)


class ArrowSource:
    """Arrow files that we have written ourselves, memory-mapped."""

    problems: Mapping[str, str] = {}
    is_remote = False

    def __init__(self, paths: Sequence[Path]) -> None:
        """Map the files. They may be deleted while they are mapped."""
        self._table = pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths)
        self.num_rows, self.schema = len(self._table), self._table.schema

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: the columns and types are valid for all rows."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Slice the table."""
        table = self._table.select(union(columns, kept) or self.schema.names[:1])
        for first in range(start, min(stop, self.num_rows), BLOCK_ROWS):
            yield table_to_block(table.slice(first, min(BLOCK_ROWS, stop - first)), first, columns, kept)


class SchemaSource:
    """The columns of a dataset whose rows have not been read, or are not there yet."""

    problems: Mapping[str, str] = {}
    num_rows = 0
    is_remote = False

    def __init__(self, schema: pa.Schema) -> None:
        """Have these columns."""
        self.schema = schema

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """Do nothing: there are no values."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Yield nothing."""
        return iter(())


def check_prompt_type(name: str | None, schema: Any) -> None:
    """Refuse a prompt column that cannot contain text in any row. (In JSON lines, each row has its own types.)

    Args:
        name: the column whose text is the prompt; None if there is none.
        schema: pyarrow.Schema of the dataset.

    Raises:
        UsageError: the column is not of a text type.
    """
    if name is None:
        return
    data_type = schema.field(name).type
    is_text = pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    if not (is_text or pa.types.is_null(data_type) or pa.types.is_dictionary(data_type)):
        or_messages = ", or --messages-column" if pa.types.is_list(data_type) else ""
        raise UsageError(
            f"Column {name!r} is {data_type}, not string. Use --prompt-template {quoted_template(name)} to render it "
            f"as text{or_messages}."
        )

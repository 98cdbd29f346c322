"""What each format makes of a run's rows. All of them write as they read, and keep no more than a few batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from job.output.looking.exporting.openai_answers import write_answers
from job.output.looking.exporting.table import RunTable
from job.output.looking.exporting.values import to_cell, to_json, to_python

ROWS_PER_GROUP, BYTES_PER_GROUP = 50_000, 64 << 20
"""A row group of a large file ends at the first of these: large enough to compress and skip well, small in memory."""

Batches = Iterable[pa.RecordBatch]
Writer = Callable[[RunTable, Batches, BinaryIO], None]


def write_jsonl(table: RunTable, batches: Batches, file: BinaryIO) -> None:
    """Write an object per row, with the columns' own types."""
    for batch in batches:
        file.writelines(to_json(row).encode() + b"\n" for row in to_python(batch, table.num_rows - len(batch)))


def write_csv(table: RunTable, batches: Batches, file: BinaryIO) -> None:
    """Write a line of names, then the rows. Texts are quoted, nulls are empty without quotes; lists are JSON."""
    schema = pa.schema([pa.field(column.name, _cell_type(column.type)) for column in table.schema])
    with pc_csv.CSVWriter(file, schema) as writer:
        for batch in batches:
            start = table.num_rows - len(batch)
            columns = [_cells(batch.select([field.name]), field.type, start) for field in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_parquet(table: RunTable, batches: Batches, file: BinaryIO) -> None:
    """Write rows as in the parts, in larger row groups."""
    with pq.ParquetWriter(file, table.schema, compression="zstd", write_page_checksum=True) as writer:
        waiting: list[pa.RecordBatch] = []
        num_bytes = 0
        for batch in batches:
            waiting.append(batch)
            num_bytes += batch.nbytes
            if num_bytes >= BYTES_PER_GROUP or sum(map(len, waiting)) >= ROWS_PER_GROUP:
                _write_group(writer, waiting, table.schema)
                waiting, num_bytes = [], 0
        if waiting:
            _write_group(writer, waiting, table.schema)


WRITERS: Mapping[str, Writer] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "openai-batch": write_answers,
}


def _write_group(writer: pq.ParquetWriter, batches: list[pa.RecordBatch], schema: pa.Schema) -> None:
    group = pa.Table.from_batches([batch.replace_schema_metadata(schema.metadata) for batch in batches], schema)
    writer.write_table(group, row_group_size=max(1, len(group)))


def _cell_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type of which a CSV holds cells: numbers as they are, everything else as text."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return data_type if any(is_kind(data_type) for is_kind in kinds) else pa.string()


def _cells(batch: pa.RecordBatch, data_type: pa.DataType, start: int) -> pa.Array:
    """Return the cells of a batch's only column."""
    column = batch.column(0)
    if column.type == data_type:
        return column
    if isinstance(column.type, pa.BaseExtensionType):  # JSON text, which is a cell's text as it is
        return column.storage.cast(data_type)
    values = [value for row in to_python(batch, start) for value in row.values()]
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return column.cast(data_type)
    return pa.array([to_cell(value) for value in values], data_type)

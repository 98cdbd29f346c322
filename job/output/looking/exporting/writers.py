"""Writes a run's rows in each format. All writers stream, and hold no more than a few batches in memory."""

from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from job.output.looking.exporting.cells import rows_of, to_cell, to_json
from job.output.looking.exporting.openai_answers import write_answers
from job.output.looking.exporting.run_table import RunTable

ROWS_PER_GROUP, BYTES_PER_GROUP = 50_000, 64 << 20
"""A row group ends at whichever limit comes first: large enough to compress and skip well, small in memory."""


class WithSchema(Protocol):
    """Rows whose columns are known."""

    schema: pa.Schema


Batches = Iterable[pa.RecordBatch]
Writer = Callable[[RunTable, Batches, BinaryIO], None]


def write_jsonl(table: WithSchema, batches: Batches, file: BinaryIO) -> None:
    """Write an object per row, with the columns' own types."""
    for batch in batches:
        file.writelines(to_json(row).encode() + b"\n" for row in rows_of(batch))


def write_csv(table: WithSchema, batches: Batches, file: BinaryIO) -> None:
    """Write a header line, then the rows. Texts are quoted, nulls are empty without quotes, lists are JSON."""
    schema = pa.schema([pa.field(column.name, _cell_type(column.type)) for column in table.schema])
    with pc_csv.CSVWriter(file, schema) as writer:
        for batch in batches:
            columns = [_cells(column, field) for column, field in zip(batch.columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_parquet(table: WithSchema, batches: Batches, file: BinaryIO) -> None:
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


def write_table(table: pa.Table, form: str, file: BinaryIO) -> None:
    """Write a table that is in memory in one of the formats of tables."""
    {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[form](table, table.to_batches(), file)


def _write_group(writer: pq.ParquetWriter, batches: list[pa.RecordBatch], schema: pa.Schema) -> None:
    group = pa.Table.from_batches([batch.replace_schema_metadata(schema.metadata) for batch in batches], schema)
    writer.write_table(group, row_group_size=max(1, len(group)))


def _cell_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type of a column's cells in a CSV: numbers and booleans keep their type, everything else is text."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return data_type if any(is_kind(data_type) for is_kind in kinds) else pa.string()


def _cells(column: pa.Array, field: pa.Field) -> pa.Array:
    if column.type == field.type:
        return column
    if isinstance(column.type, pa.BaseExtensionType):  # JSON text, which becomes the cell's text unchanged
        column = column.storage
    rows = rows_of(pa.record_batch([column], names=[field.name]))  # refuses dates that the cast would write as errors
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return column.cast(field.type)
    return pa.array([to_cell(row[field.name]) for row in rows], field.type)

"""Rows in any order: what makes a single row cheap to reach, whatever form the dataset has."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from job.data.conversions import converted
from job.data.formats.parquet import ParquetSource
from job.data.source import ArrowSource, Source

MAX_GROUP_ROWS = 2000
"""Of Parquet files with larger row groups, the columns are unpacked."""

READER, FILE = "unpacked-1", "rows.arrow"


def at_random(source: Source, columns: Sequence[str]) -> Source:
    """Return the same rows, of which each is cheap to reach by itself: at most some thousand others are read with it.

    Parquet files decode a row group for each row. If those are large, the columns that are needed are written to the
    cache once, unpacked.

    Args:
        columns: those that will be read.
    """
    names = list(dict.fromkeys(columns))
    if not isinstance(source, ParquetSource) or source.largest_group <= MAX_GROUP_ROWS or not names:
        return source

    def unpack(directory: Path) -> None:
        schema = pa.schema([source.schema.field(name) for name in names])
        with pa.OSFile(str(directory / FILE), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for table in source.tables(names):
                writer.write_table(table)

    return ArrowSource([converted(source.paths, READER, names, unpack) / FILE])

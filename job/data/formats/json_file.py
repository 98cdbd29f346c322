"""JSON files, each with a list of objects. A column that a file lacks is null in its rows."""

import glob
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from job.data.formats import converted
from job.data.formats.files import Files
from job.data.source import Source
from job.errors import UsageError

SAMPLE_ROWS = 1000


def open_files(files: Files) -> Source:
    """Convert the files."""
    return converted.open_files(files, {}, _common_schema)


def _common_schema(builder: Any, files: Files) -> pa.Schema | None:
    """Return the columns of all files; None if there are not several local files.

    Raises:
        UsageError: a column has different types in different files.
    """
    if len(files.local_names) < 2:
        return None
    known = pa.schema([])
    for file, schema in _schemas(files):
        for field in schema:
            idx = known.get_field_index(field.name)
            if idx < 0:
                known = known.append(field)
            elif pa.types.is_null(known.field(idx).type):
                known = known.set(idx, field)
            elif field.type != known.field(idx).type and not pa.types.is_null(field.type):
                raise UsageError(
                    f"{file}: column {field.name!r} is {field.type}, but {known.field(idx).type} in earlier "
                    "files. Give it one type, or write JSON lines (.jsonl)."
                )
    return known


def _schemas(files: Files) -> Iterator[tuple[str, pa.Schema]]:
    """Yield each file name with the columns of its first rows."""
    import datasets

    for file in files.local_names:
        builder = datasets.load_dataset_builder("json", data_files={"train": [glob.escape(file)]})
        stream = builder.as_streaming_dataset(split="train").with_format("arrow")
        for table in stream.take(SAMPLE_ROWS).iter(batch_size=SAMPLE_ROWS):
            yield file, table.schema.remove_metadata()

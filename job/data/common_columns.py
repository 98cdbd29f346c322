"""One schema for csv or JSON files whose rows differ: ``datasets`` takes the types of the first rows for all others.

Looked for only where ``datasets`` has failed, since it costs another pass over csv files.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from job.errors import UsageError

SAMPLE_ROWS = 1000

Found = Iterable[tuple[str, pa.Schema]]
"""Files, each perhaps several times, and the columns of some of their rows."""


def common_schema(builder: Any, files: Sequence[str]) -> pa.Schema | None:
    """Return columns that all rows of the files fit; None if there is nothing to mend.

    A csv column of several types is text, as the file has it: of numbers, too, because a large integer is no double.
    JSON files may lack columns: their rows have nulls there.

    Args:
        builder: of ``datasets``, for these files.

    Raises:
        UsageError: there are none; the message names file and column.
    """
    if builder.name == "csv":
        return _merge_csv(_schemas_of_csv(builder, files))
    if builder.name == "json" and len(files) > 1:
        return _merge_json(_schemas_of_json(files))
    return None


def _merge_csv(found: Found) -> pa.Schema:
    types: dict[str, pa.DataType] = {}
    first_file = ""
    for file, schema in found:
        first_file = first_file or file
        types = types or dict(zip(schema.names, schema.types, strict=True))
        _check_names(first_file, list(types), file, schema.names)
        types |= {f.name: pa.large_string() for f in schema if f.type != types[f.name]}
    return pa.schema(list(types.items()))


def _check_names(first_file: str, first_names: list[str], file: str, names: list[str]) -> None:
    files = {file: names, first_file: first_names}
    for lacking, having in ((file, first_file), (first_file, file)):
        missing = [name for name in files[having] if name not in files[lacking]]
        if missing:
            raise UsageError(
                f"{lacking} has no column {missing[0]!r}, but {having} has. Give files with the same columns."
            )


def _merge_json(found: Found) -> pa.Schema:
    known = pa.schema([])
    for file, schema in found:
        for field in schema:
            idx = known.get_field_index(field.name)
            if idx < 0:
                known = known.append(field)
            elif pa.types.is_null(known.field(idx).type):
                known = known.set(idx, field)
            elif field.type != known.field(idx).type and not pa.types.is_null(field.type):
                raise UsageError(
                    f"{file}: column {field.name!r} is {field.type}, but {known.field(idx).type} in the files before "
                    "it. Give it one type, or write JSON lines (.jsonl)."
                )
    return known


def _schemas_of_csv(builder: Any, files: Sequence[str]) -> Iterator[tuple[str, pa.Schema]]:
    """Read files as the builder does."""
    import pandas as pd

    for file in files:
        with pd.read_csv(file, iterator=True, **builder.config.pd_read_csv_kwargs) as chunks:
            for chunk in chunks:
                yield file, pa.schema([(str(name), _type_of(chunk[name])) for name in chunk.columns])


def _type_of(column: Any) -> pa.DataType:
    """Return the type of a pandas series; text where there is none that pandas can be asked to read."""
    try:
        found = pa.Array.from_pandas(column)
    except pa.ArrowException:
        return pa.large_string()
    has_gaps = pa.types.is_boolean(found.type) and found.null_count
    return pa.large_string() if has_gaps else found.type


def _schemas_of_json(files: Sequence[str]) -> Iterator[tuple[str, pa.Schema]]:
    """Look at the first rows of files."""
    import datasets

    for file in files:
        builder = datasets.load_dataset_builder("json", data_files={"train": [glob.escape(file)]})
        stream = builder.as_streaming_dataset(split="train").with_format("arrow")
        for table in stream.take(SAMPLE_ROWS).iter(batch_size=SAMPLE_ROWS):
            yield file, table.schema.remove_metadata()

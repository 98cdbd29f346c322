"""Tables whose columns are separated by commas, or by the separator that the dataset's card gives.

``datasets`` infers the types from the first rows. A column whose types differ between rows is read as text, exactly as
in the files. This applies to numbers, too, because a double cannot hold every large integer.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from job.data.formats import converted
from job.data.formats.files import Files
from job.data.source import Source
from job.errors import UsageError

DEFAULT_SEPARATOR = ","


def open_files(files: Files, sep: str = DEFAULT_SEPARATOR) -> Source:
    """Convert the files.

    Args:
        sep: the separator of cells, unless the dataset's card gives one.
    """
    config = files.builder().config
    options: dict[str, Any] = {}
    if config.sep == DEFAULT_SEPARATOR != sep:
        options["sep"] = sep
    if config.keep_default_na and not config.na_values:
        # Only an empty cell is a null: pandas would also turn NA, None, null and a dozen other texts into nulls.
        options |= {"keep_default_na": False, "na_values": [""]}
    return converted.open_files(files, options, _common_schema)


def _common_schema(builder: Any, files: Files) -> pa.Schema | None:
    """Read the local files again to find column types that fit all rows; no columns if the files are not local.

    Raises:
        UsageError: the files have different columns. The message names a file and a column.
    """
    types: dict[str, pa.DataType] = {}
    for file, schema in _schemas(builder, files):
        types = types or dict(zip(schema.names, schema.types, strict=True))
        _check_names(files.names[0], list(types), file, schema.names)
        types |= {f.name: pa.large_string() for f in schema if f.type != types[f.name]}
    return pa.schema(list(types.items()))


def _schemas(builder: Any, files: Files) -> Iterator[tuple[str, pa.Schema]]:
    """Yield each file name with the columns of one chunk of rows after the other, read as the builder reads them."""
    import pandas as pd

    for file in files.local_names:
        with pd.read_csv(file, iterator=True, **builder.config.pd_read_csv_kwargs) as chunks:
            for chunk in chunks:
                yield file, pa.schema([(str(name), _type_of(chunk[name])) for name in chunk.columns])


def _type_of(column: Any) -> pa.DataType:
    """Return the type of a pandas series; text if pandas cannot read the column with a single type."""
    try:
        found = pa.Array.from_pandas(column)
    except pa.ArrowException:
        return pa.large_string()
    has_gaps = pa.types.is_boolean(found.type) and found.null_count
    return pa.large_string() if has_gaps else found.type


def _check_names(first_file: str, first_names: list[str], file: str, names: list[str]) -> None:
    files = {file: names, first_file: first_names}
    for lacking, having in ((file, first_file), (first_file, file)):
        missing = [name for name in files[having] if name not in files[lacking]]
        if missing:
            raise UsageError(
                f"{lacking} has no column {missing[0]!r}, but {having} has. Give files with the same columns."
            )

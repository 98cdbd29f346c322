"""The dataset's columns that the output keeps, with their types."""

from collections.abc import Sequence

import pyarrow as pa

from job.errors import UsageError, first_line, is_foreign
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import Columns
from job.run.older_runs import all_columns
from job.run.resolved import ResolvedRun
from job.wording import no_column


def kept_fields(run: ResolvedRun, schema: pa.Schema, columns: Columns, found: Manifest | None = None) -> list[pa.Field]:
    """Return the kept columns, the id first.

    ``*`` leaves out the column whose text is the prompt if the output has its own column with that name, whatever the
    case of its letters. Runs of older versions may have columns that differ by nothing else.

    Args:
        found: the manifest of the run, if it exists.

    Raises:
        UsageError: one does not exist, or has the name of another column, but for the case of its letters.
    """
    names = list(run.named_columns)
    is_older = found is not None and not found.lists_files
    taken = {name.casefold(): name for name in columns.names}
    is_all = "*" in names
    if is_all:
        there = {run.text_column} & columns.names
        if not is_older and run.text_column is not None and run.text_column.strip().casefold() in taken:
            there = {run.text_column}
        others = [name for name in all_columns(schema, found) if name not in there]
        names = list(dict.fromkeys([*(name for name in names if name != "*"), *others]))
    for name in names:
        option = "--id-column" if name == run.id_column else "--keep-columns"
        if name not in schema.names:
            raise UsageError(f"{option}: the dataset has {no_column(name, schema.names)}.")
        if name in columns.names:
            advice = "Name the columns to keep, instead of '*'" if is_all else "Keep another column"
            choice = ", or give --no-include-prompt" if name == "prompt" else ""
            raise UsageError(f"{option} {name!r}: the output has its own column with that name. {advice}{choice}.")
        other = taken.setdefault(name.casefold(), name)
        if other != name and not is_older:
            raise UsageError(
                f"{option} {name!r}: the output has a column {other!r}, too, and for DuckDB, Spark and Hive these are "
                "one name. Keep one of them by its name, or rename the column in the data."
            )
    return [schema.field(name) for name in names]


def features_of(columns: Columns, schema: pa.Schema, kept: Sequence[pa.Field]) -> bytes:
    """Return Hugging Face's description of the output's columns, so that class labels and the like survive.

    Raises:
        UsageError: a kept column has a type that ``datasets`` cannot describe.
    """
    import datasets

    for field in kept:
        try:
            datasets.Features.from_arrow_schema(pa.schema([field]))
        except Exception as error:
            if not is_foreign(error):
                raise
            raise UsageError(f"--keep-columns {field.name}: {first_line(error)} Leave the column out.") from None
    full = columns.schema(pa.schema(kept, metadata=schema.metadata))
    content: bytes = datasets.Features.from_arrow_schema(full).arrow_schema.metadata[b"huggingface"]
    return content

"""The dataset's columns that the output keeps, with their names there and their types."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from job.arrow.features import KEY
from job.errors import UsageError, first_line, is_foreign
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import Columns
from job.run.older_runs import all_columns
from job.run.resolved import ResolvedRun
from job.wording import no_column


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptColumns:
    """Columns that are copied from the dataset to the output."""

    columns: tuple[str, ...]
    """Their names in the dataset."""
    schema: pa.Schema
    """The same columns as they are in the output, with Hugging Face's description of them if there is one."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]], schema: pa.Schema) -> "KeptColumns":
        """Take columns, each with its name in the output, from the schema of a dataset."""
        fields = [schema.field(column).with_name(name) for column, name in pairs]
        columns = tuple(column for column, _ in pairs)
        return cls(columns=columns, schema=pa.schema(fields, metadata=_renamed(schema.metadata, pairs)))

    @property
    def descriptions(self) -> list[str]:
        """What the manifest says of each: its name, its type, and its name in the dataset if that is another."""
        pairs = zip(self.columns, self.schema, strict=True)
        origins = ["" if column == field.name else f", from {column}" for column, field in pairs]
        return [f"{field.name}: {field.type}{origin}" for field, origin in zip(self.schema, origins, strict=True)]


def columns_kept(
    run: ResolvedRun, schema: pa.Schema, columns: Columns, found: Manifest | None = None, *, is_run: bool = False
) -> tuple[KeptColumns, Sequence[str]]:
    """Return the kept columns, the id first, and notes for the user.

    ``*`` leaves out the column whose text is the prompt if the output has its own column with that name, whatever the
    case of its letters; and of an earlier run, all that the output has its own column for. Runs of older versions may
    have columns that differ by nothing else than the case of letters.

    Args:
        found: the manifest of the run, if it exists.
        is_run: whether the dataset is an earlier run.

    Raises:
        UsageError: one does not exist, or has the name of another column, but for the case of its letters.
    """
    is_older = found is not None and not found.lists_files
    pairs = [pair for pair in run.named_columns if pair[0] != "*"]
    taken = {name.casefold(): name for name in columns.names}
    left_out: list[str] = []
    is_all = len(pairs) < len(run.named_columns)
    if is_all:
        there = {run.text_column} & columns.names
        if not is_older and run.text_column is not None and run.text_column.strip().casefold() in taken:
            there = {run.text_column}
        others = [name for name in all_columns(schema, found) if name not in {*there, *(old for old, _ in pairs)}]
        left_out = [name for name in others if is_run and name.casefold() in taken]
        pairs += [(name, name) for name in others if name not in left_out]
    for column, name in pairs:
        option = "--id-column" if column == name == run.id_column else "--keep-columns"
        if column not in schema.names:
            raise UsageError(_unknown(option, column, schema.names))
        if name in columns.names:
            raise UsageError(_own_column(option, column, name, schema.names, is_all=is_all))
        other = taken.get(name.casefold())
        if other == name:
            raise UsageError(f"--keep-columns: two columns would be named {name!r}. Give one of them another name.")
        if other is not None and not is_older:
            raise UsageError(
                f"{option} {name!r}: the output has a column {other!r}, too, and for DuckDB, Spark and Hive these are "
                f"one name. Keep one of them, or give it another name: --keep-columns '{column}=NAME'."
            )
        taken.setdefault(name.casefold(), name)
    return KeptColumns.of(pairs, schema), list(_notes(left_out))


def _unknown(option: str, column: str, columns: Sequence[str]) -> str:
    """Return that there is no such column."""
    old, *new = (part.strip() for part in column.split("="))
    if new and old == "*":
        return (
            f"{option} {column}: '*' stands for all columns, which keep their names. Rename them one by one: OLD=NEW."
        )
    if len(new) > 1 and old in columns:
        return f"{option} {column}: a column has one new name. Write {old}=NAME."
    if new and old in columns:
        return f"{option} {column}: the new name is missing. Write {old}=NAME."
    if new and new[0] in columns:
        which = f"the old name is missing. Write {new[0]}=NAME, or {new[0]}" if not old else ""
        swapped = f"the dataset has no column {old!r}, but {new[0]!r}. The old name comes first: {new[0]}=NAME"
        return f"{option} {column}: {which or swapped}."
    return f"{option}: the dataset has {no_column(old, columns)}."


def _own_column(option: str, column: str, name: str, columns: Sequence[str], *, is_all: bool) -> str:
    """Return why a column cannot be kept, and how it can."""
    if column != name and name in columns:
        return (
            f"{option} {column}={name}: the output has its own column {name!r}. Use another name; to keep the "
            f"dataset's {name!r}, write {name}=NAME: the old name comes first."
        )
    if column != name:
        return f"{option} {column}={name}: the output has its own column {name!r}. Use another name."
    choice = ", or give --no-include-prompt" if name == "prompt" else ""
    renaming = f"'*,{name}=NAME'" if is_all else f"'{name}=NAME'"
    return (
        f"{option} {name!r}: the output has its own column with that name. Keep it under another name with "
        f"--keep-columns {renaming}{choice}."
    )


def _notes(left_out: Sequence[str]) -> Iterator[str]:
    if left_out:
        example = "completion" if "completion" in left_out else left_out[0]
        yield (
            f"not kept of the earlier run, because this run has such columns, too: {', '.join(left_out)}; "
            f"--keep-columns '*,{example}=NAME' keeps one under another name"
        )


def _renamed(metadata: Mapping[bytes, bytes] | None, pairs: Sequence[tuple[str, str]]) -> dict[bytes, bytes] | None:
    """Return a schema's metadata with Hugging Face's descriptions of columns under their new names."""
    if not metadata or KEY not in metadata:
        return None if metadata is None else dict(metadata)
    content: Any = json.loads(metadata[KEY])
    features = content["info"]["features"]
    content["info"]["features"] = {name: features[column] for column, name in pairs if column in features}
    return {**metadata, KEY: json.dumps(content).encode()}


def features_of(columns: Columns, kept: KeptColumns) -> bytes:
    """Return Hugging Face's description of the output's columns, so that class labels and the like survive.

    Raises:
        UsageError: a kept column has a type that ``datasets`` cannot describe.
    """
    import datasets

    for field in kept.schema:
        try:
            datasets.Features.from_arrow_schema(pa.schema([field]))
        except Exception as error:
            if not is_foreign(error):
                raise
            raise UsageError(f"--keep-columns {field.name}: {first_line(error)} Leave the column out.") from None
    full = columns.schema(kept.schema)
    content: bytes = datasets.Features.from_arrow_schema(full).arrow_schema.metadata[b"huggingface"]
    return content

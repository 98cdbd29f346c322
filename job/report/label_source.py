"""Which column of a run holds its labels: what its modes say, or what the user names."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from job.errors import UsageError
from job.modes.mode import LabelColumn
from job.output.parts.manifest import Manifest
from job.wording import meant, no_column


def find_labels(manifest: Manifest, schema: pa.Schema, wanted: str | None) -> LabelColumn:
    """Return the column with the labels.

    Args:
        schema: of the parts.
        wanted: what ``--label`` names: a column, or a field of ``parsed``, with or without that name in front.

    Raises:
        UsageError: it does not exist; or none is wanted, and the run has none or several that are alike.
    """
    known = labels_of(manifest)
    if wanted is not None:
        return _named(wanted, known, schema)
    best = [column for column in known if column.rank == max(each.rank for each in known)]
    if len(best) == 1:
        return best[0]
    if best:
        names = " or ".join(f"--label {column.name}" for column in best)
        raise UsageError(f"The run has several labels for a row. Choose one: {names}.")
    if lists := [field.name for field in schema if field.name == "labels" and pa.types.is_list(field.type)]:
        raise UsageError(
            f"The model gives each row any number of labels (column {lists[0]}), and a report is about one. Name a "
            "column with one label with --label."
        )
    raise UsageError(
        "The run has no column of labels: they come from --choices, --task classify, --extract, --aggregate, or a "
        f"property with an enum in --json-schema. Name a column with --label. Columns: {', '.join(schema.names)}."
    )


def has_labels(manifest: Manifest) -> bool:
    """Whether a run has labels of its own accord."""
    return bool(labels_of(manifest))


def labels_of(manifest: Manifest) -> list[LabelColumn]:
    """Return all columns of labels that the run's modes know of."""
    found = [column for mode in manifest.modes for column in mode.label_columns()]
    classes = next((column.classes for column in found if column.classes and "." not in column.name), ())
    # A vote over choices is on the choices; one over answers, which have no classes, is on any texts.
    is_on_answers = any(column.name == "answer" for column in found)
    return [
        replace(column, classes=classes) if column.is_of_row and not column.classes and not is_on_answers else column
        for column in found
    ]


def _named(wanted: str, known: Sequence[LabelColumn], schema: pa.Schema) -> LabelColumn:
    fields = dict(_fields(schema))
    name = wanted if wanted in fields else f"parsed.{wanted}"
    if name not in fields:
        close = meant(wanted, fields)
        if close is None or "." not in close:
            raise UsageError(f"--label: the run has {no_column(wanted, fields)}.")
        raise UsageError(f"--label: the run has no column {wanted!r}. Did you mean {close!r}?")
    for column in known:
        if column.name == name:
            return column
    return LabelColumn(name=name)


def _fields(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Return the columns that may hold labels, and the fields of columns that are structs."""
    found = []
    for field in schema:
        if pa.types.is_struct(field.type):
            found += [(f"{field.name}.{inner.name}", inner.type) for inner in field.type]
        else:
            found.append((field.name, field.type))
    return found

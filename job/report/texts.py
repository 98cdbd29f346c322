"""Columns of any type as labels, which are texts."""

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from job.errors import UsageError


def as_labels(column: pa.ChunkedArray, names: tuple[str, ...], what: str) -> pa.ChunkedArray:
    """Return a column as texts without the white space around them: [rows] string. An empty text is null.

    Truth values become ``true`` and ``false``, whole numbers are written without a point.

    Args:
        names: of the classes, if the column holds their indices, as ``datasets`` stores them.
        what: the column, for messages.

    Raises:
        UsageError: it holds lists, objects or bytes.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_labels(column.cast(kind.value_type), names, what)
    if names and pa.types.is_integer(kind):
        in_range = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
        return pa.chunked_array([pa.array(names)]).take(pc.if_else(in_range, column, pa.scalar(None, kind)))
    if pa.types.is_floating(kind):
        is_whole = pc.all(pc.equal(column, pc.floor(column))).as_py()
        column = column.cast(pa.int64()) if is_whole and _fits(column) else column
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind) or pa.types.is_null(kind)):
        raise UsageError(f"{what} holds {kind} values. Name a column of texts, numbers or truth values.")
    texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def names_of_classes(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """Return the names of the classes whose indices a column holds (``datasets.ClassLabel``); none if it is another."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = features[name]
        return tuple(found["names"]) if found.get("_type") == "ClassLabel" else ()
    except (LookupError, TypeError, ValueError, AttributeError):
        return ()


def column_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column, or a field of one: ``a.b``."""
    if name in table.column_names:
        return table[name]
    outer, _, inner = name.partition(".")
    found = pc.struct_field(table[outer], inner)
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def _fits(column: pa.ChunkedArray) -> bool:
    bounds: Mapping[str, float | None] = pc.min_max(column).as_py()
    return all(bound is not None and abs(bound) < 2**53 for bound in bounds.values())


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))

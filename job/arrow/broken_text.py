"""Text whose bytes are no UTF-8. Arrow takes it unseen; most readers of what we write would refuse the whole file."""

from typing import Any

import pyarrow as pa

from job.arrow.types import change_leaves, is_text, validate, with_raw_text, without_times
from job.records import RowError


def mend_text(table: pa.Table) -> tuple[pa.Table, dict[int, RowError]]:
    """Put U+FFFD in the place of bytes that are no text.

    Returns:
        The table, and which rows had such bytes.
    """
    errors: dict[int, RowError] = {}
    if _is_sound(table):
        return table, errors
    for idx, field in enumerate(table.schema):
        raw_type = with_raw_text(field.type)
        if raw_type == without_times(field.type) or _is_sound(table.select([idx])):
            continue
        values = table.column(idx).cast(raw_type).to_pylist()
        for row_idx, value in enumerate(values):
            try:
                _decode(value, field.type, "strict")
            except UnicodeDecodeError as error:
                errors.setdefault(row_idx, RowError("invalid_unicode", f"column {field.name!r}: {error}"))
        texts = [_decode(value, field.type, "replace") for value in values]
        table = table.set_column(idx, field, _array_of(texts, field.type))
    return table, errors


def _array_of(texts: list[Any], data_type: pa.DataType) -> pa.Array:
    # Not every release of pyarrow makes dictionaries of large strings from Python's values.
    plain = data_type.value_type if pa.types.is_dictionary(data_type) else without_times(data_type)
    return pa.array(texts, plain).cast(data_type)


def _is_sound(table: pa.Table) -> bool:
    try:
        validate(table)
    except pa.ArrowInvalid:
        return False
    return True


def _decode(value: Any, data_type: pa.DataType, on_error: str) -> Any:
    """Turn raw text within a value of this type into text."""
    return change_leaves(
        value, data_type, lambda leaf, leaf_type: leaf.decode("utf-8", on_error) if is_text(leaf_type) else leaf
    )

"""Rows as Python values. A value that Arrow can hold, but Python or most Parquet readers cannot, makes its row an error
row: text whose bytes are not UTF-8, a date in the year 10000, DuckDB's time of day 24:00:00.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.arrow.json_columns import to_rows
from job.arrow.types import decoded
from job.errors import JobError, first_line
from job.records import RowError

NO_PYTHON_VALUE = (ArithmeticError, ValueError, TypeError, RecursionError, pa.ArrowException)
"""What pyarrow raises on a value that Python cannot represent."""

Values = Mapping[str, Any]
Batch: TypeAlias = pa.Table | pa.RecordBatch


def to_python(table: Batch) -> list[Values | RowError]:
    """Return the values of each row, or an error for the first value in it that Python cannot represent."""
    return _to_python(decoded(table))


def _to_python(table: Batch) -> list[Values | RowError]:
    try:
        return [*_checked(table)]
    except NO_PYTHON_VALUE:
        if len(table) == 1:
            return [_error_of(table)]
    head, tail = _halves(table)
    return _to_python(head) + _to_python(tail)


def _checked(table: Batch) -> Iterable[Values]:
    rows = to_rows(table)
    table.validate(full=True)  # to_rows silently turns 24:00:00 into 00:00:00
    return rows


def _error_of(row: Batch) -> RowError:
    """Return the error of the first column of a row that Python cannot represent."""
    for name in row.column_names:
        try:
            _checked(row.select([name]))
        except UnicodeDecodeError as error:
            return RowError("invalid_unicode", f"column {name!r}: {error}")
        except NO_PYTHON_VALUE as error:
            return RowError("invalid_value", f"column {name!r}, {row.schema.field(name).type}: {first_line(error)}")
    raise AssertionError("each column can be read on its own")


def null_broken(table: pa.Table) -> tuple[pa.Table, dict[int, RowError]]:
    """Replace values that are invalid for their type with nulls: most readers would refuse the whole file.

    Dates that are out of range only for Python are kept.

    Returns:
        The table, and an error for each row that had such a value.

    Raises:
        JobError: a column with such a value may not contain nulls.
    """
    errors: dict[int, RowError] = {}
    for idx, field in enumerate(table.schema):
        column = decoded(table.select([idx]))
        broken = _broken_rows(column)
        if not broken:
            continue
        errors = broken | errors
        if not field.nullable:
            raise JobError(
                f"{next(iter(broken.values()))}. The column may not contain nulls, so this value cannot be left out. "
                "Repair the data, or use a new --output without the column."
            )
        places = pa.array([None if row_idx in broken else row_idx for row_idx in range(len(table))], pa.int64())
        table = table.set_column(idx, field, column.column(0).take(places).cast(field.type))
    return table, errors


def _broken_rows(column: pa.Table, start: int = 0) -> dict[int, RowError]:
    try:
        column.validate(full=True)
        return {}
    except pa.ArrowInvalid:
        if len(column) == 1:
            return {start: _error_of(column)}
    head, tail = _halves(column)
    return _broken_rows(head, start) | _broken_rows(tail, start + len(head))


def _halves(rows: Batch) -> tuple[Batch, Batch]:
    """Return two parts that share no memory: a slice of a list column still fails on bad values outside of it."""
    places = np.arange(len(rows))
    half = len(rows) // 2
    return rows.take(places[:half]), rows.take(places[half:])


def count_values(column: pa.Array | pa.ChunkedArray) -> dict[Any, int]:
    """Return how often each value of a column occurs, without nulls.

    >>> count_values(pa.array(["stop", "length", None, "stop"]))
    {'stop': 2, 'length': 1}
    """
    return {found["values"]: found["counts"] for found in pc.value_counts(column.drop_null()).to_pylist()}

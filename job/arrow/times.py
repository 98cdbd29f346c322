"""Dates beyond the years 1 to 9999, and times of day from 24:00:00 on. Arrow and Parquet have them, Python does not,
and Arrow's own texts are wrong beyond the year 32,767.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.arrow.json_columns import to_rows
from job.arrow.types import change_leaves, to_integers, without_times

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""How many of each are a second."""

FIRST_DAY, LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31, in days from 1970-01-01."""

DAY_SECS = 86_400


def to_python(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as Python's values, or text in the place of a time that Python does not have."""
    try:
        batch.validate(full=True)  # Python would take 24:00:00 for 00:00:00 without a word
        return to_rows(batch)
    except (ArithmeticError, ValueError):
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            return to_python(batch.slice(0, half)) + to_python(batch.slice(half))
    [row] = to_rows(to_integers(batch))
    return [{field.name: change_leaves(row[field.name], field.type, _restore) for field in batch.schema}]


def _restore(value: Any, data_type: pa.DataType) -> Any:
    """Make a time of its integer."""
    if data_type == without_times(data_type):
        return value
    array = pa.array([value], without_times(data_type)).cast(data_type)
    try:
        array.validate(full=True)
        return array[0].as_py()
    except (ArithmeticError, ValueError):
        return text_of(value, data_type)


def to_texts(column: pa.Array) -> pa.Array:
    """Return a column of dates or timestamps as texts: Arrow's where they are right."""
    texts = column.cast(pa.string())
    is_right = _is_within_python(column)
    if pc.all(is_right).as_py() is not False:
        return texts
    values = column.cast(without_times(column.type)).to_pylist()
    own = [None if value is None else text_of(value, column.type).replace("T", " ") for value in values]
    return pc.if_else(is_right, texts, pa.array(own, pa.string()))


def _is_within_python(column: pa.Array) -> pa.Array:
    per_day = 1 if pa.types.is_date32(column.type) else DAY_SECS * UNITS[_unit(column.type)]
    days = pc.divide(column.cast(without_times(column.type)), pa.scalar(per_day, without_times(column.type)))
    # Divisions are rounded towards zero, and zones move times by up to a day: the first and last days are left out.
    return pc.and_(pc.greater(days, FIRST_DAY), pc.less(days, LAST_DAY))


def text_of(value: int, data_type: pa.DataType) -> str:
    """Return a date or a time as text in ISO 8601's form.

    >>> text_of(2**63 - 1, pa.timestamp("us")), text_of(86_400_000, pa.time32("ms"))
    ('294247-01-10T04:00:54.775807', '24:00:00')
    """
    if pa.types.is_date32(data_type):
        return str(np.datetime64(value, "D"))
    unit = _unit(data_type)
    if pa.types.is_time(data_type):
        secs, rest = divmod(value, UNITS[unit])
        fraction = f".{rest:0{len(str(UNITS[unit])) - 1}}" if rest else ""
        return f"{secs // 3600:02}:{secs // 60 % 60:02}:{secs % 60:02}{fraction}"
    if pa.types.is_duration(data_type):
        return str(value / UNITS[unit])
    text = str(np.array([value], f"datetime64[{unit}]")[0])
    if pa.types.is_date(data_type):
        return text.partition("T")[0]
    return text if data_type.tz is None else f"{text}+00:00"


def _unit(data_type: pa.DataType) -> str:
    return "ms" if pa.types.is_date64(data_type) else str(data_type.unit)

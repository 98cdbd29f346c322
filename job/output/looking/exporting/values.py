"""Values as text: as JSON, and as the cells of a table that knows no lists."""

import base64
import datetime
import json
import math
from typing import Any

import pyarrow as pa

from job.arrow.json_columns import to_rows
from job.errors import UsageError


def to_python(batch: pa.RecordBatch, start: int) -> list[dict[str, Any]]:
    """Return rows as Python's values.

    Args:
        start: the position of the first row in what is exported.

    Raises:
        UsageError: one has a value that Python does not have: a date beyond the years 1 to 9999, a time of day from
            24:00:00 on, or a very long duration.
    """
    try:
        batch.validate(full=True)  # Python would take 24:00:00 for 00:00:00 without a word
        return to_rows(batch)
    except (ArithmeticError, ValueError):
        if batch.num_rows > 1:
            half = batch.num_rows // 2  # taken, not sliced: Arrow validates all of what a slice is of
            first, second = (batch.take(pa.array(part)) for part in (range(half), range(half, batch.num_rows)))
            return to_python(first, start) + to_python(second, start + half)
        if batch.num_columns > 1:
            for name in batch.schema.names:
                to_python(batch.select([name]), start)
        raise UsageError(
            f"Row {start} has a date, time or duration in column {batch.schema.names[0]!r} that cannot be written as "
            "text. Leave the column out with --columns, or take --format parquet."
        ) from None


def to_json(value: Any) -> str:
    """Return a value as JSON. What JSON has no word for becomes text; infinity and NaN become null.

    >>> to_json({"a": [1, float("nan")], "b": b"hi", "c": datetime.date(2026, 1, 2)})
    '{"a": [1, null], "b": "aGk=", "c": "2026-01-02"}'
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def to_cell(value: Any) -> str | None:
    """Return a value as the text of a cell: lists and objects as JSON, a text as it is, null as None.

    >>> to_cell([1, 2]), to_cell("a"), to_cell(b"hi"), to_cell(None)
    ('[1, 2]', 'a', 'aGk=', None)
    """
    if value is None or isinstance(value, str):
        return value
    plain = value if isinstance(value, list | dict) else _plain(value)
    return plain if isinstance(plain, str) else to_json(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value

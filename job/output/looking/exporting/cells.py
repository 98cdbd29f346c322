"""Values as text: JSON, and cells of a table that cannot hold lists."""

import base64
import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from job.arrow.values import to_python
from job.errors import JobError
from job.records import RowError


def rows_of(batch: pa.RecordBatch) -> list[Mapping[str, Any]]:
    """Return rows as Python values.

    Raises:
        JobError: Python cannot represent a value, such as a date in the year 10000.
    """
    rows: list[Mapping[str, Any]] = []
    for row in to_python(batch):
        if isinstance(row, RowError):
            raise JobError(f"{row.detail}. Leave the column out with --columns, or export with --format parquet.")
        rows.append(row)
    return rows


def to_json(value: Any) -> str:
    """Return a value as JSON. Types that JSON lacks become text; infinity and NaN become null.

    >>> to_json({"a": [1, float("nan")], "b": b"hi", "c": datetime.date(2026, 1, 2)})
    '{"a": [1, null], "b": "aGk=", "c": "2026-01-02"}'
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def to_cell(value: Any) -> str | None:
    """Return a value as the text of a cell: lists and objects as JSON, text unchanged, null as None.

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

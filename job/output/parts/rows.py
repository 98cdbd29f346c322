"""Converts completions to Arrow and back. Columns go by name: missing ones are null, unknown ones are ignored."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from job.output.parts.part_schema import BASE
from job.records import Completion, RowError

_BASE_NAMES = frozenset(BASE.names)


def to_batch(completions: Iterable[Completion], schema: pa.Schema) -> pa.RecordBatch:
    """Turn completions into a batch with the columns of a schema."""
    rows = list(completions)
    return pa.record_batch([pa.array(_column(rows, field.name), field.type) for field in schema], schema=schema)


def from_batch(batch: pa.RecordBatch) -> Iterator[Completion]:
    """Yield the completions of a batch of a journal or a part."""
    for row in batch.to_pylist():
        yield Completion(
            row_idx=row["row_idx"],
            sample_idx=row["sample_idx"],
            prompt=row.get("prompt"),
            completion=row["completion"],
            finish_reason=row["finish_reason"],
            num_prompt_tokens=row["num_prompt_tokens"],
            num_completion_tokens=row["num_completion_tokens"],
            error=None if row["error"] is None else RowError.parse(row["error"]),
            values={name: value for name, value in row.items() if name not in _BASE_NAMES and value is not None},
        )


def _column(rows: list[Completion], name: str) -> list[Any]:
    if name == "error":
        return [None if row.error is None else str(row.error) for row in rows]
    if name == "error_kind":
        return [None if row.error is None else row.error.kind for row in rows]
    if name in _BASE_NAMES:
        return [getattr(row, name) for row in rows]
    return [row.values.get(name) for row in rows]

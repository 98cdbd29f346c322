"""Converts completions to Arrow and back. Columns go by name: missing ones are null, unknown ones are ignored."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.output.parts.part_schema import BASE
from job.records import Completion, RowError

_BASE_NAMES = frozenset(BASE.names)


def to_batch(completions: Iterable[Completion], schema: pa.Schema) -> pa.RecordBatch:
    """Turn completions into a batch with the columns of a schema."""
    rows = list(completions)
    return pa.record_batch([_array(_column(rows, field.name), field.type) for field in schema], schema=schema)


def from_batch(batch: pa.RecordBatch) -> Iterator[Completion]:
    """Yield the completions of a batch of a journal or a part."""
    matrices = {name: _matrices(batch[name]) for name in batch.schema.names if _is_matrix(batch[name].type)}
    matrices |= {name: _vectors(batch[name]) for name in batch.schema.names if _is_vector(batch[name].type)}
    for idx, row in enumerate(batch.drop_columns(list(matrices)).to_pylist()):
        row |= {name: values[idx] for name, values in matrices.items()}
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


def _is_matrix(data_type: pa.DataType) -> bool:
    """Whether the values of a type are matrices: lists of lists of one length."""
    return bool(pa.types.is_list(data_type) and pa.types.is_fixed_size_list(data_type.value_type))


def _is_vector(data_type: pa.DataType) -> bool:
    """Whether the values of a type are vectors: lists of numbers of one length."""
    return bool(pa.types.is_fixed_size_list(data_type) and pa.types.is_primitive(data_type.value_type))


def _array(values: list[Any], data_type: pa.DataType) -> pa.Array:
    """Return values as an array. Matrices and vectors are NumPy's: as lists, those of a shard would take gigabytes.
    What is masked in matrices becomes null."""
    if _is_vector(data_type):
        return _array_of_vectors(values, data_type)
    if not _is_matrix(data_type):
        return pa.array(values, data_type)
    inner, dtype = data_type.value_type, data_type.value_type.value_type.to_pandas_dtype()
    given = [value for value in values if value is not None]
    numbers = np.concatenate([np.ma.getdata(value).ravel() for value in given]) if given else np.empty(0)
    is_null = None
    if any(isinstance(value, np.ma.MaskedArray) for value in given):
        is_null = np.concatenate([np.ma.getmaskarray(value).ravel() for value in given])
    lengths = [0 if value is None else len(value) for value in values]
    return pa.ListArray.from_arrays(
        pa.array(np.cumsum([0, *lengths]), pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(dtype), mask=is_null), inner.list_size).cast(inner),
        data_type,
        mask=pa.array([value is None for value in values], pa.bool_()),
    )


def _array_of_vectors(values: list[Any], data_type: pa.DataType) -> pa.Array:
    numbers = np.zeros((len(values), data_type.list_size), data_type.value_type.to_pandas_dtype())
    for idx, value in enumerate(values):
        if value is not None:
            numbers[idx] = value
    is_null = pa.array([value is None for value in values], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), data_type.list_size, mask=is_null).cast(
        data_type
    )


def _vectors(array: pa.FixedSizeListArray) -> list[Any]:
    """Return the values of an array of vectors: one-dimensional arrays, or None."""
    size = array.type.list_size
    begin, end = array.offset * size, (array.offset + len(array)) * size
    numbers = array.values.slice(begin, end - begin).to_numpy(zero_copy_only=False).reshape(-1, size)
    return [row if is_valid else None for row, is_valid in zip(numbers, array.is_valid().to_pylist(), strict=True)]


def _matrices(array: pa.ListArray) -> list[Any]:
    """Return the values of an array of matrices: two-dimensional arrays, or None. What is null in them is masked."""
    number, flat = array.type.value_type.list_size, array.flatten().flatten()
    numbers = flat.to_numpy(zero_copy_only=False)
    if flat.null_count:  # numpy has made a float of each number, and nan of each null
        is_null = flat.is_null().to_numpy(zero_copy_only=False)
        dtype = array.type.value_type.value_type.to_pandas_dtype()
        numbers = np.ma.array(np.where(is_null, 0, numbers).astype(dtype), mask=is_null)
    numbers = numbers.reshape(-1, number)
    lengths = [length or 0 for length in pc.list_value_length(array).to_pylist()]
    parts = np.split(numbers, np.cumsum(lengths)[:-1]) if lengths else []
    return [part if is_valid else None for part, is_valid in zip(parts, array.is_valid().to_pylist(), strict=True)]


def num_bytes(table: pa.Table) -> int:
    """Return the memory that rows take, in bytes, without dictionaries, which all rows share."""
    return sum(column.nbytes for column in table.columns if not pa.types.is_dictionary(column.type))


def repeat(table: pa.Table, times: int) -> pa.Table:
    """Return each row this many times. Values are not copied if there is a single row, or ``times`` is 1."""
    if times == 1:
        return table
    if len(table) == 1:
        return pa.concat_tables([table] * times)
    return table.take([row for row in range(len(table)) for _ in range(times)])

"""Arrow types: the ones that every reader supports, and the common type of several types."""

import functools
from collections.abc import Callable

import pyarrow as pa

Change = Callable[[pa.DataType], pa.DataType]


def readable(data_type: pa.DataType) -> pa.DataType:
    """Return the type in which values are kept: views become plain strings or bytes. Parquet has no views, and many of
    Arrow's own functions do not support them.

    >>> str(readable(pa.list_(pa.string_view())))
    'list<item: large_string>'
    """
    return _with_leaves(data_type, _readable_leaf)


def _readable_leaf(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(data_type):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(data_type) else data_type


def decoded(table: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """Return a table whose values Python can have. Dictionaries are decoded: all rows share a dictionary, and so
    any bad value in it; times in a zone that this machine does not know (``Mars/Base``, ``tzutc()``) are given in UTC.
    """
    schema = pa.schema([field.with_type(_with_leaves(field.type, _plain_leaf)) for field in table.schema])
    return table if schema.types == table.schema.types else table.cast(schema)


def _plain_leaf(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(data_type):
        return _plain_leaf(data_type.value_type)
    is_unknown = pa.types.is_timestamp(data_type) and not _is_known_zone(data_type.tz)
    return pa.timestamp(data_type.unit, "UTC") if is_unknown else data_type


@functools.cache
def _is_known_zone(name: str | None) -> bool:
    try:
        return pa.scalar(0, pa.timestamp("s", name)).as_py() is not None
    except Exception:  # pyarrow, zoneinfo and pytz raise several
        return False


def is_text(data_type: pa.DataType) -> bool:
    """Whether a type is text, plain or dictionary-encoded."""
    if pa.types.is_dictionary(data_type):
        return is_text(data_type.value_type)
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def _with_leaves(data_type: pa.DataType, change: Change) -> pa.DataType:
    """Apply ``change`` to the innermost types, within lists and structs."""
    fields = [data_type.field(idx) for idx in range(data_type.num_fields)]
    inner = [field.with_type(_with_leaves(field.type, change)) for field in fields]
    if pa.types.is_struct(data_type):
        return pa.struct(inner)
    if pa.types.is_list(data_type):
        return pa.list_(inner[0])
    if pa.types.is_large_list(data_type):
        return pa.large_list(inner[0])
    if pa.types.is_fixed_size_list(data_type):
        return pa.list_(inner[0], data_type.list_size)
    return change(data_type)


def common_type(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """Return a type that holds the values of both types unchanged; None if there is none.

    For an integer and a double it is the double: an integer that a double cannot hold is detected when it is read.

    >>> str(common_type(pa.int32(), pa.int64())), common_type(pa.string(), pa.int64())
    ('int64', None)
    """
    if left.equals(right) or pa.types.is_null(right):
        return left
    if pa.types.is_null(left):
        return right
    if pa.types.is_struct(left) and pa.types.is_struct(right):
        return _common_struct(left, right)
    if _is_list(left) and _is_list(right):
        item = _common_field(left.value_field, right.value_field)
        is_large = pa.types.is_large_list(left) or pa.types.is_large_list(right)
        return item and (pa.large_list(item) if is_large else pa.list_(item))
    if is_text(left) and is_text(right):
        is_large = pa.types.is_large_string(left) or pa.types.is_large_string(right)
        return pa.large_string() if is_large else pa.string()
    return _common_leaf(left, right)


def _is_list(data_type: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(data_type) for is_kind in kinds)


def _common_struct(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """Return a struct with the fields of both. A field that one of them lacks is null there."""
    fields: dict[str, pa.Field] = {field.name: field for field in left}
    if len(fields) < left.num_fields or len({field.name for field in right}) < right.num_fields:
        return None
    for field in right:
        common = _common_field(fields[field.name], field) if field.name in fields else field
        if common is None:
            return None
        fields[field.name] = common
    shared = {field.name for field in left} & {field.name for field in right}
    return pa.struct([f if f.name in shared else f.with_nullable(True) for f in fields.values()])


def _common_field(left: pa.Field, right: pa.Field) -> pa.Field | None:
    data_type = common_type(left.type, right.type)
    return data_type and left.with_type(data_type).with_nullable(left.nullable or right.nullable)


def _common_leaf(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    if _kind(left) is None or _kind(left) != _kind(right):
        return None
    if pa.uint64() in (left, right) and any(map(pa.types.is_signed_integer, (left, right))):
        return None
    schemas = [pa.schema([("x", data_type)]) for data_type in (left, right)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _kind(data_type: pa.DataType) -> str | None:
    """Return the kind of a type. Among types of one kind, one holds the values of the others."""
    if pa.types.is_timestamp(data_type):
        return f"timestamp in {data_type.tz}"
    kinds = {
        "number": (pa.types.is_integer, pa.types.is_floating),
        "decimal": (pa.types.is_decimal,),
        "bytes": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
        "date": (pa.types.is_date,),
        "time": (pa.types.is_time,),
        "duration": (pa.types.is_duration,),
    }
    return next((kind for kind, tests in kinds.items() if any(is_kind(data_type) for is_kind in tests)), None)

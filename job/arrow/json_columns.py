"""Decodes columns of mixed types, which ``datasets`` stores as JSON text (Arrow's extension type ``arrow.json``)."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa


def to_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows as Python values, with JSON text replaced by the value that it encodes."""
    values: list[dict[str, Any]] = table.to_pylist()
    for field in table.schema:
        decode = _json_decoder(field.type)
        if decode is not None:
            for row in values:
                row[field.name] = decode(row[field.name])
    return values


def _json_decoder(data_type: pa.DataType) -> Callable[[Any], Any] | None:
    """Return a function that parses the JSON text inside values of this type; None if they contain no JSON text."""
    if isinstance(data_type, pa.BaseExtensionType):
        return _parse_json if data_type.extension_name == "arrow.json" else None
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        item = _json_decoder(data_type.value_type)
        return item and (lambda values: None if values is None else [item(value) for value in values])
    if pa.types.is_struct(data_type):
        inner = {field.name: decode for field in data_type if (decode := _json_decoder(field.type))}
        return (
            (lambda value: None if value is None else {k: inner[k](v) if k in inner else v for k, v in value.items()})
            if inner
            else None
        )
    return None


def _parse_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)

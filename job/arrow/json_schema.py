"""JSON schemas: how a run tightens the schema that it is given, and the Arrow column for the values it describes.

A schema is a JSON value as ``json.loads`` returns it. A ``Shape`` says how the values of a schema, or of a part of it,
are stored in Arrow: as typed values if the schema maps cleanly to a type, else as strings with their JSON text.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from job.errors import UsageError

_SCHEMA = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_SCHEMA_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SCHEMA_DICT = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are schemas, lists of schemas, or schemas by name. Other keywords hold plain values."""

_MENTION_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_COMBINES = ("anyOf", "oneOf", "allOf", "$ref")
_REMARKS = ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly")

INT64 = range(-(2**63), 2**63)


Path = tuple[str | int, ...]
"""The keys that lead from a schema to a part of it."""


class DoesNotFit(Exception):
    """The column cannot hold this value."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How JSON values are stored in Arrow. Any of them may be null."""

    kind: str = "json"
    """``json`` (the JSON text), ``string``, ``integer``, ``number``, ``boolean``, ``array`` or ``object``."""
    item: "Shape | None" = None
    """The shape of an array's items."""
    members: tuple[tuple[str, "Shape"], ...] = field(default=())
    """The names and shapes of an object's properties."""

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of a column that holds such values."""
        if self.item is not None:
            return pa.list_(self.item.arrow_type)
        if self.members:
            return pa.struct([pa.field(name, shape.arrow_type) for name, shape in self.members])
        return {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}.get(self.kind, pa.string())

    def convert(self, value: Any) -> Any:
        """Return a parsed value in the form that Arrow accepts.

        Raises:
            DoesNotFit: its column cannot hold it, for example an integer of 30 digits.
        """
        if self.kind == "json":
            return _json_text(value)
        if value is None:
            return None
        if self.item is not None and isinstance(value, list):
            return [self.item.convert(element) for element in value]
        if self.members and isinstance(value, dict):
            shapes = dict(self.members)
            if not value.keys() <= shapes.keys():
                raise DoesNotFit(f"the column has no field {min(value.keys() - shapes.keys())!r}")
            return {name: shapes[name].convert(member) for name, member in value.items()}
        return _scalar(self.kind, value)


def read_schema(text: str) -> Any:
    """Parse the text of a schema.

    Raises:
        UsageError: the text is not JSON, or not an object.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--json-schema is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--json-schema is a JSON {type(schema).__name__}; a schema must be an object.")
    return schema


def closed(schema: Any) -> Any:
    """Return a schema in which objects have only the properties it names, unless the schema mentions further ones.

    JSON schema allows additional properties by default; small models would invent some, and a typed column cannot hold
    them. A schema that combines several descriptions of one object is not changed: each would forbid the properties
    that the others name.
    """
    return schema if any(_combines(inner) for _, inner in walk(schema)) else _close(schema)


@functools.cache
def shape_of(text: str) -> Shape:
    """Return the shape of the values that a schema, given as text, describes."""
    root = closed(read_schema(text))
    return _shape(root, root, ())


def parse(text: str, shape: Shape) -> Any:
    """Parse a JSON text into a value in the form that Arrow accepts.

    Raises:
        DoesNotFit: the text is not JSON, or its column cannot hold the value.
    """
    try:
        return shape.convert(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise DoesNotFit(str(error)) from None


def _json_text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)  # JSON has 1e999, but not the infinity it is read as
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: JSON can escape it, but UTF-8 cannot encode it
        return json.dumps(value)
    return text


def _scalar(kind: str, value: Any) -> Any:
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "integer" and type(value) is int and value in INT64:
        return value
    if kind == "number" and type(value) in (int, float):
        try:
            if math.isfinite(float(value)):
                return float(value)
        except OverflowError:
            pass
    if kind == "string" and isinstance(value, str):
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            pass
    raise DoesNotFit(f"{str(value)[:40]!r} is not a valid {kind}, or is too large for the column")


def walk(schema: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a schema and all schemas nested in it, each with the keys that lead there."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for keyword, value in schema.items():
        for where, inner in _schemas_under(keyword, value):
            yield from walk(inner, (*path, keyword, *where))


def _schemas_under(keyword: str, value: Any) -> Iterator[tuple[Path, Any]]:
    if keyword in _SCHEMA_LIST and isinstance(value, list):
        yield from (((idx,), inner) for idx, inner in enumerate(value))
    elif keyword in _SCHEMA_DICT and isinstance(value, dict):
        yield from (((name,), inner) for name, inner in value.items())
    elif keyword in _SCHEMA:
        yield (), value


def _combines(schema: Mapping[str, Any]) -> bool:
    return "allOf" in schema or ("properties" in schema and any(keyword in schema for keyword in _COMBINES))


def _close(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    copy: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _SCHEMA_LIST and isinstance(value, list):
            copy[keyword] = [_close(inner) for inner in value]
        elif keyword in _SCHEMA_DICT and isinstance(value, dict):
            copy[keyword] = {name: _close(inner) for name, inner in value.items()}
        else:
            copy[keyword] = _close(value) if keyword in _SCHEMA else value
    if "properties" in schema and not _mentions_others(schema):
        copy["additionalProperties"] = False
    return copy


def _mentions_others(schema: Mapping[str, Any]) -> bool:
    """Whether an object's schema mentions properties that it does not describe."""
    properties, required = schema["properties"], schema.get("required", ())
    are_lists = isinstance(properties, dict) and isinstance(required, list | tuple)
    return any(keyword in schema for keyword in _MENTION_OTHERS) or (
        are_lists and any(name not in [*properties] for name in required)
    )


def _shape(schema: Any, root: Any, path: tuple[str, ...]) -> Shape:
    """Return the shape of a schema.

    Args:
        path: the references that led here. A reference that occurs twice is recursive.
    """
    if not isinstance(schema, dict):
        return Shape()
    schema = {keyword: value for keyword, value in schema.items() if keyword not in _REMARKS}
    if "$ref" in schema:
        reference = str(schema["$ref"])
        is_alone = schema.keys() <= {"$ref", "$defs", "definitions", "$schema", "$id"}
        if not is_alone or reference in path:
            return Shape()
        return _shape(_resolve(reference, root), root, (*path, reference))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return _shape_of_any(schema, keyword, root, path)
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return _shape_of_values(values) if isinstance(values, list) else Shape()
    if "allOf" in schema:
        return Shape()
    return _shape_of_type(schema, root, path)


def _shape_of_any(schema: Mapping[str, Any], keyword: str, root: Any, path: tuple[str, ...]) -> Shape:
    """Return the shape that all alternatives except null share; JSON text if they share none."""
    if schema.keys() - {keyword, "$defs", "definitions", "$schema", "$id"} or not isinstance(schema[keyword], list):
        return Shape()
    alternatives = [inner for inner in schema[keyword] if not _is_null(inner)]
    shapes = {_shape(inner, root, path) for inner in alternatives}
    return shapes.pop() if len(shapes) == 1 else Shape()


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and (schema.get("type") == "null" or schema.get("const", 0) is None)


def _shape_of_values(values: Sequence[Any]) -> Shape:
    kinds = {str: "string", int: "integer", float: "number", bool: "boolean"}
    found = {type(value) for value in values if value is not None}
    if found == {int, float}:
        found = {float}
    return Shape(kinds.get(found.pop(), "json")) if len(found) == 1 else Shape()


def _shape_of_type(schema: Mapping[str, Any], root: Any, path: tuple[str, ...]) -> Shape:
    named = schema.get("type")
    types = [name for name in (named if isinstance(named, list) else [named]) if name != "null"]
    if len(types) != 1:
        return Shape()
    if types[0] in ("string", "integer", "number", "boolean"):
        return Shape(types[0])
    if types[0] == "array" and isinstance(schema.get("items"), dict) and "prefixItems" not in schema:
        return Shape("array", item=_shape(schema["items"], root, path))
    properties = schema.get("properties")
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    # Neither Parquet nor its readers support a struct without members, or a member without a name.
    if types[0] == "object" and isinstance(properties, dict) and properties and is_closed and "" not in properties:
        return Shape("object", members=tuple((name, _shape(inner, root, path)) for name, inner in properties.items()))
    return Shape()


def _resolve(reference: str, root: Any) -> Any:
    """Return the schema that a reference points to.

    None if it points outside this document or to nothing, or is more than a plain JSON pointer: an anchor, text with
    escapes, or relative to the ``$id`` of a part.
    """
    pointer = reference[1:]
    if reference[:1] != "#" or (pointer and pointer[0] != "/") or "%" in pointer or _has_inner_ids(root):
        return None
    found = root
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def _has_inner_ids(root: Any) -> bool:
    return any("$id" in inner for path, inner in walk(root) if path)


def enums_of(text: str) -> dict[str, tuple[str, ...]]:
    """Return the properties of a schema's object that are one of some texts, numbers or truth values, and these.

    >>> enums_of('{"type": "object", "properties": {"a": {"enum": ["x", "y", null]}, "b": {"type": "string"}}}')
    {'a': ('x', 'y')}
    """
    root = read_schema(text)
    found: dict[str, tuple[str, ...]] = {}
    for name, inner in (root.get("properties") or {}).items():
        inner = _resolve(inner["$ref"], root) if isinstance(inner, dict) and "$ref" in inner else inner
        values = inner.get("enum", [True, False] * (inner.get("type") == "boolean")) if isinstance(inner, dict) else []
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values if value is not None]
        found |= {name: tuple(texts)} if len(texts) > 1 else {}
    return found

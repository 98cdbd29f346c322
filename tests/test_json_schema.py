"""What a run makes of a schema: closed objects, and the Arrow column of its values."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.arrow.json_schema import DoesNotFit, Shape, closed, parse, read_schema, shape_of
from job.errors import UsageError

STRING, JSON = pa.string(), pa.string()


def type_of(schema: Any) -> pa.DataType:
    """Return the type of a member, so that text and string can be told apart by ``shape``."""
    return shape_of(json.dumps(schema)).arrow_type


def kind_of(schema: Any) -> str:
    return shape_of(json.dumps(schema)).kind


def struct(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "string"),
        ({"type": "string", "format": "date", "maxLength": 10, "title": "Day"}, "string"),
        ({"type": "integer", "minimum": 3}, "integer"),
        ({"type": "number"}, "number"),
        ({"type": "boolean"}, "boolean"),
        ({"type": ["integer", "null"]}, "integer"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "boolean"),
        ({"oneOf": [{"const": None}, {"type": "number"}]}, "number"),
        ({"anyOf": [{"const": "a"}, {"enum": ["b", "c"]}]}, "string"),
        ({"enum": ["a", "b", None]}, "string"),
        ({"enum": [1, 2]}, "integer"),
        ({"enum": [1, 2.5]}, "number"),
        ({"const": True}, "boolean"),
        ({"enum": [True, 1]}, "json"),
        ({"enum": ["a", 1]}, "json"),
        ({"enum": [None]}, "json"),
        ({"const": {"a": 1}}, "json"),
        ({"type": "null"}, "json"),
        ({}, "json"),
        ({"type": ["string", "integer"]}, "json"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "json"),
        ({"anyOf": [{"type": "string"}], "minLength": 3}, "json"),
        ({"allOf": [{"type": "string"}]}, "json"),
        ({"type": "array"}, "json"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}, "json"),
        ({"type": "object"}, "json"),
        ({"type": "object", "properties": {}}, "json"),
        ({"type": "object", "properties": {"": {"type": "string"}}}, "json"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True}, "json"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"b": {}}}, "json"),
        ({"properties": {"a": {"type": "string"}}}, "json"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}, "integer"),
        ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "integer"}}}, "integer"),
        ({"$ref": "#/$defs/x", "description": "x", "$defs": {"x": {"type": "integer"}}}, "integer"),
        ({"$ref": "#/$defs/x", "minimum": 3, "$defs": {"x": {"type": "integer"}}}, "json"),
        ({"$ref": "#/nowhere"}, "json"),
        ({"$ref": "https://example.org/schema"}, "json"),
        ({"$ref": "#"}, "json"),
    ],
)
def test_values_of_one_kind_are_typed_and_all_others_are_json_text(schema: Any, kind: str) -> None:
    assert kind_of(schema) == kind
    expected = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}.get(kind, pa.string())
    assert type_of(schema) == expected


def test_objects_and_arrays_are_structs_and_lists() -> None:
    """A part that does not map cleanly is text, and the rest is typed all the same."""
    schema = struct(
        a={"type": "array", "items": struct(b={"type": "integer"}, c={"type": "object"})},
        d={"anyOf": [{"$ref": "#/$defs/d"}, {"type": "null"}]},
    )
    schema["$defs"] = {"d": struct(e={"type": "number"})}
    item = pa.struct([("b", pa.int64()), ("c", JSON)])
    assert type_of(schema) == pa.struct([("a", pa.list_(item)), ("d", pa.struct([("e", pa.float64())]))])


def test_a_schema_that_describes_itself_is_text_from_where_it_comes_again() -> None:
    schema = {
        "$ref": "#/$defs/node",
        "$defs": {"node": struct(value={"type": "integer"}, next={"$ref": "#/$defs/node"})},
    }
    assert type_of(schema) == pa.struct([("value", pa.int64()), ("next", JSON)])
    value = parse('{"value": 1, "next": {"value": 2}}', shape_of(json.dumps(schema)))
    assert value == {"value": 1, "next": '{"value": 2}'}


def test_objects_that_name_properties_are_closed_wherever_they_stand() -> None:
    schema = {
        "type": "array",
        "items": struct(a=struct(b={}), c={"type": "object"}),
        "$defs": {"d": {"anyOf": [struct(e={}), {"type": "null"}]}},
    }
    result = closed(schema)
    assert result["items"]["additionalProperties"] is False
    assert result["items"]["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in result["items"]["properties"]["c"], "it is a map"
    assert result["$defs"]["d"]["anyOf"][0]["additionalProperties"] is False
    assert "additionalProperties" not in schema["items"], "the original stays"


@pytest.mark.parametrize(
    "schema",
    [
        {**struct(a={}), "additionalProperties": {"type": "string"}},
        {**struct(a={}), "patternProperties": {"^b": {}}},
        {**struct(a={}), "unevaluatedProperties": False},
        {"allOf": [struct(a={}), struct(b={})]},
        {**struct(a={}), "anyOf": [struct(b={})]},
        {**struct(a={}), "$ref": "#/$defs/b", "$defs": {"b": struct(b={})}},
        {**struct(a={}), "required": ["a", "b"]},
        {"const": struct(a={})},
        {"enum": [struct(a={})]},
        {"type": "object", "default": struct(a={})},
    ],
)
def test_what_speaks_of_others_or_combines_objects_is_not_closed(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = struct(properties=struct(items={"type": "string"}), enum={"type": "integer"})
    assert type_of(schema) == pa.struct([("properties", pa.struct([("items", STRING)])), ("enum", pa.int64())])


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("123456789012345678901234567890", {"type": "integer"}),
        ("1e999", {"type": "number"}),
        ("1" * 400, {"type": "number"}),
        ('"\\ud800"', {"type": "string"}),
        ('{"a": 1, "b": 2}', struct(a={"type": "integer"})),
        ("true", {"type": "integer"}),
        ('"3"', {"type": "integer"}),
        ("[1", {"type": "array", "items": {"type": "integer"}}),
        ("[" * 100_000, {"type": "array", "items": {"type": "integer"}}),
        ("", {"type": "integer"}),
    ],
)
def test_what_a_column_cannot_hold_does_not_fit(text: str, schema: Any) -> None:
    with pytest.raises(DoesNotFit):
        parse(text, shape_of(json.dumps(schema)))


def test_json_text_is_kept_whatever_it_holds() -> None:
    assert parse('{"ä": [1, null, 1e3]}', Shape()) == '{"ä": [1, null, 1000.0]}'
    assert parse('"\\ud800"', Shape()) == '"\\ud800"'
    assert parse("null", Shape()) == "null"


def test_values_survive_parquet_and_datasets(tmp_path: Path) -> None:
    """Missing members are null; numbers without a point become float in a column of numbers."""
    schema = struct(
        name={"type": "string"},
        scores={"type": "array", "items": {"type": ["number", "null"]}},
        inner=struct(flag={"type": "boolean"}, free={}),
    )
    shape = shape_of(json.dumps(schema))
    texts = ['{"name": "ä", "scores": [1, null, 2.5], "inner": {"flag": true, "free": [3]}}', "{}"]
    values = [*(parse(text, shape) for text in texts), None]
    pq.write_table(pa.table({"parsed": pa.array(values, shape.arrow_type)}), tmp_path / "values.parquet")
    empty = {"name": None, "scores": None, "inner": None}
    full = {"name": "ä", "scores": [1.0, None, 2.5], "inner": {"flag": True, "free": "[3]"}}
    assert pq.read_table(tmp_path / "values.parquet")["parsed"].to_pylist() == [full, empty, None]
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "values.parquet"), split="train")
    assert loaded["parsed"][0] == full


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[]", "a JSON list"), ("true", "a JSON bool")])
def test_a_schema_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_schema(text)

"""Schemas that people write: each is followed to the letter, or refused, or has a note.

Completions are drawn from the compiled grammar alone, without a model, and checked by jsonschema.
"""

import json
import math
import random
from typing import Any

import jsonschema
import pytest

from job.arrow.json_schema import DoesNotFit, Shape, parse, shape_of
from job.arrow.schema_check import doubts_about
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.structured import StructuredMode
from tests.tiny import make_tokenizer

TOKENS = Tokenizer(make_tokenizer())
MAX_TOKENS = 400


def object_of(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object, all of whose properties are required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def nested(depth: int) -> Any:
    return object_of(k=nested(depth - 1)) if depth else {"type": "boolean"}


FOLLOWED: dict[str, Any] = {
    "addprops": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}},
    "allof": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "anyof_objs": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"k": {"const": "a"}, "x": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["k", "x"],
            },
            {"type": "object", "properties": {"k": {"const": "b"}, "y": {"type": "boolean"}}, "required": ["k", "y"]},
        ]
    },
    "conint": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": -3, "exclusiveMaximum": 12}},
        "required": ["a"],
    },
    "const_num": {"type": "object", "properties": {"v": {"const": 1.0}, "w": {"const": "xé"}}, "required": ["v", "w"]},
    "datetime": {
        "type": "object",
        "properties": {
            "d": {"type": "string", "format": "date"},
            "t": {"type": "string", "format": "date-time"},
            "e": {"type": "string", "format": "email", "maxLength": 12},
            "u": {"type": "string", "format": "uuid"},
            "i": {"type": "string", "format": "ipv4"},
        },
        "required": ["d", "t", "e", "u", "i"],
    },
    "dup_required": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a", "a"]},
    "emptyobj": {"type": "object", "properties": {}, "additionalProperties": False},
    "enum_and_type": {"type": "string", "enum": ["a", 1, "b"]},
    "enum_mixed": {
        "type": "object",
        "properties": {"a": {"enum": [1, "1", None, True, 1.5, {"k": [1]}, 'é"\\']}},
        "required": ["a"],
    },
    "enum_unicode": {"enum": ["正面", "負面", '"quoted"', "back\\slash", "new\nline", "emoji 😀", " lead"]},
    "falseprop": {"type": "object", "properties": {"a": False, "b": {"type": "boolean"}}, "required": ["b"]},
    "floatbounds_int": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0.5, "maximum": 3.5}},
        "required": ["a"],
    },
    "minitems": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 9},
        "minItems": 2,
        "maxItems": 4,
    },
    "minprops": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
        "minProperties": 1,
        "additionalProperties": False,
    },
    "multipleOf_int": {
        "type": "object",
        "properties": {"a": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}},
        "required": ["a"],
    },
    "multipleOf_num": {
        "type": "object",
        "properties": {"a": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3}},
        "required": ["a"],
    },
    "nullable_oas": {
        "type": "object",
        "properties": {"a": {"type": "string", "nullable": True, "maxLength": 3}},
        "required": ["a"],
    },
    "numexcl": {
        "type": "object",
        "properties": {"a": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}},
        "required": ["a"],
    },
    "numrange": {
        "type": "object",
        "properties": {"a": {"type": "number", "minimum": 0, "maximum": 1}},
        "required": ["a"],
    },
    "optional_only": {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 2]}}},
    "patprops": {
        "type": "object",
        "patternProperties": {"^x_[a-c]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "pattern": {
        "type": "object",
        "properties": {
            "z": {"type": "string", "pattern": "^\\d{5}(-\\d{4})?$"},
            "w": {"type": "string", "pattern": "[A-Z]{2}", "maxLength": 6},
        },
        "required": ["z", "w"],
    },
    "pattern_len": {"type": "string", "pattern": "^[a-z]+$", "minLength": 3, "maxLength": 5},
    "prefix": {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    "pydantic_enum": {
        "$defs": {"Car": {"enum": ["sedan", "SUV"], "title": "Car", "type": "string"}},
        "properties": {
            "car": {"$ref": "#/$defs/Car", "description": "kind"},
            "n": {"title": "N", "type": "integer", "maximum": 5, "minimum": 1},
        },
        "required": ["car", "n"],
        "title": "X",
        "type": "object",
    },
    "recursive": {
        "$defs": {
            "n": {
                "type": "object",
                "properties": {
                    "v": {"enum": [0, 1]},
                    "c": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 1},
                },
                "required": ["v", "c"],
            }
        },
        "$ref": "#/$defs/n",
    },
    "ref_anchor": {
        "$defs": {"x": {"$anchor": "X", "enum": [1, 2]}},
        "type": "object",
        "properties": {"a": {"$ref": "#X"}},
        "required": ["a"],
    },
    "ref_defs": {
        "$defs": {"P": {"type": "object", "properties": {"n": {"type": "string", "maxLength": 5}}, "required": ["n"]}},
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}, "q": {"anyOf": [{"$ref": "#/$defs/P"}, {"type": "null"}]}},
        "required": ["p", "q"],
    },
    "ref_id": {
        "$id": "https://ex.org/s",
        "$defs": {"x": {"enum": [1, 2]}},
        "type": "object",
        "properties": {"a": {"$ref": "https://ex.org/s#/$defs/x"}},
        "required": ["a"],
    },
    "ref_props_path": {
        "type": "object",
        "properties": {"a": {"enum": ["u", "v"]}, "b": {"$ref": "#/properties/a"}},
        "required": ["a", "b"],
    },
    "required_unknown": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a", "zz"]},
    "strmin": {"type": "string", "minLength": 3, "maxLength": 3},
    "trueschema": {"type": "object", "properties": {"a": True}, "required": ["a"]},
    "tuple_old": {
        "type": "array",
        "items": [{"const": 1}, {"type": "boolean"}],
        "additionalItems": False,
        "minItems": 2,
    },
    "type_list": {
        "type": ["object", "null"],
        "properties": {"a": {"type": ["integer", "string"], "maxLength": 3, "minimum": 0, "maximum": 9}},
        "required": ["a"],
    },
    "unicode_keys": {
        "type": "object",
        "properties": {"情感": {"enum": ["好", "坏"]}, 'a"b': {"type": "boolean"}, "tab\t": {"type": "null"}},
        "required": ["情感", 'a"b', "tab\t"],
    },
    "ref_escaped": {
        "$defs": {"a b": {"enum": [1, 2]}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a%20b"}},
        "required": ["a"],
    },
    "ref_escaped_twice": {
        "$defs": {"a b": {"enum": ["u"]}, "a%20b": {"enum": [1]}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a%20b"}},
        "required": ["a"],
    },
    "ref_inner_id": {
        "$defs": {"x": {"$id": "t", "enum": [1, 2]}},
        "$id": "https://ex.org/s",
        "type": "object",
        "properties": {"a": {"$ref": "t"}},
        "required": ["a"],
    },
    "ref_inside_inner_id": {
        "$defs": {
            "x": {
                "$id": "https://ex.org/a",
                "$defs": {"y": {"const": 1}},
                "type": "object",
                "properties": {"k": {"$ref": "#/$defs/y"}},
                "required": ["k"],
            },
            "y": {"const": "text"},
        },
        "$ref": "#/$defs/x",
    },
    "ref_to_itself": {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["a"],
    },
    "definitions": {
        "definitions": {"x": {"enum": [1, 2]}},
        "type": "object",
        "properties": {"a": {"$ref": "#/definitions/x"}},
        "required": ["a"],
    },
    "largest": {"enum": [9007199254740991, -9007199254740991]},
    "deep": nested(30),
    "bigenum": {"enum": [f"label-{number:05d}" for number in range(2000)]},
}

REFUSED: dict[str, tuple[Any, str]] = {
    "bigint": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740999}},
            "required": ["a"],
        },
        "minimum at /properties/a is 9007199254740993, which a 64-bit float cannot hold exactly",
    ),
    "contains": (
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 2},
            "contains": {"const": 2},
            "maxItems": 3,
        },
        "at the top: not supported: 'contains'.",
    ),
    "default_title_only": ({"title": "x", "description": "y"}, "it allows any JSON value. Describe the value"),
    "depreq": (
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
            "dependentRequired": {"a": ["b"]},
            "additionalProperties": False,
        },
        "at the top: not supported: 'dependentRequired'.",
    ),
    "enum_empty": ({"enum": []}, "--json-schema cannot"),
    "hugeint": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 99999999999999999990, "maximum": 99999999999999999999}},
            "required": ["a"],
        },
        "minimum at /properties/a is 99999999999999999990, which",
    ),
    "ifthen": (
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "integer", "minimum": 0, "maximum": 3}},
            "required": ["a"],
            "if": {"properties": {"a": {"const": True}}},
            "then": {"required": ["b"]},
        },
        "at the top: not supported: 'if', 'then'.",
    ),
    "minmax_conflict": ({"type": "integer", "minimum": 5, "maximum": 3}, "--json-schema cannot"),
    "not": (
        {"type": "object", "properties": {"a": {"not": {"const": 0}, "type": "integer"}}, "required": ["a"]},
        "at /properties/a: not supported: 'not'.",
    ),
    "oai_wrapper": (
        {
            "name": "x",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
        "the object around it constrains nothing. Give the value of 'schema' alone.",
    ),
    "oneof_overlap": (
        {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 5}, {"type": "integer", "minimum": 3, "maximum": 9}]},
        "at the top: the alternatives of 'oneOf' may overlap. Use 'anyOf'",
    ),
    "pattern_look": (
        {"type": "string", "pattern": "^(?!foo)[a-z]{3}$"},
        "at the top: regex parse error: error: look-around",
    ),
    "unique": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "maxItems": 3, "uniqueItems": True},
        "at the top: not supported: 'uniqueItems'. Leave it out",
    ),
    "a constant": ({"const": 9007199254740993}, "const at the top is 9007199254740993, which"),
    "many digits": ({"const": 10**200}, f"const at the top is 1{'0' * 76}..., which"),
    "a list of constants": (
        {"enum": ["a", {"b": [100000000000000000000]}]},
        "enum at the top is 100000000000000000000",
    ),
    "negative": (
        {"type": "integer", "exclusiveMaximum": -9007199254740992},
        "exclusiveMaximum at the top is -9007199254740992",
    ),
    "step": (
        {"type": "object", "properties": {"a": {"multipleOf": 1152921504606846976}}},
        "multipleOf at /properties/a",
    ),
    "size": (
        {"type": "string", "minLength": 1099511627776},
        "minLength at the top is 1099511627776, above 2147483647. Use less",
    ),
    "infinite": ('{"type": "number", "maximum": 1e400}', "maximum at the top is 1e400, which"),
    "vanishing": ('{"type": "number", "exclusiveMinimum": 1e-400}', "exclusiveMinimum at the top is 1e-400, which"),
    "too small to spell": ('{"type": "number", "minimum": 1e-320}', "minimum at the top is 1e-320, which"),
    "too many digits": ('{"const": 0.10000000000000000001}', "const at the top is 0.10000000000000000001, which"),
    "in a list": ({"anyOf": [{"type": "null"}, {"minimum": 1180591620717411303424}]}, "minimum at /anyOf/1"),
    "misspelled properties": (
        {"type": "object", "propertys": {"a": {"type": "string"}}},
        (
            "'propertys' at the top is not a keyword of JSON Schema, so it would co"
            "nstrain nothing. Did you mean 'properties'?"
        ),
    ),
    "misspelled bound": ({"type": "integer", "minimun": 3}, "Did you mean 'minimum'?"),
    "misspelled deep inside": (
        {"$defs": {"x": {"type": "string", "maxlength": 3}}, "$ref": "#/$defs/x"},
        "'maxlength' at /$defs/x is not a keyword",
    ),
    "Python's style": ({"type": "string", "max_length": 3}, "Did you mean 'maxLength'?"),
    "plural": ({"enums": ["a", "b"]}, "Did you mean 'enum'?"),
    "an old word": ({"type": "integer", "divisibleBy": 3}, "Did you mean 'multipleOf'?"),
    "misspelled required": (
        {"type": "object", "properties": {"label": {"const": 1}}, "required": ["lable"]},
        ("'required' at the top names 'lable', which 'properties' does not describe. Did you mean 'label'?"),
    ),
    "response_format": (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "Give the value of 'json_schema.schema' alone.",
    ),
    "a tool": (
        {"name": "f", "description": "x", "parameters": {"type": "object", "properties": {}}},
        "Give the value of 'parameters' alone.",
    ),
    "nothing": ({}, "it allows any JSON value"),
    "given twice": (
        '{"type": "object", "properties": {"a": {"type": "string"}, "a": {}}}',
        "'a' is given twice in one object, and only the last one counts. Leave one out.",
    ),
    "a type of Python": (
        {"type": "object", "properties": {"a": {"type": "str"}}},
        "at /properties/a: Invalid type: str",
    ),
    "an unknown format": (
        {"type": "object", "properties": {"a": {"type": "string", "format": "password"}}},
        "at /properties/a: Unknown format: password",
    ),
    "a reference to nothing": (
        {"type": "array", "items": {"$ref": "#/$defs/y"}},
        "at /items: Pointer '/$defs/y' does not exist",
    ),
    "an anchor of nothing": ({"type": "array", "items": {"$ref": "#y"}}, "at /items: Anchor 'y' does not exist"),
    "dynamic": (
        {"$defs": {"x": {"$dynamicAnchor": "x", "const": 1}}, "$ref": "#/$defs/x"},
        "at /$defs/x: not supported: '$dynamicAnchor'",
    ),
}

NOTED: dict[str, tuple[Any, str]] = {
    "nullable": (
        {"type": "object", "properties": {"a": {"type": "string", "nullable": True}}},
        "'nullable' at /properties/a has no effect: null is not allowed unless \"type\" lists it",
    ),
    "other words": (
        {"type": "object", "properties": {"a": {"type": "string", "unit": "m"}, "b": {"type": "number", "unit": "s"}}},
        ("'unit' at /properties/a and 1 more is not a keyword of JSON Schema, so it constrains nothing"),
    ),
    "another type": (
        {"type": "string", "maximum": 3},
        "'maximum' at the top constrains nothing: it is for type number, not for string",
    ),
    "a format of numbers": (
        {"type": "integer", "format": "int32"},
        "'format' at the top constrains nothing: it is for type string, not for integer",
    ),
    "no type": (
        {"properties": {"a": {"type": "string"}}},
        'without "type", the schema at the top also allows values that are not of type object',
    ),
    "required": (
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["{x}"]},
        ("'{x}', which 'required' at the top names, may have any value: 'properties' does not describe it"),
    ),
}


def text_of(schema: Any) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def drawn(matcher: Any, seed: int) -> str | None:
    """Return a completion of random tokens that the grammar allows; None if it is long."""
    draw, ids, eos = random.Random(seed), [], TOKENS.inner.eos_token_id
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [number for number in range(len(TOKENS.inner)) if mask[number // 8] >> number % 8 & 1]
        token = eos if eos in allowed and draw.random() < 0.5 else draw.choice(allowed)
        matcher.consume_token(token)
        ids.append(token)
        if len(ids) > MAX_TOKENS:
            return None
    return TOKENS.decode([ids])[0]


def value_of(parsed: Any, shape: Shape) -> Any:
    """Return the JSON value that a column holds, with the JSON text in it decoded."""
    if shape.kind == "json":
        return json.loads(parsed)
    if parsed is not None and shape.members:
        return {name: value_of(parsed[name], inner) for name, inner in shape.members if name in parsed}
    return [value_of(item, shape.item) for item in parsed] if parsed is not None and shape.item else parsed


def is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_schema_is_followed_and_the_column_has_its_values(name: str) -> None:
    schema = FOLLOWED[name]
    text = json.dumps(schema)
    validator = jsonschema.Draft7Validator(schema) if name == "tuple_old" else jsonschema.Draft202012Validator(schema)
    assert [str(doubt) for doubt in doubts_about(text) if doubt.remedy is not None] == []
    shape, num_whole = shape_of(text), 0
    matcher = StructuredMode(json_schema=text).compiled(TOKENS).compile()
    for seed in range(12):
        completion = drawn(matcher.deep_copy(), seed)
        if completion is not None:
            value = json.loads(completion)
            validator.validate(value)
            num_whole += 1
            if is_finite(value):
                assert value_of(parse(completion, shape), shape) == value, completion
            else:
                with pytest.raises(DoesNotFit):
                    parse(completion, shape)
    assert num_whole


def test_a_reference_that_is_no_plain_pointer_makes_json_text() -> None:
    """``#X`` was taken for the root: a struct that no value fitted, and parse_ok false in every row."""
    for name in ("ref_anchor", "ref_id", "ref_escaped", "ref_escaped_twice", "ref_inner_id"):
        assert shape_of(json.dumps(FOLLOWED[name])).members == (("a", Shape()),), name
    assert shape_of(json.dumps(FOLLOWED["definitions"])).members == (("a", Shape("integer")),)


def test_a_number_that_only_json_can_hold_is_no_json_of_infinity() -> None:
    """``1e999`` is JSON, but Python reads it as infinity, which was written as ``Infinity``."""
    with pytest.raises(DoesNotFit):
        parse('{"a": 1e999}', shape_of(json.dumps(FOLLOWED["trueschema"])))


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_followed_is_refused(name: str) -> None:
    schema, message = REFUSED[name]
    mode = StructuredMode(json_schema=text_of(schema))
    refused = [str(doubt) for doubt in mode.doubts() if doubt.remedy is not None]
    if not refused:
        with pytest.raises(UsageError) as caught:
            mode.compiled(TOKENS)
        refused = [str(caught.value)]
    assert message in refused[0] and refused[0].startswith("--json-schema") and "\n" not in refused[0]


@pytest.mark.parametrize("name", NOTED)
def test_what_may_be_meant_has_a_note(name: str) -> None:
    schema, note = NOTED[name]
    doubts = list(doubts_about(text_of(schema)))
    assert [(doubt.problem, doubt.remedy) for doubt in doubts] == [(note, None)]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"title": "Any"}}, "x-order": 1, "additionalProperties": True},
        {"anyOf": [object_of(a={"const": 1}), {"required": ["b"]}]},
        {"type": "object", "properties": {"required": {"type": "string"}, "minimun": {"enum": [1e300 / 1e290]}}},
        {"type": ["string", "null"], "maxLength": 3, "examples": [2**70], "default": 2**70},
    ],
)
def test_plain_schemas_have_no_doubts(schema: Any) -> None:
    """Properties may have any name, and examples any value."""
    assert list(doubts_about(json.dumps(schema))) == []

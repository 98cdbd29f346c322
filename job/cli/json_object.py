"""The type of options whose value is a JSON object: text on the command line, text or a table in a TOML file."""

import json
from typing import Any

import click

from job.errors import shorten


class JsonObject(click.ParamType[str]):
    """A JSON object, as text in which the order of the outermost names does not matter."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text.

        >>> JsonObject().convert('{"b": 1,"a": null}', None, None), JsonObject().convert({"b": [True]}, None, None)
        ('{"a": null, "b": 1}', '{"b": [true]}')
        """
        found = value
        if isinstance(value, str):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError) as error:
                self.fail(f"{shorten(value)} is not JSON: {error}. {_example(value)}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{shorten(value)} is not a JSON object. {_example(value)}", param, ctx)
        try:
            text = json.dumps(dict(sorted(found.items())), ensure_ascii=False, allow_nan=False)
            text.encode()
        except (TypeError, ValueError) as error:  # a date of TOML, NaN, a lone surrogate
            is_number = "float" in str(error)
            reason = "it has NaN or an infinite number, which JSON does not know" if is_number else str(error)
            self.fail(f"{shorten(value)} cannot be written as JSON: {reason}.", param, ctx)
        return text


def _example(value: Any) -> str:
    """Return how to write an object, with the names of a value that was meant as one.

    >>> print(_example("enable_thinking=false"))
    Write '{"enable_thinking": false}'.
    """
    name, equals, literal = str(value).partition("=")
    if not equals or not name.strip().isidentifier():
        return """Write '{"name": value}'."""
    literal = literal.strip()
    known = {"true": True, "false": False, "none": None, "null": None}
    try:
        given = known[literal.lower()] if literal.lower() in known else json.loads(literal)
    except ValueError:
        given = literal
    return f"Write '{json.dumps({name.strip(): given})}'."

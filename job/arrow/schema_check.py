"""What in a JSON schema does not constrain completions as its author meant.

llguidance ignores words that it does not know, as JSON Schema demands, and holds numbers as 64-bit floats; so a
misspelled keyword constrains nothing, and a bound of 17 digits is another number. It reports neither.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from job.arrow.json_schema import Path, walk
from job.errors import Doubt, shorten
from job.wording import listed

_FOR_TYPE = {
    "object": "properties required additionalProperties patternProperties minProperties maxProperties propertyNames "
    "dependentRequired dependentSchemas dependencies unevaluatedProperties",
    "array": "items prefixItems additionalItems minItems maxItems uniqueItems contains minContains maxContains "
    "unevaluatedItems",
    "string": "minLength maxLength pattern format",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
}
_TYPES_OF = {keyword: kind for kind, keywords in _FOR_TYPE.items() for keyword in keywords.split()}
"""The type that each keyword constrains; values of other types always pass it."""

_OTHERS = {
    "select": "type enum const $ref $dynamicRef $recursiveRef anyOf oneOf allOf not if then else",
    "say nothing": "$schema $id id $anchor $dynamicAnchor $recursiveAnchor $vocabulary $comment $defs definitions "
    "title description default examples example deprecated readOnly writeOnly contentEncoding contentMediaType "
    "contentSchema discriminator xml externalDocs",
}
_SELECT, _SAYS_NOTHING = (frozenset(keywords.split()) for keywords in _OTHERS.values())
_KEYWORDS = sorted(_SELECT | _SAYS_NOTHING | _TYPES_OF.keys())

_OLD_WORDS = {"divisibleBy": "multipleOf", "extends": "allOf", "disallow": "not"}

_SIZES = frozenset(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"])

MAX_EXACT = 2**53 - 1
"""The largest whole number that a 64-bit float tells apart from its neighbors."""

MAX_SIZE = 2**31 - 1
MIN_FRACTION = 1e-60
"""llguidance spells bounds out, digit by digit."""


class _Inexact(float):
    """A number that a float cannot hold, with its text."""

    text: str


def doubts_about(text: str) -> Iterator[Doubt]:
    """Yield what is doubtful in the text of a valid JSON object, the gravest first."""
    twice: list[str] = []
    schema = json.loads(text, parse_float=_number, object_pairs_hook=lambda pairs: _unique(pairs, twice))
    for name in dict.fromkeys(twice):
        yield Doubt(f"{name!r} is given twice in one object, and only the last one counts", "Leave one out")
    if not _constrains(schema):
        yield _not_a_schema(schema)
        return
    yield from _number_doubts(schema)
    names = {name for _, inner in walk(schema) for name in _names(inner.get("properties"))}
    notes: dict[str, list[str]] = {}
    for path, inner in walk(schema):
        yield from _word_doubts(path, inner, notes)
        yield from _required_doubts(path, inner, names, notes)
        _note_types(path, inner, notes)
    for note, places in notes.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield Doubt(note.format(place=places[0] + more))


def place(path: Path) -> str:
    """Return where in a schema something is.

    >>> place(()), place(("properties", "a/b"))
    ('at the top', 'at /properties/a~1b')
    """
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in path]
    return f"at /{'/'.join(parts)}" if parts else "at the top"


def place_of(schema: Any, reason: str) -> str | None:
    """Return where in a schema the thing is that llguidance's reason names; None if that cannot be said."""
    if found := re.match(r"Unimplemented keys: (\[.*\])", reason):
        keys = json.loads(found[1])
        places = [place(path) for path, inner in walk(schema) if any(key in inner for key in keys)]
    elif "coerce_one_of" in reason:
        places = [place(path) for path, inner in walk(schema) if "oneOf" in inner]
    else:
        named = re.match(r"(?:Invalid type: |Unknown format: )(.*)|(?:Pointer|Anchor) '(.*)' does not exist", reason)
        words = {word for word in (named.groups() if named else ()) if word}
        words |= {f"#{word}" for word in words}
        places = [
            place(path)
            for path, inner in walk(schema)
            if any(_mentions(inner.get(keyword), words) for keyword in ("type", "format", "$ref"))
            or (isinstance(inner.get("pattern"), str) and inner["pattern"] in map(str.strip, reason.splitlines()))
        ]
    return places[0] if places else None


def _mentions(value: Any, words: set[str]) -> bool:
    return any(str(item) in words for item in (value if isinstance(value, list) else [value]))


def _number(text: str) -> float:
    value = float(text)
    is_held = math.isfinite(value) and Decimal(text) == Decimal(repr(value))
    if is_held and (value == 0 or abs(value) >= MIN_FRACTION):
        return value
    inexact = _Inexact(value)
    inexact.text = text
    return inexact


def _unique(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice += [name for idx, name in enumerate(names) if name in names[:idx]]
    return found


def _constrains(schema: Mapping[str, Any]) -> bool:
    return any(keyword in _SELECT or keyword in _TYPES_OF for keyword in schema) and schema.get("type") != "json_schema"


def _not_a_schema(root: Mapping[str, Any]) -> Doubt:
    """Return what is wrong with an object that constrains nothing: most often, the schema is somewhere inside it."""
    waiting: list[tuple[Path, Any]] = [((name,), value) for name, value in root.items()]
    for path, value in waiting:
        if isinstance(value, dict) and path[0] not in ("$defs", "definitions"):
            if _constrains(value):
                inside = ".".join(map(str, path))
                problem = f"the schema seems to be inside, under {inside!r}: the object around it constrains nothing"
                return Doubt(problem, f"Give the value of {inside!r} alone")
            if len(path) < 3:
                waiting += [((*path, name), inner) for name, inner in value.items()]
    for name in root:
        if meant := _meant(name):
            return _misspelled(name, meant, ())
    return Doubt("it allows any JSON value", 'Describe the value, for example {"type": "object", "properties": ...}')


def _number_doubts(schema: Any) -> Iterator[Doubt]:
    for path, inner in walk(schema):
        for keyword, value in inner.items():
            if keyword in _SIZES and type(value) is int and value > MAX_SIZE:
                problem = f"{keyword} {place(path)} is {shorten(value)}, above {MAX_SIZE}"
                yield Doubt(problem, "Use less, or leave it out")
            elif _TYPES_OF.get(keyword) == "number" or keyword in ("const", "enum"):
                advice = "Write such values as strings" if keyword in ("const", "enum") else "Leave it out"
                for number in _inexact_numbers(value):
                    problem = f"{keyword} {place(path)} is {number}, which a 64-bit float cannot hold exactly"
                    yield Doubt(
                        problem,
                        f"Use whole numbers up to {MAX_EXACT} and fractions of at most 15 digits, or "
                        f"{advice[0].lower()}{advice[1:]}",
                    )


def _inexact_numbers(value: Any) -> Iterator[str]:
    if isinstance(value, _Inexact):
        yield shorten(value.text)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > MAX_EXACT:
        yield shorten(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _inexact_numbers(inner)


def _word_doubts(path: Path, schema: Mapping[str, Any], notes: dict[str, list[str]]) -> Iterator[Doubt]:
    for name in schema:
        if name in _KEYWORDS or name.startswith("x-"):
            continue
        if name == "nullable":
            note = "'nullable' {place} has no effect: null is not allowed unless \"type\" lists it"
        elif meant := _meant(name):
            yield _misspelled(name, meant, path)
            continue
        else:
            note = f"{_braced(name)!r} {{place}} is not a keyword of JSON Schema, so it constrains nothing"
        notes.setdefault(note, []).append(place(path))


def _misspelled(name: str, meant: str, path: Path) -> Doubt:
    problem = f"{name!r} {place(path)} is not a keyword of JSON Schema, so it would constrain nothing"
    return Doubt(problem, f"Did you mean {meant!r}?")


def _meant(name: str) -> str | None:
    """Return the keyword that a word was meant to be.

    >>> [_meant(name) for name in ("propertys", "minimun", "max_length", "Type", "enums", "strict", "unit")]
    ['properties', 'minimum', 'maxLength', 'type', 'enum', None, None]
    """
    if name in _KEYWORDS:
        return None
    plain = {re.sub(r"[^a-z]", "", keyword.lower()): keyword for keyword in reversed(_KEYWORDS)}
    word = re.sub(r"[^a-z]", "", name.lower())
    close = difflib.get_close_matches(word, plain, n=1, cutoff=0.82)
    return _OLD_WORDS.get(name) or (plain[close[0]] if close else None)


def _required_doubts(
    path: Path, schema: Mapping[str, Any], names: set[str], notes: dict[str, list[str]]
) -> Iterator[Doubt]:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list) or "additionalProperties" in schema:
        return
    for name in (name for name in required if isinstance(name, str) and name not in names):
        close = difflib.get_close_matches(name, properties, n=1, cutoff=0.7)
        problem = f"'required' {place(path)} names {name!r}, which 'properties' does not describe"
        if close and close[0] not in required:
            yield Doubt(problem, f"Did you mean {close[0]!r}?")
        else:
            note = f"{_braced(name)!r}, which 'required' {{place}} names, may have any value: 'properties' does not "
            notes.setdefault(f"{note}describe it", []).append(place(path))


def _note_types(path: Path, schema: Mapping[str, Any], notes: dict[str, list[str]]) -> None:
    """Note keywords for values of a type that the schema excludes, and those beside which any other type passes."""
    keywords = [keyword for keyword in schema if keyword in _TYPES_OF]
    if "type" not in schema:
        kinds = list(dict.fromkeys(_TYPES_OF[keyword] for keyword in keywords))
        if kinds and not schema.keys() & _SELECT and not _is_branch(path):
            note = f'without "type", the schema {{place}} also allows values that are not of type {listed(kinds)}'
            notes.setdefault(note, []).append(place(path))
        return
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = ["number" if name == "integer" else name for name in types]
    for keyword in keywords:
        if _TYPES_OF[keyword] not in types:
            named = listed(map(str, schema["type"] if isinstance(schema["type"], list) else [schema["type"]]))
            note = f"{keyword!r} {{place}} constrains nothing: it is for type {_TYPES_OF[keyword]}, not for {named}"
            notes.setdefault(note, []).append(place(path))


def _is_branch(path: Path) -> bool:
    """Whether a schema only adds to the one around it, which may give the type."""
    return any(part in ("allOf", "anyOf", "oneOf", "not", "if", "then", "else") for part in path[-2:])


def _names(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _braced(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")

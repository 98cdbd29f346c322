"""Options as a program gives them: by name, with Python values, as in a configuration file."""

import json
import operator
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, SupportsIndex, get_args, get_type_hints

from job.config import SECTIONS
from job.errors import UsageError, require, shorten
from job.modes.options import OptionSpec
from job.modes.registry import MODES
from job.modes.texts import expand_home
from job.output.store.addresses import normal
from job.wording import flag, listed, meant

REQUIRED = ("model", "dataset", "output")

TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def values_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all options, as the command line gives them.

    Raises:
        UsageError: an option does not exist, is missing, or has a value of another type.
    """
    declared = dict(_declared())
    values = {"verbose": False, "model": None, **{name: field.default for name, (field, _) in declared.items()}}
    for name in given:
        if name not in (*REQUIRED, *values):
            close = meant(name, [*REQUIRED, *values])
            advice = "See job run --help." if close is None else f"Did you mean {close}?"
            raise UsageError(f"There is no option {name!r}. {advice}")
    needed = [name for name in REQUIRED if name != "model" or not given.get("adapter")]  # an adapter names its model
    if missing := [name for name in needed if given.get(name) is None]:
        raise UsageError(f"{listed(missing)} must be given.")
    for name, value in given.items():
        if value is not None:
            values[name] = _converted(name, *declared[name], value) if name in declared else _other(name, value)
    return values


def _declared() -> Iterator[tuple[str, tuple[Field[Any], Any]]]:
    """Yield the name of each option that is declared at a field, with the field and the type of its values."""
    for section in (*SECTIONS, *MODES):
        hints = get_type_hints(section)
        yield from ((field.name, (field, hints[field.name])) for field in fields(section) if "option" in field.metadata)


def _other(name: str, value: Any) -> Any:
    """Return the value of an option that is not declared at a field."""
    if name == "verbose":
        return _one(name, bool, value)
    text = expand_home(_one(name, str, value))
    return normal(text) if name == "output" else text


def _converted(name: str, field: Field[Any], hint: Any, value: Any) -> Any:
    """Return the value of an option that is declared at a field."""
    spec: OptionSpec = field.metadata["option"]
    kind = next((kind for kind in get_args(hint) if kind not in (type(None), Ellipsis)), hint)
    if field.default == ():
        each = value if isinstance(value, list | tuple) else [value]
        if not each and not spec.may_be_empty:
            raise UsageError(f"{flag(name)} is an empty list. Give what it should hold, or leave it out.")
        return tuple(_text(name, spec, item) if kind is str else _one(name, kind, item) for item in each)
    if spec.is_size and isinstance(value, str):
        size = size_of(value)
        require(size is not None, flag(name)[2:], value, "a size such as 20GiB or 512MiB")
        return size
    if kind is not str:
        return _one(name, kind, value)
    if spec.may_be_number and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = _text(name, spec, value)
    require(not spec.choices or text in spec.choices, flag(name)[2:], text, f"one of {', '.join(spec.choices)}")
    return text


def _text(name: str, spec: OptionSpec, value: Any) -> str:
    text: str = _one(name, str, value)
    return expand_home(text) if spec.is_path else text


def _one(name: str, kind: type, value: Any) -> Any:
    """Return a value as the type of its option: an int for a float, a path for a text, an object for its JSON text.

    Raises:
        UsageError: it has another type.
    """
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif kind is str and isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    elif kind in (int, float) and isinstance(value, SupportsIndex) and not isinstance(value, bool):
        value = kind(operator.index(value))  # numpy's, too
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(fits, flag(name)[2:], value, TYPES[kind])
    if kind is str:
        check_utf8(name, value)
    return value


def check_utf8(name: str, text: str) -> None:
    """Refuse a text that is not valid: the manifest could not store it, nor a tokenizer read it.

    Raises:
        UsageError: it is half of a surrogate pair, or has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{flag(name)} is not UTF-8 text: {shorten(text)}.") from None


def size_of(text: str) -> int | None:
    """Return a number of bytes, with or without a unit; None if it is none. GB and GiB are both 1024 ** 3, as in Slurm.

    >>> size_of("1.5GiB"), size_of("512m"), size_of("much")
    (1610612736, 536870912, None)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    return None if match is None else int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))

"""Values of sampling parameters that rows bring: their names and types, and what is wrong with a value."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from job.errors import InvalidValue, shorten
from job.modes.row_constraints import CONSTRAINTS
from job.records import RowRejected
from job.tasks import SamplingParams

KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}

NUMBERS: Mapping[str, type] = {
    field.name: kind
    for field in fields(SamplingParams)
    if "option" in field.metadata and (kind := get_type_hints(SamplingParams)[field.name]) in KINDS
}
"""The parameters that are numbers or truth values, with their types."""

STOP = "stop"

PARAMETERS = (*NUMBERS, STOP, *CONSTRAINTS)
"""What rows may set."""

ENDING = (STOP, "ignore_eos", *CONSTRAINTS)
"""The parameters that decide where a completion ends."""


def with_values(params: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """Return parameters with values that a row brings.

    Args:
        given: by name, each of any type.

    Raises:
        RowRejected: one has another type than it must have, or is out of range.
    """
    if not given:
        return params
    values = {name: _converted(name, value) for name, value in given.items()}
    try:
        return replace(params, **values)
    except InvalidValue as error:
        name = error.option.replace("-", "_")
        raise rejected(name, given.get(name, getattr(params, name)), error.need) from None


def texts_of(value: Any) -> tuple[str, ...] | None:
    """Return the stop strings that a row brings; None if it brings no value.

    Raises:
        RowRejected: it is neither a text nor a list of texts, or one is empty.
    """
    if value is None:
        return None
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise rejected(STOP, value, "a non-empty text or a list of such texts")
    return tuple(texts)


def rejected(name: str, value: Any, need: str) -> RowRejected:
    """Return the error of a row with a wrong value."""
    return RowRejected("invalid_parameter", f"{name} is {shown(value)}; it must be {need}")


def shown(value: Any) -> str:
    """Return a value as JSON, shortened, for messages."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _converted(name: str, value: Any) -> Any:
    """Return a number in the type that a parameter has. In many data, whole numbers are floats.

    Raises:
        RowRejected: it is of another type.
    """
    kind = NUMBERS[name]
    if kind is not bool and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ValueError):  # infinite, or not a number
            if kind(value) == value:
                return kind(value)
    if kind is bool and isinstance(value, bool):
        return value
    raise rejected(name, value, KINDS[kind])

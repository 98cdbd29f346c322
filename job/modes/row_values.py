"""Values of sampling parameters that rows bring: their names and types, and what is wrong with a value."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from job.errors import InvalidValue, shorten
from job.modes.row_constraints import CONSTRAINTS
from job.modes.row_tokens import NAMING
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

TOP_LOGPROBS = "top_logprobs"
"""How many of the most likely tokens a row gets, at most as many as the run."""

PARAMETERS = (*NUMBERS, STOP, *NAMING, TOP_LOGPROBS, *CONSTRAINTS)
"""What rows may set."""

ENDING = (STOP, "stop_token_ids", "ignore_eos", *CONSTRAINTS)
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
    values = {name: _converted(name, value, NUMBERS[name]) for name, value in given.items()}
    try:
        return replace(params, **values)
    except InvalidValue as error:
        name = error.option.replace("-", "_")
        raise rejected(name, given.get(name, getattr(params, name)), error.need) from None


def with_tops(params: SamplingParams, value: Any) -> SamplingParams:
    """Return parameters that ask for as many of the most likely tokens as a row does.

    Args:
        params: those of the run, whose columns have room for its own number.

    Raises:
        RowRejected: the row asks for more, or it is not a number.
    """
    most = params.num_top_logprobs
    number = _converted(TOP_LOGPROBS, value, int)
    if not 0 <= number <= most:
        none = "left out, or 0: the run has no --top-logprobs, which is the most that rows may ask for"
        raise rejected(TOP_LOGPROBS, value, f"between 0 and the run's --top-logprobs {most}" if most else none)
    return replace(params, num_top_logprobs=number, logprobs=params.scores_tokens)


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


def _converted(name: str, value: Any, kind: type) -> Any:
    """Return a number in the type that a parameter has. In many data, whole numbers are floats.

    Raises:
        RowRejected: it is of another type.
    """
    if kind is not bool and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ValueError):  # infinite, or not a number
            if kind(value) == value:
                return kind(value)
    if kind is bool and isinstance(value, bool):
        return value
    raise rejected(name, value, KINDS[kind])

"""Constraints of rows: a schema, regex or grammar that a row brings, compiled once for all rows that bring the same."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from job.errors import UsageError
from job.modes.mode import Tokens
from job.modes.structured import StructuredMode
from job.records import RowRejected
from job.tasks import Grammar
from job.wording import flag

CONSTRAINTS = ("json_schema", "regex", "grammar")
"""The parameters that are one."""

MAX_KEPT = 1000
"""How many are kept for later rows. Each is little more than its text: engines have the compiled ones."""

MAY_BE_NULL = ("const", "default")
"""Keywords of a schema whose value may be null. In Parquet, any other one that is null is one that other rows have."""


class RowConstraints:
    """The constraints of the rows of a run."""

    def __init__(self, tokens: Tokens) -> None:
        """Compile them for a tokenizer."""
        self._compiled: Callable[[str, str], Grammar | str] = lru_cache(MAX_KEPT)(
            lambda name, text: _compiled(tokens, name, text)
        )

    def of(self, name: str, value: Any) -> Grammar:
        """Return the constraint that a row brings: one object for all rows that bring the same.

        Args:
            name: one of ``CONSTRAINTS``.

        Raises:
            RowRejected: it cannot be compiled.
        """
        found = self._compiled(name, _text_of(name, value))
        if isinstance(found, str):
            raise RowRejected("invalid_parameter", found)
        return found


def _compiled(tokens: Tokens, name: str, text: str) -> Grammar | str:
    """Return a constraint, or why there is none."""
    try:
        return StructuredMode(**{name: text}).compiled(tokens)
    except UsageError as error:
        return str(error).replace(flag(name), name)


def _text_of(name: str, value: Any) -> str:
    """Return the text of a constraint; of a schema, always the same for equal ones.

    Raises:
        RowRejected: it is of another type.
    """
    if name == "json_schema" and isinstance(value, Mapping):
        return json.dumps(_without_nulls(value), ensure_ascii=False)
    if not isinstance(value, str) or not value:
        need = "an object, or its JSON text" if name == "json_schema" else "a non-empty text"
        raise RowRejected("invalid_parameter", f"{name} is not {need}")
    return value


def _without_nulls(value: Any) -> Any:
    """Leave out what is null in a schema.

    >>> _without_nulls({"type": "object", "properties": {"a": {"const": None}, "b": None}})
    {'type': 'object', 'properties': {'a': {'const': None}}}
    """
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None or key in MAY_BE_NULL}
    return [_without_nulls(each) for each in value] if isinstance(value, list | tuple) else value

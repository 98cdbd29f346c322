"""Parameters of rows: sampling options that rows have values of their own for, in columns of the dataset.

Either one column holds an object of them, or each has a column. Where a row has none, the run's value holds.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

from job.errors import InvalidValue, UsageError, shorten
from job.modes.mode import BoundMode, Mode, Setting, Tokens
from job.modes.options import option
from job.modes.row_constraints import CONSTRAINTS, RowConstraints
from job.modes.stop_texts import StopTexts
from job.records import RowRejected
from job.tasks import Generate, Grammar, SamplingParams, Task

if TYPE_CHECKING:
    from job.config import RunConfig

NUMBERS: Mapping[str, type] = {
    field.name: get_type_hints(SamplingParams)[field.name]
    for field in fields(SamplingParams)
    if "option" in field.metadata and field.name != "stop_token_ids"
}
"""The parameters that are numbers or truth values, with their types."""

STOP = "stop"

PARAMETERS = (*NUMBERS, STOP, *CONSTRAINTS)
"""What rows may set."""

ENDING = (STOP, "ignore_eos", *CONSTRAINTS)
"""The parameters that decide where a completion ends."""

KINDS = {bool: "true or false", int: "a whole number", float: "a number"}

MAX_KNOWN = 10_000
"""How many different parameters are remembered, so that rows which have the same share one object: engines compare
objects before values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParamsMode(Mode):
    """Sampling options per row."""

    name: ClassVar[str] = "row_params"

    params_column: str | None = option(
        None,
        "Column with an object for each row, or that as JSON text: sampling options by name, such as "
        '{"temperature": 0.7, "max_new_tokens": 64}. What is null or absent is as for the run.',
    )
    row_params: tuple[str, ...] = option(
        (),
        "Sampling options that rows have in columns of their own, such as max_new_tokens=length. Repeat or use commas.",
        metavar="NAME=COLUMN",
        may_have_commas=True,
    )

    def columns(self) -> tuple[str, ...]:
        """See ``Mode``."""
        own = () if self.params_column is None else (self.params_column,)
        return (*own, *self._column_of().values())

    def varies(self) -> frozenset[str]:
        """See ``Mode``."""
        return frozenset(PARAMETERS if self.params_column is not None else self._column_of())

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        known = self._column_of()
        for name in known:
            if name not in PARAMETERS:
                raise UsageError(f"--row-params: rows have no parameter {name!r}. There are {', '.join(PARAMETERS)}.")
        for mode in config.active_modes:
            if mode.answers and mode.decides_end:
                raise UsageError(f"{self.flag} and {mode.flag} were given together. Leave out one: choices are scored.")
            if mode.decides_end and (ends := next((name for name in ENDING if name in known), None)):
                raise UsageError(
                    f"--row-params {ends} and {mode.flag} were given together. Leave out {ends}: {mode.flag} decides "
                    "where completions end."
                )

    def settled(self, config: "RunConfig", tokens: Tokens, template: str | None, found: Sequence[Mode] | None) -> Self:
        """Put the names in order: it means nothing."""
        return replace(self, row_params=tuple(sorted(f"{name}={column}" for name, column in self._column_of().items())))

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        return BoundRowParams(self.params_column, self._column_of(), setting)

    def _column_of(self) -> dict[str, str]:
        """Return the columns of ``row_params`` by parameter."""
        columns: dict[str, str] = {}
        for pair in _pairs(self.row_params):
            name, equals, column = pair.partition("=")
            name, column = name.strip().lstrip("-").replace("-", "_"), column.strip()
            if not equals or not name or not column:
                raise UsageError(f"--row-params is {pair!r}; it must be NAME=COLUMN, such as max_new_tokens=length.")
            if name in columns:
                raise UsageError(f"--row-params names two columns for {name}. Leave one out.")
            columns[name] = column
        return columns


def _pairs(values: Sequence[str]) -> Iterator[str]:
    """Split values at the commas before a ``name=``: columns may have commas in their names.

    >>> list(_pairs(["top_p=p,top-k = Best, of all", "seed=s"]))
    ['top_p=p', 'top-k = Best, of all', 'seed=s']
    """
    for value in values:
        yield from (pair.strip() for pair in re.split(r",(?=\s*[\w-]+\s*=)", value) if pair.strip())


class BoundRowParams(BoundMode):
    """Puts the parameters of each row into its task."""

    def __init__(self, params_column: str | None, column_of: Mapping[str, str], setting: Setting) -> None:
        """Read parameters from these columns.

        Args:
            column_of: the columns of single parameters, which win.
        """
        self._params_column, self._column_of = params_column, column_of
        self._constraints = RowConstraints(setting.tokens)
        self._stops_of = lru_cache(MAX_KNOWN)(lambda texts: StopTexts.of(setting, texts))
        self._params_like = lru_cache(MAX_KNOWN)(_itself)

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "choices are refused together with parameters of rows"
        given = self._given(values)
        stop = texts_of(given.pop(STOP, None))
        constraints = {name: given.pop(name) for name in CONSTRAINTS if name in given}
        params = self._params_like(with_values(task.params, given))
        ends_text = task.ends_text if stop is None else self._stops_of(stop) if stop else None
        grammar = self._grammar(task.grammar, constraints)
        if grammar is not None and (stop or params.ignore_eos):
            name = STOP if stop else "ignore_eos"
            raise rejected(name, stop or True, "left out: the schema, regex or grammar decides where completions end")
        return replace(task, params=params, grammar=grammar, ends_text=ends_text if grammar is None else None)

    def _grammar(self, of_run: Grammar | None, given: Mapping[str, Any]) -> Grammar | None:
        """Return the constraint of a row: the run's, or the one that it brings.

        Raises:
            RowRejected: there are two.
        """
        grammar = of_run
        for name, value in given.items():
            if grammar is not None:
                raise rejected(name, value, "left out: a completion has one schema, regex or grammar")
            grammar = self._constraints.of(name, value)
        return grammar

    def _given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's own values.

        Raises:
            RowRejected: they are not an object, or one has a name that does not exist.
        """
        whole = {} if self._params_column is None else _object(values.get(self._params_column), self._params_column)
        given = {name: value for name, value in whole.items() if value is not None}
        for name, value in given.items():
            if name not in PARAMETERS:
                detail = f"{shorten(name)} is {shown(value)}, but rows have no such parameter"
                raise RowRejected("invalid_parameter", f"{detail}; there are {', '.join(PARAMETERS)}")
        own = ((name, values.get(column)) for name, column in self._column_of.items())
        return given | {name: value for name, value in own if value is not None}


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


def _object(value: Any, column: str) -> Mapping[str, Any]:
    """Return the object of a row, given as such or as JSON text; empty for null.

    Raises:
        RowRejected: it is something else.
    """
    found = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise RowRejected("invalid_parameter", f"column {column!r} is not a JSON object: {shown(value)}")
    return found


def _itself(params: SamplingParams) -> SamplingParams:
    return params

"""Parameters of rows: sampling options that rows have values of their own for, in columns of the dataset.

Either one column holds an object of them, or each has a column, or rows are requests to OpenAI's API. Where a row has
none, the run's value holds.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from job.errors import UsageError, shorten
from job.modes.mode import BoundMode, Mode, Setting, Tokens
from job.modes.openai_params import asked_by, name_in
from job.modes.options import option
from job.modes.row_constraints import CONSTRAINTS, RowConstraints
from job.modes.row_tokens import NAMING, RowTokens
from job.modes.row_values import (
    ENDING,
    PARAMETERS,
    STOP,
    TOP_LOGPROBS,
    rejected,
    shown,
    texts_of,
    with_tops,
    with_values,
)
from job.modes.stop_texts import StopTexts
from job.records import RowRejected
from job.tasks import Generate, Grammar, SamplingParams, Task
from job.wording import meant

if TYPE_CHECKING:
    from job.config import RunConfig

MAX_KNOWN = 10_000
"""How many different parameters are remembered, so that rows which have the same share one object: engines compare
objects before values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParamsMode(Mode):
    """Sampling options per row."""

    name: ClassVar[str] = "row_params"
    serves_beams: ClassVar[bool] = False

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
    request_column: str | None = None
    """The column with requests to OpenAI's API, each of which runs with what it asks for. No option: they are
    recognized."""

    def columns(self) -> tuple[str, ...]:
        """See ``Mode``."""
        return (*(name for name in (self.request_column, self.params_column) if name), *self.column_of().values())

    def varies(self) -> frozenset[str]:
        """See ``Mode``."""
        has_objects = self.params_column is not None or self.request_column is not None
        return frozenset(PARAMETERS if has_objects else self.column_of())

    def card_values(self) -> Mapping[str, Any]:
        """See ``Mode``."""
        return {name: value for name, value in self.given().items() if name != "request_column"}

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        known = self.column_of()
        for name in known:
            if name not in PARAMETERS:
                raise UsageError(f"--row-params: rows have no parameter {name!r}; {_known(name)}")
        if TOP_LOGPROBS in known and not any(mode.given().get(TOP_LOGPROBS) for mode in config.active_modes):
            raise UsageError("--row-params top_logprobs needs --top-logprobs K: the most that a row may ask for.")
        for mode in config.active_modes:
            if mode.answers and mode.decides_end:
                raise UsageError(f"{self.flag} and {mode.flag} were given together. Leave out one: nothing is drawn.")
            if mode.decides_end and (ends := next((name for name in ENDING if name in known), None)):
                raise UsageError(
                    f"--row-params {ends} and {mode.flag} were given together. Leave out {ends}: {mode.flag} decides "
                    "where completions end."
                )

    def settled(self, config: "RunConfig", tokens: Tokens, template: str | None, found: Sequence[Mode] | None) -> Self:
        """Put the names in order: it means nothing."""
        return replace(self, row_params=tuple(sorted(f"{name}={column}" for name, column in self.column_of().items())))

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        return BoundRowParams(self, setting)

    def column_of(self) -> dict[str, str]:
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

    def __init__(self, mode: RowParamsMode, setting: Setting) -> None:
        """Read parameters from the columns that a mode names. Those of single parameters win."""
        self._request_column, self._params_column = mode.request_column, mode.params_column
        self._column_of, self._serves = mode.column_of(), setting.serves
        self._constraints, self._tokens = RowConstraints(setting.tokens), RowTokens(setting.tokens)
        self._stops_of = lru_cache(MAX_KNOWN)(lambda texts: StopTexts.of(setting, texts))
        self._params_like = lru_cache(MAX_KNOWN)(_itself)

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "choices are refused together with parameters of rows"
        body = {} if self._request_column is None else _object(values.get(self._request_column), self._request_column)
        try:
            return self._refined(task, asked_by(body, self._serves) | self._given(values))
        except RowRejected as error:
            name, space, rest = error.row_error.detail.partition(" ")
            raise RowRejected(error.row_error.kind, name_in(body, name) + space + rest) from None

    def _refined(self, task: Generate, given: dict[str, Any]) -> Generate:
        """Return a row's task with the parameters that it brings.

        Raises:
            RowRejected: one cannot be used.
        """
        stop = texts_of(given.pop(STOP, None))
        constraints = {name: given.pop(name) for name in CONSTRAINTS if name in given}
        named = {name: given.pop(name) for name in NAMING if name in given}
        top_logprobs = given.pop(TOP_LOGPROBS, None)
        params = with_values(task.params, given)
        if named:
            params = replace(params, **self._tokens.fields_of(named))
        params = self._params_like(params if top_logprobs is None else with_tops(params, top_logprobs))
        ends_text = task.ends_text if stop is None else self._stops_of(stop) if stop else None
        grammar = self._grammar(task.grammar, constraints)
        own_tokens = "stop_token_ids" in named and params.stop_token_ids
        ends = {STOP: stop, "stop_token_ids": own_tokens, "ignore_eos": params.ignore_eos}
        for name, value in ends.items():
            if grammar is not None and value:
                raise rejected(name, value, "left out: the schema, regex or grammar decides where completions end")
        if grammar is not None:  # what ends completions of the run does not hold for it
            params, ends_text = self._params_like(replace(params, stop_token_ids=())), None
        return replace(task, params=params, grammar=grammar, ends_text=ends_text)

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
                raise RowRejected("invalid_parameter", f"{detail}; {_known(name)}")
        own = ((name, values.get(column)) for name, column in self._column_of.items())
        return given | {name: value for name, value in own if value is not None}


def _known(name: str) -> str:
    """Return which parameter a misspelt name may mean, or all of them."""
    close = meant(name.replace("-", "_"), PARAMETERS)
    return f"there are {', '.join(PARAMETERS)}" if close is None else f"did you mean {close}?"


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

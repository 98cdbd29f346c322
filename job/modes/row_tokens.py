"""Parameters of rows that name tokens: biases, bad words, stop tokens. What many rows bring is looked up once."""

import contextlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from job.errors import UsageError, shorten
from job.modes.mode import Tokens
from job.modes.token_texts import params_of
from job.records import RowRejected
from job.tasks import SamplingParams
from job.wording import flag

NAMING = ("logit_bias", "bad_words", "stop_token_ids")
"""The parameters that name tokens."""

FIELDS = {"logit_bias": "biases", "bad_words": "bad_token_ids", "stop_token_ids": "stop_token_ids"}
"""The fields of ``SamplingParams`` that they become."""

MAX_KEPT = 1000
"""How many different values are kept for later rows."""


class RowTokens:
    """The tokens that the rows of a run name."""

    def __init__(self, tokens: Tokens) -> None:
        """Look for them in a tokenizer."""
        self._found: Callable[[str, str], SamplingParams | str] = lru_cache(MAX_KEPT)(
            lambda name, text: _params_of(tokens, name, text)
        )

    def fields_of(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of ``SamplingParams`` with what a row brings.

        Args:
            given: by names in ``NAMING``, each of any type.

        Raises:
            RowRejected: one has a wrong type, or names a token that does not exist.
        """
        return {FIELDS[name]: getattr(self._params(name, value), FIELDS[name]) for name, value in given.items()}

    def _params(self, name: str, value: Any) -> SamplingParams:
        found = self._found(name, json.dumps(_checked(name, value), sort_keys=True))
        if isinstance(found, str):
            raise RowRejected("invalid_parameter", found)
        return found


def _params_of(tokens: Tokens, name: str, text: str) -> SamplingParams | str:
    """Return parameters with a value, given as JSON, or what is wrong with it."""
    from job.config.sampling import SamplingConfig  # it is made of the options of modes

    options: dict[str, Any] = {name: text if name == "logit_bias" else tuple(json.loads(text))}
    try:
        return params_of(SamplingConfig(**options), tokens)
    except UsageError as error:
        return str(error).replace(flag(name), name).rstrip(".")


def _checked(name: str, value: Any) -> Any:
    """Return a value in the form of the option.

    Raises:
        RowRejected: it is of another type.
    """
    if name == "logit_bias":
        found = _parsed(value)
        if isinstance(found, Mapping):  # in Parquet, an object has the names that the objects of all rows have
            return {str(token): bias for token, bias in found.items() if bias is not None}
        raise _wrong(name, value, 'an object of biases by token, such as {"1234": -100}')
    values = list(value) if isinstance(value, list | tuple) else [value]
    if name == "bad_words":
        if all(isinstance(word, str) and word for word in values):
            return values
        raise _wrong(name, value, "a non-empty text or a list of such texts")
    if all(isinstance(token, int | float) and not isinstance(token, bool) and token % 1 == 0 for token in values):
        return [int(token) for token in values]  # in many data, whole numbers are floats
    raise _wrong(name, value, "the id of a token or a list of ids")


def _parsed(value: Any) -> Any:
    """Return the value of a text that is JSON, and any other value unchanged."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _wrong(name: str, value: Any, need: str) -> RowRejected:
    shown = shorten(json.dumps(value, ensure_ascii=False, default=str))
    return RowRejected("invalid_parameter", f"{name} is {shown}; it must be {need}")

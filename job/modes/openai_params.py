"""Parameters of requests to OpenAI's API, and of vLLM's additions to it, under the names of our options.

(platform.openai.com/docs/api-reference/chat/create, docs.vllm.ai "OpenAI-Compatible Server".)
"""

from collections.abc import Callable, Mapping
from typing import Any

from job.modes.row_tokens import NAMING
from job.modes.row_values import NUMBERS, PARAMETERS, STOP, TOP_LOGPROBS, rejected

OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "guided_json": "json_schema",
    "guided_regex": "regex",
}
"""The later of two names for the same wins: ``max_tokens`` is the older one."""

NAMES: Mapping[str, str] = {
    **{name: own for name, own in OTHER_NAMES.items() if own in PARAMETERS},
    **{name: name for name in (*NUMBERS, STOP, *NAMING) if name not in OTHER_NAMES.values()},
}
"""Parameters of a body that a row may have of its own, to the option."""

FORMAT, LOGPROBS = "response_format", "logprobs"

ANY_OBJECT = {"type": "object", "additionalProperties": True}
"""The schema of ``json_object``."""


def asked_by(body: Mapping[str, Any], serves: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Return what a request asks for, by the names of our options. Null asks for nothing.

    Args:
        serves: whether the run's completions follow a ``response_format`` anyway.

    Raises:
        RowRejected: it contradicts itself.
    """
    given = ((own, body.get(name)) for name, own in NAMES.items())
    asked = {own: _in_our_form(own, value) for own, value in given if not _is_neutral(own, value)}
    if (number := top_logprobs_of(body)) is not None:
        if not body.get(LOGPROBS):
            raise rejected(TOP_LOGPROBS, number, "left out: logprobs is not true")
        asked[TOP_LOGPROBS] = number
    schema = schema_of(body.get(FORMAT))
    return asked if schema is None or serves(body[FORMAT]) else asked | {"json_schema": schema}


def top_logprobs_of(body: Mapping[str, Any]) -> Any:
    """Return how many of the most likely tokens a request asks for; None if it leaves that to the run.

    >>> top_logprobs_of({"logprobs": True, "top_logprobs": 2}), top_logprobs_of({"logprobs": 3, "prompt": "a"})
    (2, 3)
    """
    logprobs = body.get(LOGPROBS)
    if logprobs and not isinstance(logprobs, bool):  # of /v1/completions, where it is the number
        return logprobs
    return body.get(TOP_LOGPROBS) if logprobs or body.get(TOP_LOGPROBS) else None


def schema_of(answer_format: Any) -> Any:
    """Return the schema that a ``response_format`` asks for; None if that is none."""
    if not isinstance(answer_format, Mapping):
        return None
    if answer_format.get("type") == "json_object":
        return ANY_OBJECT
    asked = answer_format.get("json_schema")
    is_schema = answer_format.get("type") == "json_schema" and isinstance(asked, Mapping)
    return asked.get("schema") if is_schema and isinstance(asked, Mapping) else None


def name_in(body: Mapping[str, Any], own: str) -> str:
    """Return the name under which a body has one of our options.

    >>> name_in({"max_tokens": 0}, "max_new_tokens"), name_in({}, "max_new_tokens")
    ('max_tokens', 'max_new_tokens')
    """
    names = [name for name, option in NAMES.items() if option == own and body.get(name) is not None]
    if own == TOP_LOGPROBS and body.get(LOGPROBS) and body.get(TOP_LOGPROBS) is None:
        return LOGPROBS
    if own == "json_schema" and not names and schema_of(body.get(FORMAT)) is not None:
        return FORMAT
    return names[-1] if names else own


def _is_neutral(own: str, value: Any) -> bool:
    return value is None or (own in (STOP, *NAMING) and not value)


def _in_our_form(own: str, value: Any) -> Any:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if own == "top_k" and value == -1:  # off, in vLLM
        return 0
    return value % 2**63 if own == "seed" and is_int else value  # theirs may be negative

"""What all requests of a batch to OpenAI's API must agree on with the run, and whether they do.

That is what concerns the output as a whole: the number of samples, and how many log probabilities there is room for.
Where rows have no parameters of their own (runs that older versions began, scored choices), it is every parameter.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from job.config import RunConfig, SamplingConfig
from job.errors import UsageError, shorten
from job.modes.completion import CompletionMode
from job.modes.ignored import ignored_by
from job.modes.openai_params import FORMAT, LOGPROBS, NAMES, schema_of, top_logprobs_of
from job.modes.row_params import RowParamsMode
from job.modes.row_values import TOP_LOGPROBS

LENGTHS = dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_new_tokens")

COUNTS = {"n": "num_samples", "min_tokens": "min_new_tokens"}

SAME_NAMES = {name: name for name in SamplingConfig().options() if name not in {*LENGTHS.values(), *COUNTS.values()}}

PARAMETERS = {**LENGTHS, **SAME_NAMES, **COUNTS}
"""Parameters of a body, and the field of ``SamplingConfig``. Some are additions by vLLM."""

DRAWING = ("top_p", "top_k", "min_p", "seed")
"""Parameters that have no effect when decoding is greedy."""

MAX_SHOWN_SCHEMA = 1000
"""How many characters of a schema a message shows."""

Different = tuple[str, str, Any]
"""A parameter that differs from the run's: its name, its name in the run, and the requested value."""


class RunSettings:
    """The settings of a run that requests are compared with."""

    def __init__(self, config: RunConfig) -> None:
        """Note them."""
        self._dataset, self._sampling, self._modes = config.data.dataset, config.sampling, config.active_modes
        self.has_own = any(isinstance(mode, RowParamsMode) and mode.request_column for mode in self._modes)
        """Whether requests have parameters of their own."""
        generating = [mode for mode in self._modes if isinstance(mode, CompletionMode)]
        self._top_logprobs = max((mode.top_logprobs for mode in generating), default=0)
        self._has_logprobs = self._top_logprobs > 0 or any(mode.logprobs for mode in generating)
        self._ignored = ignored_by(self._modes)
        # older versions made an error row of each request with a schema
        self._checks_format = config.prompt.has_own_rules and not self.has_own
        self.known = frozenset(PARAMETERS) | (
            frozenset([*NAMES, LOGPROBS, TOP_LOGPROBS]) if self.has_own else frozenset()
        )
        """The parameters of a body that the run serves, or compares with its own."""

    def different(self, body: Mapping[str, Any]) -> Iterator[Different]:
        """Yield what a request asks for that the run does otherwise."""
        is_greedy = self._sampling.temperature == 0 and not body.get("temperature")
        for name, value in _asked(body):
            if self.has_own and name in NAMES:
                continue
            is_idle = (is_greedy and name in DRAWING) or PARAMETERS[name] in self._ignored
            if not is_idle and value != getattr(self._sampling, PARAMETERS[name]):
                yield name, PARAMETERS[name], value
        if self.has_own and body.get(LOGPROBS):
            yield from self._more_logprobs(body)

    def _more_logprobs(self, body: Mapping[str, Any]) -> Iterator[Different]:
        """Yield what a request asks for of log probabilities that the run has no columns for."""
        number = top_logprobs_of(body)
        if isinstance(number, int) and number > self._top_logprobs:
            yield TOP_LOGPROBS if body.get(TOP_LOGPROBS) else LOGPROBS, TOP_LOGPROBS, number
        elif not self._has_logprobs:
            yield LOGPROBS, LOGPROBS, body[LOGPROBS]

    def shown(self, field: str) -> str:
        """Return a setting as requests would write it."""
        return as_json(self._top_logprobs if field == TOP_LOGPROBS else getattr(self._sampling, field))

    def serves(self, answer_format: Any) -> bool:
        """Whether completions follow a ``response_format``: text, the run's own, or one that a row may bring."""
        if not isinstance(answer_format, dict):
            return False
        if answer_format.get("type") == "text" or any(mode.serves(answer_format) for mode in self._modes):
            return True
        return self.has_own and schema_of(answer_format) is not None

    def check_first(self, body: Mapping[str, Any]) -> None:
        """Check the first request: if it differs from the run, most requests will.

        Raises:
            UsageError: it differs. The message lists the options that would match it.
        """
        if different := list(self.different(body)):
            asked = [f"{name} {as_json(value)} (the run has {self.shown(field)})" for name, field, value in different]
            wanted = {field: value for _, field, value in different}
            if self.has_own and self._sampling.temperature == 0 and "num_samples" in wanted:
                wanted["temperature"] = body.get("temperature") or 1  # samples of a run need one
            options = [_option(field, value) for field, value in wanted.items()]
            reason = "all requests of a run share these settings"
            if list(wanted) == [TOP_LOGPROBS]:
                reason = "no request of the run may ask for more"
            raise UsageError(
                f"--dataset {self._dataset}: the first request asks for {', '.join(asked)}. Give {' '.join(options)}; "
                f"{reason}."
            )
        if self._checks_format:
            self._check_format(body)

    def _check_format(self, body: Mapping[str, Any]) -> None:
        answer_format = body.get(FORMAT)
        if not answer_format or self.serves(answer_format):
            return
        asked = answer_format.get("json_schema") if isinstance(answer_format, dict) else None
        schema = asked.get("schema") if isinstance(asked, dict) else None
        if schema is None:
            return  # each such row becomes an error
        text = json.dumps(schema, ensure_ascii=False)
        short = shlex.quote(text) if len(text) <= MAX_SHOWN_SCHEMA else "FILE, with a file that has this schema"
        raise UsageError(
            f"--dataset {self._dataset}: the first request has a response_format with a JSON schema, which the run "
            f"does not have. Give --json-schema {short}; all requests of a run share it."
        )


def as_json(value: Any) -> str:
    """Return a value as JSON, as in the requests, shortened."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _asked(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each parameter of a body that is a setting of the run, with its value in the run's form."""
    for name in PARAMETERS:
        value = body.get(name)
        if name == "stop" and isinstance(value, str):
            value = (value,)
        if isinstance(value, list):
            value = tuple(value)
        if name == "logit_bias" and isinstance(value, dict):
            value = json.dumps(dict(sorted(value.items())), ensure_ascii=False) if value else None
        if name == "top_k" and value == -1:  # vLLM writes 0 as -1
            value = 0
        if value is not None and value not in ((), ""):
            yield name, value


def _option(field: str, value: Any) -> str:
    """Return the option that makes the run match a request.

    >>> _option("stop", ("a b", "c")), _option("max_new_tokens", 8), _option("ignore_eos", True)
    ("--stop 'a b' --stop c", '--max-new-tokens 8', '--ignore-eos')
    """
    flag = "--" + field.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else f"no {flag}"
    return " ".join(f"{flag} {shlex.quote(str(item))}" for item in (value if isinstance(value, tuple) else (value,)))

"""A batch of requests to OpenAI's API as a dataset: rows of ``custom_id``, ``method``, ``url`` and ``body``.

The prompt is in the body. The body's other parameters hold for the row (``job.modes.openai_params``), must agree with
the run (``openai_settings``), or are not supported. None that could change an answer is ignored: if the first request
differs from the run's settings, the run does not start; a later request that differs becomes an error row.
(platform.openai.com/docs/guides/batch)
"""

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from job.config import PromptConfig, RunConfig
from job.data.messages import Content, Messages, parse_messages
from job.data.openai_settings import RunSettings, as_json
from job.data.source import Source, read_rows
from job.errors import UsageError, shorten
from job.records import RowRejected

ID_COLUMN, BODY_COLUMN, URL_COLUMN = "custom_id", "body", "url"

CHAT_URL, TEXT_URL = "/v1/chat/completions", "/v1/completions"

MAX_IDS = 50_000
"""How many ids are compared: OpenAI's limit for a batch."""

WITHOUT_EFFECT = frozenset(
    [
        *("messages", "prompt", "response_format"),  # read separately
        *("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "stream", "stream_options", "parallel_tool_calls"),
    ]
)
"""Parameters that no answer depends on."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "best_of": (1,),
}
"""Values that ask for the default behavior, in addition to null, 0, false and empty values."""


def recognizes_requests(prompt: PromptConfig, columns: Collection[str]) -> bool:
    """Whether a dataset is a batch of requests and the user has not chosen another prompt."""
    is_named = any((prompt.prompt_column, prompt.messages_column, prompt.prompt_template))
    return not is_named and "prompt" not in columns and {ID_COLUMN, BODY_COLUMN} <= set(columns)


def open_requests(config: RunConfig, source: Source, *, chat: bool) -> "Requests":
    """Return a reader for the prompts of a batch, after checking the first request.

    Args:
        chat: whether a chat template is applied. If it is, the run serves conversations, else plain texts.

    Raises:
        UsageError: the first request differs from the run's settings.
    """
    requests = Requests(config, source.schema.names, chat=chat)
    requests.check_first(source)
    return requests


class Requests:
    """Extracts the prompts from the requests of a batch, and compares each request with the run's settings."""

    def __init__(self, config: RunConfig, columns: Collection[str], *, chat: bool) -> None:
        """Note the settings that requests are compared with.

        Args:
            columns: columns of the dataset.
            chat: see ``open_requests``.
        """
        self._dataset, self._model = config.data.dataset, config.model.model
        self._settings, self._is_no_chat = RunSettings(config), config.prompt.chat is False
        self._reasoning_effort = config.prompt.reasoning_effort
        self._url = CHAT_URL if chat else TEXT_URL
        self.columns = [name for name in (BODY_COLUMN, URL_COLUMN) if name in columns]

    def notes(self, source: Source, num_rows: int) -> list[str]:
        """Return notes for the user about how the dataset is read, and about its ids."""
        note = (
            f"{self._dataset} is a batch of requests to OpenAI's API: prompts come from {BODY_COLUMN}, {ID_COLUMN} is "
            f"kept, and {self._model} answers, whichever model the requests name"
        )
        rows = range(min(num_rows, MAX_IDS))
        blocks = read_rows(source, self._dataset, rows, (), (ID_COLUMN,))
        on_ids = _note_on_ids(value for block in blocks for value in block.kept[ID_COLUMN].to_pylist())
        return [note] if on_ids is None else [note, on_ids]

    def content_of(self, values: Mapping[str, Any]) -> Content:
        """Return the messages of a request, or its text if the run serves texts.

        Raises:
            RowRejected: there is no prompt, or the request differs from the run's settings.
        """
        body = body_of(values)
        url = url_of(values, body)
        if url != self._url:
            raise RowRejected("unsupported_url", f"{url}; this run serves {self._url}")
        for name, value in self._unsupported(body):
            raise RowRejected("unsupported_parameter", f"{name} is {as_json(value)}")
        for name, field, value in self._settings.different(body):
            shown = self._settings.shown(field)
            raise RowRejected("parameter_mismatch", f"{name} is {as_json(value)}, the run's is {shown}")
        if self._url == TEXT_URL:
            return _text(body)
        messages = parse_messages(body.get("messages"), "body.messages")
        return _without_developer(messages) if self._settings.has_own else messages

    def check_first(self, source: Source) -> None:
        """Compare the first request with the run's settings: if it differs, most requests will.

        Raises:
            UsageError: it differs. The message lists the options that would match it.
        """
        first = range(min(1, source.num_rows))
        for row in (row for block in read_rows(source, self._dataset, first, self.columns, ()) for row in block.rows):
            with contextlib.suppress(RowRejected):  # it becomes an error row
                body = body_of(row.values)
                self._check_url(url_of(row.values, body))
                self._settings.check_first(body)

    def _check_url(self, url: str) -> None:
        if url == self._url or url not in (CHAT_URL, TEXT_URL):
            return
        if url == TEXT_URL:
            advice = "Give --no-chat."
        else:
            advice = "Remove --no-chat." if self._is_no_chat else "Use a model whose tokenizer has a chat template."
        raise UsageError(
            f"--dataset {self._dataset}: the first request is for {url}, but this run serves {self._url}. {advice}"
        )

    def _unsupported(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the parameters that would change the answer, but are not supported."""
        for name, value in body.items():
            is_known = name in self._settings.known or name in WITHOUT_EFFECT
            if name == "reasoning_effort" and value == self._reasoning_effort:
                continue
            if not is_known and value and value not in NEUTRAL.get(name, ()):
                yield name, value
        answer_format = body.get("response_format")
        if answer_format and not self._settings.serves(answer_format):
            yield "response_format", answer_format


def _note_on_ids(values: Iterable[Any]) -> str | None:
    """Return a note if answers cannot be matched to requests by their ids.

    >>> _note_on_ids(["a", "a", None, "b"])
    "custom_id does not identify every request: 1 repeats an earlier one (such as 'a'), 1 is null or empty"
    """
    seen: set[str] = set()
    repeated: list[str] = []
    num_empty = 0
    for value in values:
        if value is None or not str(value).strip():
            num_empty += 1
        elif str(value) in seen:
            repeated.append(str(value))
        else:
            seen.add(str(value))
    problems = []
    if repeated:
        verb = "repeats" if len(repeated) == 1 else "repeat"
        problems.append(f"{len(repeated):,} {verb} an earlier one (such as {shorten(repeated[0])!r})")
    if num_empty:
        problems.append(f"{num_empty:,} {'is' if num_empty == 1 else 'are'} null or empty")
    return f"{ID_COLUMN} does not identify every request: {', '.join(problems)}" if problems else None


def body_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request's body, given as an object or as JSON text.

    Raises:
        RowRejected: the body is missing, or is not an object.
    """
    body = values.get(BODY_COLUMN)
    if body is None:
        raise RowRejected("null_prompt", f"column {BODY_COLUMN!r} is null")
    body = _parse(body) if isinstance(body, str) else body
    if not isinstance(body, dict):
        raise RowRejected("invalid_request", f"column {BODY_COLUMN!r} is not a JSON object")
    return body


def url_of(values: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """Return the URL of a request; if it has none, the one that its body fits. (Azure omits the version.)"""
    url = values.get(URL_COLUMN)
    if url is None:
        return TEXT_URL if body.get("messages") is None and body.get("prompt") is not None else CHAT_URL
    return f"/v1{url}" if url in ("/chat/completions", "/completions") else str(url)


def _without_developer(messages: Messages) -> Messages:
    """Call the developer of newer requests system, which is the name that chat templates know."""
    return [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]


def _text(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise RowRejected("invalid_request", "body.prompt is not a single string")
    if not prompt.strip():
        raise RowRejected("empty_prompt", "body.prompt is empty", prompt)
    return prompt


def _parse(text: str) -> Any:
    """Return the value of a JSON text; None if it is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None

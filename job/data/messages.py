"""Conversations as a row holds them: a list of messages, or the same as JSON text."""

import json
from typing import Any

from job.errors import shorten
from job.records import RowError

TYPE_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
"""How JSON, and so our users, call Python's types."""

Messages = list[dict[str, Any]]
Content = str | Messages


class RowRejected(Exception):
    """This row cannot become a prompt."""

    def __init__(self, kind: str, detail: str, text: str | None = None) -> None:
        """Keep the text where there is one: it helps whoever looks into the error rows."""
        super().__init__(detail)
        self.row_error, self.text = RowError(kind, detail), text


def parse_messages(value: Any, where: str) -> Messages:
    """Check a list of messages, given as such or as JSON text, and drop keys that are null (Arrow fills them in).

    Raises:
        RowRejected: it is not a list of {role, content}, or a content is no text.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowRejected("invalid_messages", f"{where} is text, but not JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise RowRejected("invalid_messages", f"{where} is not a list of messages: {shorten(value)}")
    messages = []
    for idx, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowRejected("invalid_messages", f"{where}, message {idx} has no role: {shorten(message)}")
        if message.get("content") is None and not message.get("tool_calls"):
            raise RowRejected("invalid_messages", f"{where}, message {idx} has no content")
        known = {key: item for key, item in message.items() if item is not None}
        if "content" in known:
            known["content"] = _content_text(known["content"], where)
        messages.append(known)
    return messages


def _content_text(content: Any, where: str) -> str:
    """Return a message's text, its parts joined as vLLM does: few chat templates know of parts.

    Raises:
        RowRejected: it is no text, or a part is an image or the like.
    """
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else TYPE_NAMES.get(type(part), type(part).__name__)
            raise RowRejected("unsupported_content", f"{where} has a part of type {kind}; this run reads text")
        texts.append(text)
    return "\n".join(texts)

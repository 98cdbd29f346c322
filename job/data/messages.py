"""Conversations in a row: a list of messages, or such a list as JSON text."""

import json
from typing import Any

from job.errors import shorten
from job.records import RowRejected

TYPE_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
"""Python types to their names in JSON, which users know."""

SHAREGPT_HINT = "; convert from and value (ShareGPT) to role (system, user, assistant) and content"

Messages = list[dict[str, Any]]
Content = str | Messages


def parse_messages(value: Any, where: str) -> Messages:
    """Check a list of messages, given as a list or as JSON text, and drop null keys (Arrow adds them).

    Raises:
        RowRejected: it is not a list of {role, content}, or a content is not text.
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
            hint = SHAREGPT_HINT if isinstance(message, dict) and "from" in message else ""
            raise RowRejected("invalid_messages", f"{where}, message {idx} has no role: {shorten(message)}{hint}")
        if message.get("content") is None and not message.get("tool_calls"):
            raise RowRejected("invalid_messages", f"{where}, message {idx} has no content")
        known = {key: item for key, item in message.items() if item is not None}
        if "content" in known:
            known["content"] = _content_text(known["content"], where)
        messages.append(known)
    return messages


def ended_by_user(messages: Messages, policy: str, where: str) -> Messages:
    """Return a conversation as ``--last-assistant-turn`` wants it, if it ends with the assistant.

    Raises:
        RowRejected: it ends with the assistant, and the policy does not allow that, or nothing else would be left.
    """
    if messages[-1]["role"] != "assistant":
        return messages
    kept = list(messages)
    while policy == "drop" and kept and kept[-1]["role"] == "assistant":
        kept.pop()
    if policy == "drop" and any(message["role"] != "system" for message in kept):
        return kept
    if policy == "continue" and "content" in messages[-1] and not messages[-1].get("tool_calls"):
        return messages
    problem = {
        "error": "ends with the assistant's turn; choose --last-assistant-turn drop or continue",
        "drop": "has nothing but the assistant's turn",
        "continue": "ends with a tool call, which cannot be continued",
    }
    raise RowRejected("ends_with_assistant", f"{where} {problem[policy]}")


def last_text(content: Content) -> str:
    """Return the row's own text: of a conversation, the last message of the user."""
    if isinstance(content, str):
        return content
    from_user = [str(m["content"]) for m in content if m["role"] == "user" and "content" in m]
    return from_user[-1] if from_user else ""


def _content_text(content: Any, where: str) -> str:
    """Return a message's text. Parts are joined as vLLM does: few chat templates support parts.

    Raises:
        RowRejected: the content is not text, or a part is something else, such as an image.
    """
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else TYPE_NAMES.get(type(part), type(part).__name__)
            raise RowRejected("unsupported_content", f"{where} has a part of type {kind}; this run reads text")
        texts.append(text)
    return "\n".join(texts)

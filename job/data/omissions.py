"""Finds what a chat template leaves out of a conversation: the model would answer something that nobody asked.

Templates skip roles that they do not know, names, tool calls, or system messages that do not come first. But they may
also rewrite: trim a text, write it as JSON, or take the reasoning out of earlier answers. So a template is asked with
another conversation of the same form, whose every text is a mark, which marks reach the prompt; and of the real texts,
those that no template has a reason to change must occur in the prompt.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import escape

from job.data.messages import Messages

MARK = "8d1f0c6b"
"""The beginning of texts that occur nowhere else."""

MAX_FORMS = 10_000
"""How many forms of conversations are remembered."""

REASONING = re.compile(r"<[^<>]{0,9}(think|thought|reason|channel|message)[^<>]{0,9}>|\[/?THINK\]|◁/?think▷", re.I)
"""What borders reasoning, which templates take out of earlier answers."""

PARTS = {
    "content": "",
    "name": "the name of ",
    "tool_calls": "the tool calls of ",
    "function_call": "the function call of ",
}
"""The parts of a message that must reach the prompt, and what an error calls them."""

CALLS = ("tool_calls", "function_call")
"""Those that have a name and arguments within. The second is what OpenAI's API had before the first."""

Form = tuple[Any, ...]


class Omissions:
    """What one chat template leaves out of conversations."""

    def __init__(self, chat_template: Callable[[Messages], str]) -> None:
        """Watch a chat template; nothing is rendered yet."""
        self._chat_template = chat_template
        self._known: dict[Form, frozenset[tuple[int, str]] | None] = {}

    def find(self, messages: Messages, text: str) -> str | None:
        """Return what a prompt lacks, as a clause about the chat template; None if nothing.

        Args:
            messages: the conversation.
            text: the prompt that the chat template has made of it.
        """
        dropped = self._dropped(messages)
        for idx, message in enumerate(messages):
            where, role = f"message {idx} ({message['role']})", message["role"]
            for part, what in PARTS.items():
                if dropped is not None and (idx, part) in dropped:
                    return f"leaves out or changes {what}{where}"
            content = message.get("content", "").strip()
            if content in text or _occurs(content, text):
                continue
            may_change = REASONING.search(content) if role == "assistant" else role in ("tool", "function")
            if dropped is None or not may_change:
                return f"leaves out or changes {where}"
        return None

    def _dropped(self, messages: Messages) -> frozenset[tuple[int, str]] | None:
        """Return which parts of the messages do not reach the prompt, by index; None if that cannot be found out."""
        form = tuple(_form(message) for message in messages)
        if form not in self._known:
            if len(self._known) >= MAX_FORMS:
                self._known.clear()
            self._known[form] = self._probe(messages)
        return self._known[form]

    def _probe(self, messages: Messages) -> frozenset[tuple[int, str]] | None:
        marked = [_marked(idx, message) for idx, message in enumerate(messages)]
        try:
            text = self._chat_template(marked)
        except Exception:  # a template raises whatever it likes; it has accepted the real conversation
            return None
        return frozenset(
            (idx, part)
            for idx, message in enumerate(messages)
            for part in _parts(message)
            if not all(mark in text for mark in _marks(idx, message, part))
        )


def _parts(message: Mapping[str, Any]) -> list[str]:
    """Return the parts of a message that must reach the prompt. The name of a tool is in the call that it answers."""
    parts = ["content"] if message.get("content", "").strip() else []
    if message.get("name") and message["role"] in ("user", "assistant", "system"):
        parts.append("name")
    return [*parts, *(part for part in CALLS if message.get(part))]


def _form(message: Mapping[str, Any]) -> Form:
    """Return all of a message that a template may depend on, except for its texts."""
    calls = message.get("tool_calls")
    return (message["role"], *_parts(message), *sorted(message), len(calls) if isinstance(calls, list) else 0)


def _marks(idx: int, message: Mapping[str, Any], part: str) -> list[str]:
    """Return the marks of a part that must be in the prompt."""
    mark = f"{MARK}-{idx}-{part}"
    if part not in CALLS:
        return [mark]
    has_arguments = f"{mark}-arguments" in json.dumps(_marked_calls(message[part], mark), default=str)
    return [f"{mark}-name", f"{mark}-arguments"] if has_arguments else [f"{mark}-name"]


def _marked(idx: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with marks for its texts."""
    marked = {**message, **{part: f"{MARK}-{idx}-{part}" for part in _parts(message)}}
    for part in CALLS:
        if message.get(part):
            marked[part] = _marked_calls(message[part], f"{MARK}-{idx}-{part}")
    return marked


def _marked_calls(calls: Any, mark: str) -> Any:
    """Return tool calls with a mark for each name, and one for the arguments, whether they are an object or JSON."""
    if isinstance(calls, list):
        return [_marked_calls(call, mark) for call in calls]
    if not isinstance(calls, Mapping):
        return calls
    marked = {**calls}
    if "name" in calls:
        marked["name"] = f"{mark}-name"
    if calls.get("arguments"):
        arguments = {"argument": f"{mark}-arguments"}
        marked["arguments"] = json.dumps(arguments) if isinstance(calls["arguments"], str) else arguments
    return {**marked, "function": _marked_calls(calls["function"], mark)} if "function" in calls else marked


def _occurs(content: str, text: str) -> bool:
    """Whether a text occurs in another, apart from white space, switches such as /no_think, and escapes."""
    wanted, found = (" ".join(word for word in each.split() if word[0] != "/") for each in (content, text))
    escaped = (str(escape(content)), *(json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (False, True)))
    return wanted in found or any(form in text for form in escaped)

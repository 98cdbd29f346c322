"""From a row to the text that the model reads: a column, a list of messages, or a Jinja2 template.

Templates run in Jinja2's sandbox: they come with datasets and models, and must not reach Python. Whatever goes wrong
with one row becomes an error of that row.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from job.config import PromptConfig
from job.errors import UsageError
from job.records import Prompt, Row, RowError

TYPE_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
"""How JSON, and so our users, call Python's types."""

MARK = "8d1f0c6b-content"
"""Stands for a row's content in a chat template, and occurs nowhere else."""

Messages = list[dict[str, Any]]
Content = str | Messages
ChatTemplate = Callable[[Messages], str]


class RowRejected(Exception):
    """This row cannot become a prompt."""

    def __init__(self, kind: str, detail: str, text: str | None = None) -> None:
        """Keep the text where there is one: it helps whoever looks into the error rows."""
        super().__init__(detail)
        self.row_error, self.text = RowError(kind, detail), text


class PromptRenderer:
    """Renders rows. Knows the configuration and, if there is one, the tokenizer's chat template."""

    def __init__(self, config: PromptConfig, chat_template: ChatTemplate | None, columns: Collection[str]) -> None:
        """Check the configuration against the dataset's columns.

        Args:
            chat_template: turns messages into text, or None: the prompt is used as it is.
            columns: of the dataset.

        Raises:
            UsageError: a column is missing, the template is wrong, or messages have no chat template.
        """
        self._chat_template, self._system_prompt = chat_template, config.system_prompt
        self._extract: Callable[[Mapping[str, Any]], Content]
        if config.messages_column is not None:
            self._extract, self.columns = self._messages_of, [config.messages_column]
        elif config.prompt_template is not None:
            self._template = compile_template(config.prompt_template)
            self._extract, self.columns = self._from_template, template_columns(config.prompt_template, columns)
        else:
            assert config.text_column is not None, "there is no fourth way"
            self._extract, self.columns = self._from_column, [config.text_column]
        self._check(config, columns)
        self._suffix = self._find_suffix()

    def render(self, row: Row) -> Prompt:
        """Return the row's prompt, or the reason why it has none."""
        if row.error is not None:
            return Prompt(row_idx=row.row_idx, text=None, error=row.error)
        try:
            content = self._extract(row.values)
            text = self._apply_chat_template(content)
            span = find_content(text.removesuffix(self._suffix), content)
            return Prompt(row_idx=row.row_idx, text=text, content_span=span)
        except RowRejected as rejected:
            return Prompt(row_idx=row.row_idx, text=rejected.text, error=rejected.row_error)

    def _check(self, config: PromptConfig, columns: Collection[str]) -> None:
        needs_chat = "--messages-column" if config.messages_column else "--system-prompt"
        if self._chat_template is None and (config.messages_column or config.system_prompt):
            raise UsageError(
                f"{needs_chat} needs a chat template, but the tokenizer has none. "
                "Use a chat model, or --prompt-template with the instruction in it."
            )
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise UsageError(
                f"The dataset has no column {missing[0]!r}. Columns: {', '.join(columns) or 'none'}. "
                "Set --prompt-column, --messages-column or --prompt-template."
            )

    def _find_suffix(self) -> str:
        """Return what the chat template writes behind the user's message. Content like "assistant" may occur in it."""
        try:
            return self._apply_chat_template(MARK).rpartition(MARK)[2]
        except RowRejected:
            return ""

    def _from_column(self, values: Mapping[str, Any]) -> str:
        name = self.columns[0]
        value = values.get(name)
        if value is None:
            raise RowRejected("null_prompt", f"column {name!r} is null")
        if not isinstance(value, str):
            kind = TYPE_NAMES.get(type(value), type(value).__name__)
            raise RowRejected("not_a_string", f"column {name!r} is a {kind}: {_short(value)}")
        return _not_empty(value, f"column {name!r}")

    def _from_template(self, values: Mapping[str, Any]) -> str:
        try:
            text = self._template.render({name: values.get(name) for name in self.columns})
        except Exception as error:  # a template can raise anything that its expressions can
            raise RowRejected("template_error", f"{type(error).__name__}: {_short(str(error))}") from None
        return _not_empty(text, "the rendered template")

    def _messages_of(self, values: Mapping[str, Any]) -> Messages:
        name = self.columns[0]
        value = values.get(name)
        if value is None:
            raise RowRejected("null_prompt", f"column {name!r} is null")
        return parse_messages(value, f"column {name!r}")

    def _apply_chat_template(self, content: Content) -> str:
        if self._chat_template is None:
            assert isinstance(content, str), "messages without a chat template are refused at the start"
            return content
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        if self._system_prompt is not None:
            messages = [{"role": "system", "content": self._system_prompt}, *messages]
        try:
            return self._chat_template(messages)
        except Exception as error:  # chat templates raise their own errors on roles that they do not like
            raise RowRejected(
                "template_error", f"chat template: {type(error).__name__}: {_short(str(error))}"
            ) from None


def find_content(text: str, content: Content) -> tuple[int, int] | None:
    """Return where the row's own content stands in the prompt, so that truncation leaves the chat template whole.

    Of messages, the last one of the user is meant. None if the template changed it beyond recognition.

    >>> find_content("<user> what? </user><assistant>", "what? ")
    (7, 13)
    """
    if not isinstance(content, str):
        from_user = [m["content"] for m in content if m["role"] == "user" and isinstance(m.get("content"), str)]
        content = from_user[-1] if from_user else ""
    for wanted in (content, content.strip()):  # many chat templates strip
        start = text.rfind(wanted)
        if wanted and start >= 0:
            return (start, start + len(wanted))
    return None


def parse_messages(value: Any, where: str) -> Messages:
    """Check a list of messages, given as such or as JSON text, and drop keys that are null (Arrow fills them in).

    Raises:
        RowRejected: it is not a list of {role, content}.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowRejected("invalid_messages", f"{where} is text, but not JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise RowRejected("invalid_messages", f"{where} is not a list of messages: {_short(value)}")
    messages = []
    for idx, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowRejected("invalid_messages", f"{where}, message {idx} has no role: {_short(message)}")
        if message.get("content") is None and not message.get("tool_calls"):
            raise RowRejected("invalid_messages", f"{where}, message {idx} has no content")
        messages.append({key: item for key, item in message.items() if item is not None})
    return messages


def read_template(text_or_file: str) -> str:
    """Return a template's text; the argument is the text itself or the path of a file with it.

    Raises:
        UsageError: it looks like a path, but there is no such file, or none that holds text.
    """
    if "\n" in text_or_file or "{" in text_or_file:
        return text_or_file
    with contextlib.suppress(OSError, ValueError):  # too long for a name: no file
        if Path(text_or_file).is_file():
            return Path(text_or_file).read_text(encoding="utf-8")
    raise UsageError(f"--prompt-template {text_or_file!r} is neither a file nor a template, such as '{{{{ text }}}}'.")


def compile_template(text: str) -> jinja2.Template:
    """Compile a template in the sandbox.

    Raises:
        UsageError: its syntax is wrong; the message gives the line.
    """
    try:
        return _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        raise UsageError(
            f"--prompt-template, line {error.lineno}: {str(error.message).rstrip('.')}. The line is: {_short(line)}"
        ) from None


def template_columns(text: str, columns: Collection[str] = ()) -> list[str]:
    """Return the variables that a template takes from outside: the columns it needs.

    Args:
        columns: of the dataset. One with the name of a function of Jinja2, such as ``range``, hides the function.

    >>> template_columns("{% for x in rows %}{{ x }}{{ name }}{% endfor %}")
    ['name', 'rows']
    """
    compile_template(text)
    environment = _environment()
    for name in columns:
        environment.globals.pop(name, None)
    return sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)))


def _refuse_null(value: Any) -> Any:
    """Let a null that a template prints be an error: no model should read the word None where a text is missing."""
    if value is None:
        raise ValueError("a null value; write {{ column or '' }} if it may be missing")
    return value


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_refuse_null, keep_trailing_newline=False, autoescape=False
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment


def _not_empty(text: str, where: str) -> str:
    if not text.strip():
        raise RowRejected("empty_prompt", f"{where} is empty", text)
    return text


def _short(value: Any) -> str:
    """Quote a value in a message, on one line, cut short."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."

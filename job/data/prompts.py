"""From a row to the text that the model reads: a column, a list of messages, or a Jinja2 template.

Templates run in Jinja2's sandbox: they come with datasets and models, and must not reach Python. Any failure in one row
becomes an error of that row.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from job.config import PromptConfig
from job.data import omissions
from job.data.chat_template import ChatTemplate
from job.data.examples import Example, conversation_of, insert_turns, parse_examples, text_of
from job.data.messages import TYPE_NAMES, Content, Messages, ended_by_user, last_text, parse_messages
from job.data.prefill import PREFILL_MARK, Prefill
from job.data.special_tokens import NO_SPECIAL_TOKENS, SpecialTokens
from job.data.templates import Template
from job.errors import UsageError, reason_of, shorten
from job.records import Prompt, Row, RowRejected
from job.wording import no_column

MARK = f"{omissions.MARK}-row"
"""A placeholder for a row's content in a chat template. It occurs nowhere else."""


class RequestReader(Protocol):
    """Extracts the prompt from a row that is a request to OpenAI's API."""

    columns: list[str]
    """The columns that it needs."""

    def content_of(self, values: Mapping[str, Any]) -> Content:
        """Return the messages of the row, or its text."""


def needed_columns(config: PromptConfig, columns: Collection[str]) -> list[str]:
    """Return the columns that prompts are made from; ``*`` means all of them.

    Args:
        columns: columns of the dataset that are known so far.
    """
    if config.prompt_template is None:
        return [name for name in (config.text_column, config.messages_column) if name is not None]
    template = _template(config, columns)
    names = ["*"] if template.needs_all else template.columns
    return [name for name in names if name != "examples" or config.examples is None]


class PromptRenderer:
    """Turns rows into prompts, with the chat template if there is one."""

    def __init__(
        self,
        config: PromptConfig,
        chat_template: ChatTemplate | None,
        columns: Collection[str],
        requests: RequestReader | None = None,
        mode_columns: Sequence[str] = (),
        special_tokens: SpecialTokens = NO_SPECIAL_TOKENS,
    ) -> None:
        """Check the configuration against the dataset's columns.

        Args:
            chat_template: turns messages into text; None means that prompts are used unchanged.
            columns: columns of the dataset.
            requests: extracts the prompts, if rows are requests to OpenAI's API.
            mode_columns: whose values go along with each prompt.
            special_tokens: what to do with special tokens in the text of rows.

        Raises:
            UsageError: a column is missing, the template is invalid, or messages have no chat template.
        """
        self._chat_template, self._system_prompt = chat_template, config.system_prompt
        self._special_tokens, self._last_turn = special_tokens, config.last_assistant_turn
        self._text_prefix, self._is_whole = config.text_prefix, config.whole_conversations
        self._lowers_case = config.lowers_case
        self._omissions = omissions.Omissions(chat_template) if chat_template and config.has_own_rules else None
        examples = () if config.examples is None else parse_examples(config.examples)
        self._prefill = Prefill(config.prefill, columns)
        self._template_values: dict[str, Any] = {}
        self._extract: Callable[[Mapping[str, Any]], Content]
        if requests is not None:
            self._extract, self.columns = requests.content_of, requests.columns
        elif config.messages_column is not None:
            self._extract, self.columns = self._messages_of, [config.messages_column]
        elif config.prompt_template is not None:
            self._template = _template(config, columns)
            self._extract, self.columns = self._from_template, list(self._template.columns)
        else:
            assert config.text_column is not None, "one of the ways to a prompt is set"
            self._extract, self.columns = self._from_column, [config.text_column]
        if "examples" in self.columns and config.prompt_template is not None and examples:
            self.columns.remove("examples")
            self._template_values["examples"] = [example.values for example in examples]
            examples = ()  # the template includes them
        self._check(config, columns)
        for name in (*self._prefill.columns, *mode_columns):
            if name not in columns:
                raise UsageError(f"The dataset has {no_column(name, columns)}.")
        self._mode_columns = tuple(mode_columns)
        self._shots = [self._shot(example) for example in examples]
        self._head, self._suffix = self._find_surroundings()

    @property
    def read_columns(self) -> list[str]:
        """The columns that rows must have, for their prompts and for the modes."""
        return list(dict.fromkeys([*self.columns, *self._prefill.columns, *self._mode_columns]))

    def render(self, row: Row) -> Prompt:
        """Return the prompt of a row, or the reason why there is none."""
        if row.error is not None:
            return Prompt(row_idx=row.row_idx, text=None, error=row.error)
        try:
            checked = self._special_tokens.checked(self._of_prompt(row.values))
            content = self._content_of(checked)
            asked, prefill = self._apply_chat_template(content), self._prefill.render(checked)
            text, literal_spans = self._special_tokens.restored(asked + prefill)
            asked = self._special_tokens.restored(asked)[0] if prefill else text
            start = len(self._head) if text.startswith(self._head) else 0
            own_text, _ = self._special_tokens.restored(last_text(content))
            return Prompt(
                row_idx=row.row_idx,
                text=text,
                content_span=find_content(asked.removesuffix(self._suffix), own_text, start),
                prefill=text[len(asked) :],
                literal_spans=literal_spans,
                values={name: row.values.get(name) for name in self._mode_columns},
            )
        except RowRejected as rejected:
            return Prompt(row_idx=row.row_idx, text=rejected.text, error=rejected.row_error)

    def check_system_prompt(self) -> None:
        """Check that the chat template takes a system message, if one was asked for.

        Raises:
            UsageError: it refuses it, or leaves it out of the prompt.
        """
        if self._chat_template is None or self._system_prompt is None:
            return
        try:
            self._apply_chat_template(MARK)
        except RowRejected as rejected:
            raise UsageError(
                f"--system-prompt does not work with this model. {rejected.row_error.detail}. Put the instruction into "
                "the user's message instead, with --prompt-template."
            ) from None

    def render_probe(self, text: str) -> Prompt:
        """Return the prompt of a row that has ``text`` in every column, or the reason why there is none."""
        try:
            if self._extract not in (self._from_column, self._from_template):
                raise RowRejected(
                    "invalid_messages", "a text cannot replace messages; use --prompt-column or --prompt-template"
                )
            is_template, values = self._extract == self._from_template, dict.fromkeys(self.read_columns, text)
            content = self._from_template(values) if is_template else text
            return Prompt(row_idx=-1, text=self._apply_chat_template(content) + self._prefill.render(values))
        except RowRejected as rejected:
            return Prompt(row_idx=-1, text=None, error=rejected.row_error)

    @property
    def suffix(self) -> str:
        """The text after the user's message: what the chat template adds, and the prefill if all rows have the same."""
        return self._suffix + self._prefill.constant

    def _of_prompt(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values that prompts are made from. What only modes read may have special tokens."""
        if not self._mode_columns:
            return values
        return {name: values.get(name) for name in (*self.columns, *self._prefill.columns)}

    def _content_of(self, values: Mapping[str, Any]) -> Content:
        """Return what a row asks.

        Raises:
            RowRejected: nothing, or nothing that the run answers.
        """
        content = self._extract(values)
        if isinstance(content, str) or self._omissions is None:
            return content.lower() if self._lowers_case and isinstance(content, str) else content
        where = f"column {self.columns[0]!r}"
        if not (self._is_whole and self._last_turn == "error"):
            content = ended_by_user(content, self._last_turn, where)
        if content[-1]["role"] == "user" and not content[-1].get("content", "").strip():
            raise RowRejected("empty_prompt", f"{where}, message {len(content) - 1} is empty")
        return content

    def _check(self, config: PromptConfig, columns: Collection[str]) -> None:
        needs_chat = "--messages-column" if config.messages_column else "--system-prompt"
        if self._chat_template is None and (config.messages_column or config.system_prompt):
            raise UsageError(
                f"{needs_chat} needs a chat template, but the tokenizer has none. "
                "Use a chat model, or put the instruction into --prompt-template."
            )
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise UsageError(
                f"The dataset has {no_column(missing[0], columns)}. "
                "Set --prompt-column, --messages-column or --prompt-template."
            )

    def _find_surroundings(self) -> tuple[str, str]:
        """Return the text before and after the user's message. Either may happen to contain a row's content."""
        try:
            text = self._apply_chat_template(MARK)
            return (text.partition(MARK)[0], text.rpartition(MARK)[2]) if MARK in text else ("", "")
        except RowRejected:  # so will each row
            return "", ""

    def _shot(self, example: Example) -> tuple[Content, str]:
        """Return the prompt of an example, rendered like a row, and its answer.

        Raises:
            UsageError: it cannot be rendered.
        """
        missing = [name for name in self.columns if name not in example.values]
        if missing:
            raise UsageError(f"--examples, line {example.line}: it has no {missing[0]!r}, which the prompt needs.")
        try:
            content = self._content_of(example.values)
        except RowRejected as rejected:
            raise UsageError(f"--examples, line {example.line}: {rejected.row_error.detail}.") from None
        if not isinstance(content, str) and content[0]["role"] == "system":
            raise UsageError(
                f"--examples, line {example.line}: it begins with a system message, but belongs inside a conversation. "
                "Leave that message out."
            )
        return content, example.completion

    def _from_column(self, values: Mapping[str, Any]) -> str:
        name = self.columns[0]
        value = values.get(name)
        if value is None:
            raise RowRejected("null_prompt", f"column {name!r} is null")
        if not isinstance(value, str):
            kind = TYPE_NAMES.get(type(value), type(value).__name__)
            raise RowRejected("not_a_string", f"column {name!r} is a {kind}: {shorten(value)}")
        return _not_empty(value, f"column {name!r}")

    def _from_template(self, values: Mapping[str, Any]) -> str:
        try:
            text = self._template.render({name: values.get(name) for name in self.columns}, self._template_values)
        except Exception as error:  # a template raises whatever its expressions raise
            raise RowRejected("template_error", reason_of(error)) from None
        return _not_empty(text, "the rendered template")

    def _messages_of(self, values: Mapping[str, Any]) -> Messages:
        name = self.columns[0]
        value = values.get(name)
        if value is None:
            raise RowRejected("null_prompt", f"column {name!r} is null")
        return parse_messages(value, f"column {name!r}")

    def _apply_chat_template(self, content: Content) -> str:
        """Return the prompt without its prefill."""
        if self._chat_template is None:
            assert isinstance(content, str), "messages without a chat template are refused at the start"
            return self._text_prefix + text_of(self._shots) + content
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        if self._system_prompt is not None:
            messages = [{"role": "system", "content": self._system_prompt}, *messages]
        messages = insert_turns(conversation_of(self._shots), messages)
        if self._prefill.is_given:
            messages = [*messages, {"role": "assistant", "content": PREFILL_MARK}]
        try:
            text = self._chat_template(messages)
        except Exception as error:  # chat templates raise their own errors for roles that they do not accept
            raise RowRejected("template_error", f"chat template: {reason_of(error)}") from None
        omission = None if self._omissions is None else self._omissions.find(messages, text)
        if omission is not None:
            raise RowRejected("dropped_message", f"the chat template {omission}")
        return text.removesuffix(PREFILL_MARK)


def find_content(text: str, content: str, start: int = 0) -> tuple[int, int] | None:
    """Return the span of the row's own text in the prompt, so that truncation leaves the chat template intact.

    Returns None if the template has changed it.

    Args:
        start: the text before this position is not the row's own.

    >>> find_content("<user> what? </user><assistant>", "what? ")
    (7, 13)
    """
    for wanted in (content, content.strip()):  # many chat templates strip
        found = text.rfind(wanted, start)
        if wanted and found >= 0:
            return (found, found + len(wanted))
    return None


def _template(config: PromptConfig, columns: Collection[str]) -> Template:
    return Template(str(config.prompt_template), columns, is_older=not config.has_own_rules)


def _not_empty(text: str, where: str) -> str:
    if not text.strip():
        raise RowRejected("empty_prompt", f"{where} is empty", text)
    return text

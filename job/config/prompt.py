"""How a row becomes a prompt: the options, and the text of the files that they name."""

import contextlib
import json
from dataclasses import dataclass
from datetime import date
from typing import Any

from job.errors import UsageError, require
from job.modes.options import option
from job.modes.texts import read_chat_template, read_examples, read_prefill, read_system_prompt, read_template

LONG_PROMPT_POLICIES = ("error", "truncate-left", "truncate-right")
LAST_TURN_POLICIES = ("error", "drop", "continue")
SPECIAL_TOKEN_POLICIES = ("allow", "escape", "error")
REASONING_EFFORTS = ("none", "low", "medium", "high")

CHAT_OPTIONS = ("messages_column", "system_prompt", "chat_template", "chat_template_kwargs", "reasoning_effort")
"""What needs a chat template."""

TEXT_RULES = 2
"""The current value of ``PromptConfig.text_rules``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How a row becomes a prompt."""

    prompt_column: str | None = option(None, "Column with the prompt [default: prompt].")
    messages_column: str | None = option(None, "Column with a list of {role, content}, or that as JSON text.")
    prompt_template: str | None = option(
        None,
        "Jinja2 template over the columns, e.g. 'Summarize: {{ text }}', or a file with one. Text is taken as typed; "
        "of a file, the last line end is dropped and \\r\\n becomes \\n.",
        metavar="TEXT_OR_FILE",
        read=read_template,
    )
    system_prompt: str | None = option(
        None, "System message before every prompt, or a file with it.", metavar="TEXT_OR_FILE", read=read_system_prompt
    )
    examples: str | None = option(
        None,
        "Few-shot examples before every prompt: JSON lines with the prompt's columns and 'completion'.",
        metavar="FILE",
        read=read_examples,
        is_path=True,
    )
    chat: bool | None = option(None, "Apply the tokenizer's chat template [default: if it has one].")
    chat_template: str | None = option(
        None,
        "Jinja2 chat template in place of the tokenizer's, or a file with one.",
        metavar="TEXT_OR_FILE",
        read=read_chat_template,
    )
    chat_template_kwargs: str | None = option(
        None,
        "Variables for the chat template: a JSON object such as '{\"enable_thinking\": false}'. In a --config file it "
        "may be a table.",
        metavar="JSON",
        is_object=True,
    )
    reasoning_effort: str | None = option(
        None,
        "How much the model is to think, if its chat template has a variable for it. For a template that only knows "
        "on and off, none is off and the others are on.",
        choices=REASONING_EFFORTS,
    )
    prefill: str | None = option(
        None,
        "Text that begins the answer, which the model continues, or a file with it. It may be a Jinja2 template over "
        "the columns.",
        metavar="TEXT_OR_FILE",
        read=read_prefill,
    )
    include_prefill: bool = option(False, "Begin the completion column with the prefill.", is_switch=True)
    source_language: str | None = option(
        None,
        "For a translation model: the language of the prompts, by its tokenizer's name, such as eng_Latn, en_XX or en "
        "[default: the tokenizer's].",
        metavar="LANG",
    )
    target_language: str | None = option(
        None,
        "For a translation model: the language of its answers, by its tokenizer's name, such as fra_Latn, fr_XX or fr; "
        "or any other special token with which they are to begin [default: what the model's files force].",
        metavar="LANG",
    )
    date: str | None = option(
        None,
        "Today's date for chat templates that write it into prompts [default: the day on which the run was first "
        "started, in UTC].",
        metavar="YYYY-MM-DD",
    )
    last_assistant_turn: str = option(
        "error",
        "For conversations that end with the assistant's turn, make an error row, drop that turn so that the model "
        "answers instead, or let the model continue it.",
        choices=LAST_TURN_POLICIES,
    )
    special_tokens_in_text: str = option(
        "allow",
        "For rows whose text contains special tokens, such as <|im_end|>: read them as tokens, read them as plain "
        "text, or make an error row.",
        choices=SPECIAL_TOKEN_POLICIES,
    )
    max_prompt_tokens: int | None = option(
        None, "Maximum number of prompt tokens [default: what the answer leaves of the model's context]."
    )
    on_long_prompt: str = option(
        "error",
        "For longer prompts, make an error row, or cut the row's text (never the chat template) on the left or right.",
        choices=LONG_PROMPT_POLICIES,
    )
    text_prefix: str = ""
    """What the model reads before each text, if prompts are not made by a chat template."""
    lowers_case: bool = False
    """Whether texts are read in lower case, if prompts are not made by a chat template."""
    whole_conversations: bool = False
    """Whether a conversation is read as it is, and no answer of the assistant is begun."""
    text_rules: int = TEXT_RULES
    """1: the prompts and completions of a run that version 0.1 or 0.2 began; see ``job.run.older_runs``."""

    @property
    def text_column(self) -> str | None:
        """The column whose text is the prompt; None if the prompt comes from messages or a template."""
        if self.messages_column is not None or self.prompt_template is not None:
            return None
        return self.prompt_column or "prompt"

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables for the chat template that were given by name."""
        variables: dict[str, Any] = json.loads(self.chat_template_kwargs or "{}")
        return variables

    @property
    def has_own_rules(self) -> bool:
        """Whether the run makes text as this version does, not as versions 0.1 and 0.2 did."""
        return self.text_rules > 1

    @property
    def continues_last_turn(self) -> bool:
        """Whether the model continues a conversation's last turn if that is the assistant's, as with a prefill."""
        return self.has_own_rules and (self.last_assistant_turn == "continue" or self.prefill is not None)

    def __post_init__(self) -> None:
        ways = [n for n in ("prompt_column", "messages_column", "prompt_template") if getattr(self, n) is not None]
        if len(ways) > 1:
            names = " and ".join("--" + n.replace("_", "-") for n in ways)
            raise UsageError(f"{names} were given together. Give only one: it defines the prompt.")
        if self.chat is False and (name := next((n for n in CHAT_OPTIONS if getattr(self, n)), None)):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} needs the chat template, but --no-chat was given. Leave one of them out.")
        require(self.prefill != "", "prefill", self.prefill, "a non-empty text")
        for name in ("source_language", "target_language"):
            require(getattr(self, name) != "", name.replace("_", "-"), "", "a language such as fra_Latn or fr")
        if self.prefill is not None and self.last_assistant_turn == "continue":
            raise UsageError(
                "--prefill and --last-assistant-turn continue were given together. Give only one: each begins the "
                "answer."
            )
        if self.max_prompt_tokens is not None:
            require(self.max_prompt_tokens > 0, "max-prompt-tokens", self.max_prompt_tokens, "at least 1")
        for name, policies in (
            ("on_long_prompt", LONG_PROMPT_POLICIES),
            ("last_assistant_turn", LAST_TURN_POLICIES),
            ("special_tokens_in_text", SPECIAL_TOKEN_POLICIES),
            ("reasoning_effort", (None, *REASONING_EFFORTS)),
        ):
            value = getattr(self, name)
            require(value in policies, name.replace("_", "-"), value, f"one of {', '.join(filter(None, policies))}")
        require(self.date is None or _is_date(self.date), "date", self.date, "a date such as 2026-11-30")


def _is_date(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return date.fromisoformat(text).isoformat() == text
    return False

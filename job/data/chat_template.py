"""A model's chat template: turns messages into text, and reads nothing but them, the date and the variables of the run.

Templates of Llama, Mistral, SmolLM3 and others write today's date into the prompt (``strftime_now``). A run has one
date, so that a restart on another day, or a node in another time zone, makes the same prompts.
"""

import datetime
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes

from job.data.messages import Messages
from job.errors import UsageError, shorten

ChatTemplate = Callable[[Messages], str]
"""From messages to the text that the model reads."""

CLOCK = "strftime_now"
"""The function by which chat templates read the date."""

NO_VARIABLES: Mapping[str, Any] = {}


class ModelChatTemplate:
    """The chat template of a tokenizer. A ``ChatTemplate``."""

    def __init__(
        self,
        tokenizer: Any,
        date: datetime.date | None = None,
        variables: Mapping[str, Any] = NO_VARIABLES,
        *,
        continues: bool = False,
        answers: bool = True,
    ) -> None:
        """Read it.

        Args:
            tokenizer: of transformers, with a chat template.
            date: what the template reads as today; None: the clock of this machine.
            variables: more that the template reads, some of ``self.variables``.
            continues: whether a last message of the assistant is continued. Otherwise its answer to it is asked for.
            answers: whether an answer is asked for at all.

        Raises:
            UsageError: there are several, and none is the default; or it cannot be parsed.
        """
        self._date, self._values, self._continues, self._answers = date, variables, continues, answers
        self._tokenizer = tokenizer
        templates = tokenizer.chat_template
        if isinstance(templates, dict) and "default" not in templates:
            names = ", ".join(sorted(templates))
            raise UsageError(
                f"The tokenizer has several chat templates ({names}), but none called default. Rename one of them in "
                "tokenizer_config.json, in a copy of the model's directory, or give one with --chat-template."
            )
        self.text = str(templates["default"] if isinstance(templates, dict) else templates)
        try:
            self._environment = _environment_of(self.text)
        except jinja2.TemplateSyntaxError as error:
            line = self.text.split("\n")[error.lineno - 1].strip()
            reason = str(error.message).rstrip(".")
            raise UsageError(
                f"The chat template cannot be used. Line {error.lineno}: {reason}. The line is: {shorten(line)}. "
                "Correct it, or give another one with --chat-template."
            ) from None

    @property
    def reads_date(self) -> bool:
        """Whether prompts contain the date."""
        return CLOCK in self._names

    @property
    def variables(self) -> frozenset[str]:
        """The names of the variables that a user may set: not those of the conversation, nor special tokens."""
        names = jinja2.meta.find_undeclared_variables(self._environment.parse(self.text))
        return frozenset(names - self.taken - {*self._tokenizer.special_tokens_map})

    @property
    def taken(self) -> frozenset[str]:
        """The names of what transformers passes to a template, or to the function that renders it."""
        parameters = {*inspect.signature(self._tokenizer.apply_chat_template).parameters}
        return frozenset((parameters | {"messages"}) - {"documents", "kwargs"})

    def check(self) -> None:
        """Check that equal messages become equal prompts.

        Raises:
            UsageError: the template draws at random.
        """
        filters = {node.name for node in self._environment.parse(self.text).find_all(jinja2.nodes.Filter)}
        if "random" in filters or "lipsum" in self._names:
            raise UsageError(
                "The chat template draws at random, so a restart would make other prompts. Change it, or give another "
                "one with --chat-template."
            )

    def of_run(
        self, date: datetime.date | None, variables: Mapping[str, Any], *, continues: bool, answers: bool = True
    ) -> "ModelChatTemplate":
        """Return the template as a run renders it; see ``__init__``."""
        return ModelChatTemplate(self._tokenizer, date, variables, continues=continues, answers=answers)

    def __call__(self, messages: Messages) -> str:
        """Return the text for messages.

        Raises:
            Exception: whatever the template raises.
        """
        if self._date is not None:  # here, because transformers keeps one environment for equal templates
            self._environment.globals[CLOCK] = partial(_midnight, self._date)
        is_continued = self._continues and messages[-1]["role"] == "assistant"
        text = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=self._answers and not is_continued,
            continue_final_message=is_continued,
            **self._values,
        )
        return str(text)

    @cached_property
    def _names(self) -> set[str]:
        """The names that the template looks up."""
        tree = self._environment.parse(self.text)
        return {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load"}


def _environment_of(text: str) -> Any:
    """Return the environment in which transformers renders a template, without which it cannot be parsed."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(text).environment


def _midnight(date: datetime.date, format: str) -> str:
    """Return the beginning of a day as ``strftime`` writes it, with seconds since 1970 that no time zone changes.

    >>> _midnight(datetime.date(1970, 1, 2), "%s %%s %H")
    '86400 %s 00'
    """
    midnight = datetime.datetime.combine(date, datetime.time())
    seconds = str(int(midnight.replace(tzinfo=datetime.UTC).timestamp()))
    return midnight.strftime(re.sub("%[%s]", lambda found: seconds if found[0] == "%s" else found[0], format))

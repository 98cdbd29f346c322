"""A model's chat template: turns messages into text, and reads nothing but them and the date of the run.

Templates of Llama, Mistral, SmolLM3 and others write today's date into the prompt (``strftime_now``). A run has one
date, so that a restart on another day, or a node in another time zone, makes the same prompts.
"""

import datetime
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jinja2.nodes

from job.data.messages import Messages
from job.errors import UsageError

ChatTemplate = Callable[[Messages], str]
"""From messages to the text that the model reads."""

CLOCK = "strftime_now"
"""The function by which chat templates read the date."""


class ModelChatTemplate:
    """The chat template that comes with a tokenizer. A ``ChatTemplate``."""

    def __init__(self, tokenizer: Any, date: datetime.date | None = None, *, continues: bool = False) -> None:
        """Read it.

        Args:
            tokenizer: of transformers, with a chat template.
            date: what the template reads as today; None: the clock of this machine.
            continues: whether a last message of the assistant is continued. Otherwise its answer to it is asked for.

        Raises:
            UsageError: there are several, and none is the default.
        """
        self._date, self._continues = date, continues
        self._tokenizer = tokenizer
        templates = tokenizer.chat_template
        if isinstance(templates, dict) and "default" not in templates:
            names = ", ".join(sorted(templates))
            raise UsageError(
                f"The tokenizer has several chat templates ({names}), but none called default. Rename one of them in "
                "tokenizer_config.json, in a copy of the model's directory, or give --no-chat."
            )
        self.text = str(templates["default"] if isinstance(templates, dict) else templates)

    @property
    def reads_date(self) -> bool:
        """Whether prompts contain the date."""
        return CLOCK in self._names()

    def check(self) -> None:
        """Check that equal messages become equal prompts.

        Raises:
            UsageError: the template draws at random.
        """
        environment = self._environment()
        filters = {node.name for node in environment.parse(self.text).find_all(jinja2.nodes.Filter)}
        if "random" in filters or "lipsum" in self._names():
            raise UsageError(
                "The model's chat template draws at random, so a restart would make other prompts. Change the template "
                "in a copy of the model's directory, or give --no-chat."
            )

    def of_run(self, date: datetime.date | None, *, continues: bool) -> "ModelChatTemplate":
        """Return the template as a run renders it; see ``__init__``."""
        return ModelChatTemplate(self._tokenizer, date, continues=continues)

    def __call__(self, messages: Messages) -> str:
        """Return the text for messages.

        Raises:
            Exception: whatever the template raises.
        """
        if self._date is not None:  # here, because transformers keeps one environment for equal templates
            self._environment().globals[CLOCK] = partial(_midnight, self._date)
        is_continued = self._continues and messages[-1]["role"] == "assistant"
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not is_continued, continue_final_message=is_continued
        )
        return str(text)

    def _names(self) -> set[str]:
        """Return the names that the template looks up."""
        tree = self._environment().parse(self.text)
        return {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load"}

    def _environment(self) -> Any:
        """Return the environment in which transformers renders the template, without which it cannot be parsed."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return _compile_jinja_template(self.text).environment


def _midnight(date: datetime.date, format: str) -> str:
    """Return the beginning of a day as ``strftime`` writes it, with seconds since 1970 that no time zone changes.

    >>> _midnight(datetime.date(1970, 1, 2), "%s %%s %H")
    '86400 %s 00'
    """
    midnight = datetime.datetime.combine(date, datetime.time())
    seconds = str(int(midnight.replace(tzinfo=datetime.UTC).timestamp()))
    return midnight.strftime(re.sub("%[%s]", lambda found: seconds if found[0] == "%s" else found[0], format))

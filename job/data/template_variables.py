"""The variables that a user sets for a chat template: those that are given by name, and what reasoning effort means."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from job.config import PromptConfig
from job.data.chat_template import ModelChatTemplate
from job.errors import UsageError

EFFORT = "reasoning_effort"
"""What chat templates call how much to think."""

SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call whether to think."""


def variables_of(config: PromptConfig, template: ModelChatTemplate | None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the variables of a run, and notes on them.

    Raises:
        UsageError: one of them has no effect, or is not the user's to set.
    """
    given, effort = config.template_variables, config.reasoning_effort
    if template is None:
        if given or effort:
            flag = "--chat-template-kwargs" if given else "--reasoning-effort"
            raise UsageError(f"{flag} needs a chat template, but the tokenizer has none. Give --chat-template.")
        return {}, ()
    readable = template.variables
    for name in given:
        _check(name, readable, template.taken)
    if effort is None:
        return given, ()
    if EFFORT in given:
        raise UsageError(
            f"--reasoning-effort and {EFFORT} in --chat-template-kwargs were given. Leave one of them out."
        )
    meant = dict(_of_effort(effort, readable))
    if not meant:
        raise UsageError(
            f"--reasoning-effort has no effect: the chat template reads neither {EFFORT} nor {SWITCHES[0]}. "
            f"{_choices(readable)} Leave it out."
        )
    is_known = EFFORT in meant or effort == "none"
    note = f"the chat template knows no degrees of thinking: --reasoning-effort {effort} only turns it on"
    return meant | given, () if is_known else (note,)


def _of_effort(effort: str, readable: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the variables that an effort stands for. Where there is a switch, ``none`` is off and nothing else."""
    switches = [name for name in SWITCHES if name in readable]
    for name in switches:
        yield name, effort != "none"
    if EFFORT in readable and not (switches and effort == "none"):
        yield EFFORT, effort


def _check(name: str, readable: Collection[str], taken: Collection[str]) -> None:
    """Check that a variable is one that the template reads and the run does not set.

    Raises:
        UsageError: it is not.
    """
    if name in taken:
        raise UsageError(f"--chat-template-kwargs has {name!r}, which the run itself sets. Leave it out.")
    if name not in readable:
        raise UsageError(
            f"--chat-template-kwargs has {name!r}, which the chat template never reads. {_choices(readable)}"
        )


def _choices(readable: Collection[str]) -> str:
    return f"It reads: {', '.join(sorted(readable))}." if readable else "It has no variables to set."

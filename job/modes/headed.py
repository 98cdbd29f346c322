"""What the modes for models with another head than a language model's have in common: nothing is generated."""

from dataclasses import replace
from typing import TYPE_CHECKING

from job.errors import UsageError

if TYPE_CHECKING:
    from job.config import PromptConfig, RunConfig
    from job.modes.mode import Mode

SAMPLING = frozenset(
    [
        *("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "bad_words", "repetition_detection"),
    ]
)
"""The options that have no effect if nothing is generated."""

CHAT_OPTIONS = ("messages_column", "system_prompt", "chat_template", "chat_template_kwargs", "reasoning_effort")


def check_alone(mode: "Mode", config: "RunConfig") -> None:
    """Check that a run asks for its vectors or labels, and for nothing that belongs to generated text.

    Raises:
        UsageError: it does not.
    """
    if config.model.task != mode.name:
        flag = "--" + next(iter(mode.given())).replace("_", "-")
        raise UsageError(f"{flag} was given without --task {mode.name}. Give both, or leave it out.")
    others = [other.flag for other in config.active_modes if type(other) is not type(mode)]
    others += ["--num-samples"] if config.sampling.num_samples > 1 else []
    others += ["--prefill"] if config.prompt.prefill is not None else []
    if others:
        raise UsageError(
            f"{others[0]} and --task {mode.name} were given together. Leave out {others[0]}: nothing is generated."
        )


def prompts_of_texts(config: "PromptConfig") -> "PromptConfig":
    """Return how rows become texts: through a chat template only if that is asked for, and then as they are."""
    if config.chat or (config.chat is None and any(getattr(config, name) is not None for name in CHAT_OPTIONS)):
        return replace(config, whole_conversations=True)
    return replace(config, chat=False)

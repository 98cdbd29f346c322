"""What the modes for models with another head than a language model's have in common: nothing is generated, and texts
that were cut are counted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from job.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import PromptConfig, RunConfig
    from job.modes.mode import Mode, Outcome
    from job.records import Request

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


CUT, CUT_TEXTS = "num_cut_tokens", "cut_texts"
"""The column of runs that cut long texts, and its tally."""


def cuts_texts(config: "RunConfig") -> bool:
    """Whether texts that are too long are cut, and not error rows."""
    return config.prompt.on_long_prompt != "error"


def cut_columns(*, cuts: bool) -> "list[pa.Field]":
    """Return the column that says how many tokens were cut off a text, if any may be."""
    import pyarrow as pa

    return [pa.field(CUT, pa.int32())] if cuts else []


def cut_values(request: "Request", *, cuts: bool) -> Mapping[str, Any]:
    """Return the value of that column."""
    return {CUT: request.num_cut_tokens} if cuts else {}


def cut_tally(batch: "pa.RecordBatch | pa.Table", *, cuts: bool) -> Mapping[str, Mapping[str, int]]:
    """Count the texts that were cut, and their tokens that were not read."""
    import pyarrow.compute as pc

    if not cuts:
        return {}
    numbers = batch[CUT].filter(pc.greater(pc.fill_null(batch[CUT], 0), 0))
    return {CUT_TEXTS: {"rows": len(numbers), "tokens": pc.sum(numbers).as_py() or 0}}


def describe_cut(outcome: "Outcome") -> Iterator[tuple[str, str]]:
    """Yield how many texts were cut, if any were."""
    counted = outcome.tallies.get(CUT_TEXTS, {})
    if num_cut := counted.get("rows", 0):
        of_all = f"{num_cut:,} of {outcome.num_completions:,} were too long and were cut"
        yield "texts", f"{of_all}; {counted['tokens']:,} tokens were not read"

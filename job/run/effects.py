"""Options that could not have an effect, or whose values nobody can mean: a new run with one of them is refused.

A run that an older version started with such options goes on, with a note: its output does not depend on them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from job.config import DataConfig, EngineConfig, ModelConfig, PromptConfig, RunConfig, SamplingConfig
from job.engine.logits.loops import first_look
from job.engine.registry import ENGINES
from job.errors import Doubt, NoEffect
from job.wording import flag, listed

GREEDY_BELOW = 1e-5
"""Below it, only ties between logits are drawn."""

PENALTIES = (0.01, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What some options need in order to have an effect."""

    options: tuple[str, ...]
    """Names of fields. An option counts as given if its value is not the default, which changes nothing."""
    is_met: Callable[[RunConfig], bool]
    reason: str
    """Why they have no effect otherwise."""
    remedy: str = ""
    """What makes them have one."""


def _is_random(config: RunConfig) -> bool:
    return config.sampling.temperature >= GREEDY_BELOW or _varies(config, "temperature")


def _varies(config: RunConfig, name: str) -> bool:
    """Whether rows may have a value of their own for a sampling option."""
    return any(name in mode.varies() for mode in config.active_modes)


def _is_scored(config: RunConfig) -> bool:
    return any(mode.answers and mode.decides_end for mode in config.active_modes)


def _gives(config: RunConfig, name: str) -> bool:
    """Whether an option of a mode is given."""
    return any(name in mode.given() for mode in config.active_modes)


def _has_stops(sampling: SamplingConfig) -> bool:
    return bool(sampling.stop or sampling.stop_token_ids)


NEEDS = (
    Need(
        options=("top_p", "top_k", "min_p", "seed"),
        is_met=_is_random,
        reason="decoding is greedy unless --temperature is above 0",
        remedy="Set --temperature",
    ),
    Need(
        options=("min_new_tokens",),
        is_met=lambda config: not config.sampling.ignore_eos or _has_stops(config.sampling),
        reason="with --ignore-eos, completions end at --max-new-tokens",
    ),
    Need(
        options=("max_new_tokens",),
        is_met=lambda config: not (_is_scored(config) and _gives(config, "max_reasoning_tokens")),
        reason="--max-reasoning-tokens is the limit of what is generated, and answers are scored",
    ),
    Need(
        options=("include_prefill",),
        is_met=lambda config: config.prompt.prefill is not None,
        reason="no answer has a prefill",
        remedy="Set --prefill",
    ),
    Need(
        options=("revision",),
        is_met=lambda config: not Path(config.model.model).is_dir(),
        reason="--model is a local directory",
    ),
    Need(
        options=("streaming",),
        is_met=lambda config: not Path(config.data.dataset).exists(),
        reason="--dataset is local",
    ),
    Need(
        options=("dataset_revision",),
        is_met=lambda config: not Path(config.data.dataset).exists(),
        reason="--dataset is local",
    ),
    Need(
        options=("dataset_config",),
        is_met=lambda config: not (Path(config.data.dataset).is_dir() and config.data.data_files),
        reason="--data-files says which files of the directory are read",
    ),
)
"""One entry for each way in which options depend on others. What a mode or an engine ignores, it says itself."""

CONVERSATION_NEEDS = Need(
    options=("last_assistant_turn",),
    is_met=lambda config: config.prompt.messages_column is not None,
    reason="prompts are texts, not conversations",
    remedy="Set --messages-column",
)
"""Not for requests to OpenAI's API, which are recognized once the dataset is open."""


def check_effects(config: RunConfig, *, is_new: bool) -> tuple[str, ...]:
    """Return notes about options without an effect.

    Raises:
        NoEffect: there are such options, and this is a new run.
    """
    return _refused_or_noted(list(_doubts(config)), is_new=is_new)


def check_effects_on_texts(config: RunConfig, *, is_new: bool) -> tuple[str, ...]:
    """Do the same for the options that only conversations need, if the dataset holds none.

    Raises:
        NoEffect: as ``check_effects`` does.
    """
    return _refused_or_noted(list(_unmet(CONVERSATION_NEEDS, config, _given(config))), is_new=is_new)


def _refused_or_noted(doubts: list[Doubt], *, is_new: bool) -> tuple[str, ...]:
    if is_new and (refused := [doubt for doubt in doubts if doubt.remedy is not None]):
        raise NoEffect(" ".join(map(str, refused)))
    return tuple(doubt.problem for doubt in doubts)


def _doubts(config: RunConfig) -> Iterator[Doubt]:
    """Yield what has no effect, and what the modes find odd."""
    sampling, given = config.sampling, _given(config)
    for mode in config.active_modes:
        yield from mode.doubts()
    engine = config.engine.engine
    generates = any(mode.always_generates for mode in config.active_modes)
    ignoring = [] if generates else [(mode.flag, mode.ignores) for mode in config.active_modes]
    for who, ignores in [*ignoring, (f"--engine {engine}", ENGINES[engine].ignores)]:
        if ignored := [name for name in given if name in ignores]:
            yield _without_effect(ignored, f"{who} does not use {'it' if len(ignored) == 1 else 'them'}", "")
            given = [name for name in given if name not in ignored]
    for need in NEEDS:
        yield from _unmet(need, config, given)
    if 0 < sampling.temperature < GREEDY_BELOW:
        problem = f"--temperature {sampling.temperature:g} is the same as 0"
        yield Doubt(problem, "Use 0 (greedy), or 0.00001 or more")
    if not PENALTIES[0] <= sampling.repetition_penalty <= PENALTIES[1]:
        problem = f"--repetition-penalty {sampling.repetition_penalty:g} leaves nothing of the model's own distribution"
        yield Doubt(problem, f"Use {PENALTIES[0]:g} to {PENALTIES[1]:g}")
    if not _varies(config, "max_new_tokens") and (doubt := _of_loops(sampling)) is not None:
        yield doubt
    if sampling.num_samples > 1 and (not _is_random(config) or (sampling.top_k == 1 and not _varies(config, "top_k"))):
        is_cold = not _is_random(config)
        cause = f"--temperature {sampling.temperature:g}" if is_cold else "--top-k 1"
        problem = f"--num-samples {sampling.num_samples} with {cause} gives the same completion each time"
        yield Doubt(problem, "Set --temperature above 0" if is_cold else "Use a larger --top-k")


def _of_loops(sampling: SamplingConfig) -> Doubt | None:
    """Return that completions are too short for loops. Not an error: their limit may grow in a retry."""
    repeats, length = sampling.repetition_detection, sampling.max_new_tokens
    if not repeats or length >= (first := first_look(repeats)):
        return None
    return Doubt(
        f"--repetition-detection {repeats} has no effect on completions of at most {length} tokens: loops are found "
        f"from {first} tokens on"
    )


def _unmet(need: Need, config: RunConfig, given: list[str]) -> Iterator[Doubt]:
    names = [name for name in given if name in need.options]
    if names and not need.is_met(config):
        yield _without_effect(names, need.reason, need.remedy)


def _given(config: RunConfig) -> list[str]:
    """Return the names of the options whose values differ from the defaults, as far as a need could concern them."""
    return [
        field.name
        for section, kind in (
            (config.model, ModelConfig),
            (config.data, DataConfig),
            (config.prompt, PromptConfig),
            (config.sampling, SamplingConfig),
            (config.engine, EngineConfig),
        )
        for field in fields(kind)
        if "option" in field.metadata and getattr(section, field.name) != field.default
        if not (field.name == "seed" and config.launch.is_random)  # then it is that of the order
    ]


def _without_effect(names: list[str], reason: str, remedy: str) -> Doubt:
    verb, them = ("has", "it") if len(names) == 1 else ("have", "them")
    problem = f"{listed(map(flag, names))} {verb} no effect: {reason}"
    return Doubt(problem, f"{remedy}, or leave {them} out" if remedy else f"Leave {them} out")

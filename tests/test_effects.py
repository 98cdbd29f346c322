"""Options that cannot have an effect are refused where a run begins, and said where one goes on."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from job.cli.options import Section
from job.config import (
    DataConfig,
    EngineConfig,
    ModelConfig,
    OutputConfig,
    PromptConfig,
    RunConfig,
    SamplingConfig,
)
from job.errors import UsageError
from job.modes.choices import ChoicesMode
from job.run.effects import NEEDS, check_effects, check_effects_on_texts

TWO = ChoicesMode(choices=("yes", "no"))
SECTIONS: tuple[type[Section], ...] = (ModelConfig, DataConfig, SamplingConfig, EngineConfig)


def config(*, modes: Any = (), model: str = "org/m", dataset: str = "org/d", **options: Any) -> RunConfig:
    """Return a configuration with some options, whichever section they belong to."""

    def section(kind: Any, **values: Any) -> Any:
        names = {field.name for field in fields(kind)}
        return kind(**values, **{name: value for name, value in options.items() if name in names})

    return RunConfig(
        model=section(ModelConfig, model=model),
        data=section(DataConfig, dataset=dataset),
        prompt=PromptConfig(),
        sampling=section(SamplingConfig),
        modes=tuple(modes),
        output=OutputConfig(output=Path("o")),
        engine=section(EngineConfig),
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "top-p": (
        {"top_p": 0.9},
        "--top-p has no effect: decoding is greedy unless --temperature is above 0. Set --temperature, or leave it "
        "out.",
    ),
    "several": (
        {"top_p": 0.9, "top_k": 5, "seed": 7},
        "--top-p, --top-k and --seed have no effect: decoding is greedy unless --temperature is above 0. "
        "Set --temperature, or leave them out.",
    ),
    "min-p": ({"min_p": 0.1}, "--min-p has no effect"),
    "tiny": (
        {"temperature": 1e-45},
        "--temperature 1e-45 is the same as 0. Use 0 (greedy), or 0.00001 or more.",
    ),
    "tiny with top-p": ({"temperature": 1e-320, "top_p": 0.5}, "--top-p has no effect"),
    "penalty": (
        {"repetition_penalty": 1e30},
        "--repetition-penalty 1e+30 leaves nothing of the model's own distribution. Use 0.01 to 100.",
    ),
    "small penalty": ({"repetition_penalty": 1e-30}, "Use 0.01 to 100."),
    "samples": (
        {"num_samples": 3},
        "--num-samples 3 with --temperature 0 gives the same completion each time. Set --temperature above 0.",
    ),
    "samples of one token": (
        {"num_samples": 3, "temperature": 1.0, "top_k": 1},
        "--num-samples 3 with --top-k 1 gives the same completion each time. Use a larger --top-k.",
    ),
    "choices": (
        {"modes": [TWO], "max_new_tokens": 5, "top_k": 5},
        "--max-new-tokens and --top-k have no effect: --choices does not use them. Leave them out.",
    ),
    "choices drawn": (
        {"modes": [TWO], "temperature": 1.0, "top_p": 0.5},
        "--top-p has no effect: --choices does not use it. Leave it out.",
    ),
    "choices with a penalty": ({"modes": [TWO], "repetition_penalty": 1.5}, "--repetition-penalty has no effect"),
    "seed of choices": ({"modes": [TWO], "seed": 7}, "--seed has no effect: decoding is greedy"),
    "revision": (
        {"model": ".", "revision": "main"},
        "--revision has no effect: --model is a local directory. Leave it out.",
    ),
    "streaming": ({"dataset": ".", "streaming": True}, "--streaming has no effect"),
    "dataset revision": ({"dataset": ".", "dataset_revision": "main"}, "--dataset-revision has no effect"),
    "cache": (
        {"engine": "static", "kv_cache_memory": 2**20},
        "--kv-cache-memory has no effect: --engine static does not use it. Leave it out.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_new_run_with_an_option_without_effect_is_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        check_effects(config(**options), is_new=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    [note, *_] = check_effects(config(**options), is_new=False)
    assert not note.endswith("."), "a note is no sentence of its own"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "num_samples": 3},
        {"temperature": 1e-5, "seed": 1},
        {"temperature": 1e30},
        {"repetition_penalty": 1.2},
        {"revision": "main", "dataset_revision": "main"},
        {"modes": [TWO], "temperature": 0.5, "seed": 3, "num_samples": 2},
        {"engine": "static", "max_batch_rows": 3},
    ],
    ids=str,
)
def test_options_with_an_effect_and_defaults_are_taken(options: dict[str, Any]) -> None:
    assert check_effects(config(**options), is_new=True) == ()


def test_the_table_names_options_that_exist() -> None:
    names = {field.name for kind in (*SECTIONS, PromptConfig) for field in fields(kind) if "option" in field.metadata}
    assert {name for need in NEEDS for name in need.options} <= names
    assert ChoicesMode.ignores <= names


def test_what_only_conversations_need_is_refused_for_texts() -> None:
    """Whether there are any is known once the dataset is open: it may be a batch of requests."""
    turn = replace(config(), prompt=PromptConfig(last_assistant_turn="drop"))
    assert check_effects(turn, is_new=True) == ()
    with pytest.raises(UsageError, match="--last-assistant-turn has no effect: prompts are texts, not conversations"):
        check_effects_on_texts(turn, is_new=True)
    talks = replace(config(), prompt=PromptConfig(last_assistant_turn="drop", messages_column="m"))
    assert check_effects_on_texts(talks, is_new=True) == ()


@pytest.mark.parametrize(("length", "repeats", "first"), [(63, 8, 64), (64, 8, None), (100, 100, 112), (63, 0, None)])
def test_completions_too_short_for_a_loop_are_noted(length: int, repeats: int, first: int | None) -> None:
    """Not refused: ``job retry`` may give them another limit."""
    short = config(max_new_tokens=length, repetition_detection=repeats)
    notes = check_effects(short, is_new=True)
    told = f"no effect on completions of at most {length} tokens: loops are found from {first} tokens on"
    assert notes == (() if first is None else (f"--repetition-detection {repeats} has {told}",))

"""Turns option values into a configuration, with the contents of the files that they name."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

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
from job.modes.mode import Mode
from job.modes.registry import MODES
from job.modes.texts import read_text, read_text_or_file


def to_config(values: dict[str, Any]) -> RunConfig:
    """Build the configuration from option values.

    Raises:
        UsageError: a value is out of range, or an option of another tool was given that cannot work here.
    """
    _refuse_foreign_options(values)
    if not values["output"].name:
        raise UsageError("--output is empty or the root directory. Name a directory for this run.")

    def section(cls: Section) -> Any:
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    return RunConfig(
        model=section(ModelConfig),
        data=section(DataConfig),
        prompt=replace(section(PromptConfig), **_prompt_texts(values)),
        sampling=section(SamplingConfig),
        modes=tuple(_read(mode, values) for mode in MODES),
        output=section(OutputConfig),
        engine=section(EngineConfig),
        verbose=values["verbose"],
    )


def _read(mode: type[Mode], values: Mapping[str, Any]) -> Mode:
    """Build a mode from the values of its options and the contents of the files that they name."""
    found = {}
    for field in fields(mode):
        value, spec = values[field.name], field.metadata["option"]
        found[field.name] = spec.read(value) if spec.read is not None and value not in (None, ()) else value
    return mode(**found)


def _prompt_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of the files that prompt options name."""
    texts = {}
    if values["prompt_template"] is not None:
        texts["prompt_template"] = read_text_or_file(
            "--prompt-template",
            values["prompt_template"],
            is_text=lambda text: "\n" in text or "{" in text,
            example="a template, such as '{{ text }}'",
            drops_last_newline=True,  # models read a prompt that ends in a newline differently
        )
    if values["examples"] is not None:
        texts["examples"] = read_text("--examples", values["examples"])
    return texts


def _refuse_foreign_options(values: dict[str, Any]) -> None:
    if values["load_in_8bit"] or values["load_in_4bit"]:
        raise UsageError(
            "--load-in-8bit and --load-in-4bit cannot work here: DeepSpeed cannot shard quantized layers. "
            "Use --dtype float16 and a larger --tensor-parallel-size."
        )
    if values["device_map"]:
        raise UsageError(
            "--device-map cannot work here: DeepSpeed places the model, one process per GPU. "
            "Use --tensor-parallel-size."
        )
    if values["kernel_inject"]:
        raise UsageError(
            "--kernel-inject is not supported: DeepSpeed's injected kernels crash or give wrong tokens with current "
            "transformers. Leave it out; layers are sharded by AutoTP."
        )

"""Turns option values into a configuration, with the contents of the files that they name."""

from dataclasses import fields
from typing import Any, TypeVar

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
from job.modes.registry import MODES
from job.output.store.addresses import check_address

Section = TypeVar("Section")


def to_config(values: dict[str, Any]) -> RunConfig:
    """Build the configuration from option values.

    Raises:
        UsageError: a value is out of range, or an option of another tool was given that cannot work here.
    """
    _refuse_foreign_options(values)
    check_address(values["output"])
    return RunConfig(
        model=_section(ModelConfig, values),
        data=_section(DataConfig, values),
        prompt=_section(PromptConfig, values),
        sampling=_section(SamplingConfig, values),
        modes=tuple(_section(mode, values) for mode in MODES),
        output=_section(OutputConfig, values),
        engine=_section(EngineConfig, values),
        verbose=values["verbose"],
    )


def _section(cls: type[Section], values: dict[str, Any]) -> Section:
    """Build a section from the values of its options and the contents of the files that they name."""
    found = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in values:
            value, read = values[field.name], getattr(field.metadata.get("option"), "read", None)
            found[field.name] = value if read is None or value in (None, ()) else read(value)
    return cls(**found)


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

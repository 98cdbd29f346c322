"""Turns option values into a configuration, with the contents of the files that they name."""

from dataclasses import fields
from typing import Any, TypeVar

from job.config import (
    DataConfig,
    EngineConfig,
    LaunchConfig,
    ModelConfig,
    OutputConfig,
    PromptConfig,
    RunConfig,
    SamplingConfig,
)
from job.config.launch import is_webhook
from job.launch.notice import check_command
from job.modes.registry import MODES
from job.output.store.addresses import check_output
from job.run.located import located

Section = TypeVar("Section")


def to_config(values: dict[str, Any]) -> RunConfig:
    """Build the configuration from option values.

    Raises:
        UsageError: a value is out of range, or a file that it names cannot be read.
    """
    check_output(values["output"])
    values = located(values)
    config = RunConfig(
        model=_section(ModelConfig, values),
        data=_section(DataConfig, values),
        prompt=_section(PromptConfig, values),
        sampling=_section(SamplingConfig, values),
        modes=tuple(_section(mode, values) for mode in MODES),
        output=_section(OutputConfig, values),
        engine=_section(EngineConfig, values),
        launch=_section(LaunchConfig, values),
        verbose=values["verbose"],
    )
    if config.launch.on_end is not None and not is_webhook(config.launch.on_end):
        check_command(config.launch.on_end)
    return config


def _section(cls: type[Section], values: dict[str, Any]) -> Section:
    """Build a section from the values of its options and the contents of the files that they name."""
    found = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in values:
            value, read = values[field.name], getattr(field.metadata.get("option"), "read", None)
            found[field.name] = value if read is None or value in (None, ()) else read(value)
    return cls(**found)

"""The configuration of a run that exists, from its manifest: for recomputing rows without the command that began it.

What a manifest does not record cannot change a row, and has its default.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from job.config import DataConfig, EngineConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.modes.registry import MODES
from job.output.parts.manifest import Manifest
from job.output.parts.redone import described
from job.run.identity import dtype_of

Section = TypeVar("Section")


def config_of(manifest: Manifest, output: str, engine: EngineConfig) -> RunConfig:
    """Return the configuration of a run, with the dtype that it has.

    Kept columns and the limit of prompts are left out: the first do not matter, and the second follows from the rest
    unless ``with_prompt_limit`` says otherwise.

    Args:
        output: its directory.
        engine: how this process is to compute.
    """
    about, dataset, model = manifest.about, manifest.section("dataset"), manifest.section("model")
    modes = manifest.meaning["modes"]
    return RunConfig(
        model=_section(
            ModelConfig,
            {
                **model,
                "model": about["model"],
                "revision": about["revision"],
                "dtype": dtype_of(manifest),
                "adapter": about.get("adapter", ()),
            },
        ),
        data=_section(
            DataConfig,
            {
                **dataset,
                "dataset": about["dataset"],
                "dataset_config": about.get("dataset_config"),
                "dataset_revision": about.get("dataset_revision"),
                "data_files": about.get("data_files", ()),
            },
        ),
        prompt=_section(PromptConfig, {**manifest.section("prompt"), "max_prompt_tokens": None}),
        sampling=_section(SamplingConfig, manifest.section("sampling")),
        modes=tuple(mode.of(modes.get(mode.name, {})) for mode in MODES),
        output=_section(
            OutputConfig,
            {
                "output": output,
                "rows_per_shard": manifest.section("plan")["rows_per_shard"],
                "include_prompt": manifest.section("columns")["include_prompt"],
            },
        ),
        engine=engine,
    )


def with_prompt_limit(config: RunConfig, manifest: Manifest) -> RunConfig:
    """Return the configuration with the limit of prompts that the manifest records."""
    most = manifest.section("prompt")["max_prompt_tokens"]
    return replace(config, prompt=replace(config.prompt, max_prompt_tokens=most))


def changes_of(options: str) -> Mapping[str, Any]:
    """Return the sampling options that a part records of retried rows; the inverse of ``redone.described``.

    Raises:
        ValueError: the text is something else.

    >>> changes_of("--max-new-tokens 64 --temperature 0.5")
    {'max_new_tokens': 64, 'temperature': 0.5}
    """
    words = options.split()
    changes = {
        name.removeprefix("--").replace("-", "_"): json.loads(value)
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    if described(changes) != options:
        raise ValueError(f"{options!r} are not options of a retry")
    return changes


def _section(cls: type[Section], values: Mapping[str, Any]) -> Section:
    found = {field.name: values[field.name] for field in fields(cls) if field.name in values}  # type: ignore[arg-type]
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})

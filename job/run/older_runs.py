"""What is asked, as version 0.1 would have understood it: a run that it started goes on as it began."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from job.config import RunConfig
from job.output.parts.manifest import Manifest


def as_started(config: RunConfig, found: Manifest | None) -> RunConfig:
    """Return the configuration for the run that is in the directory. Version 0.1 dropped a template's last newline."""
    template = config.prompt.prompt_template
    if found is None or not found.is_format_2 or template is None:
        return config
    return replace(config, prompt=replace(config.prompt, prompt_template=template.removesuffix("\n")))


def all_columns(schema: pa.Schema, found: Manifest | None) -> Sequence[str]:
    """Return the columns that ``--keep-columns '*'`` stands for. Version 0.1 overlooked some that first occur late."""
    if found is None or not found.is_format_2:
        names: Sequence[str] = schema.names
        return names
    kept = found.section("columns")["kept"]
    return [field.name for field in schema if f"{field.name}: {field.type}" in kept]

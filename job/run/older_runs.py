"""What is asked, as older versions would have understood it: a run that one of them started goes on as it began.

Versions 0.1 and 0.2 (``text_rules`` 1) made other text of some templates, conversations and tokens: line ends in
templates were ``\\n``, and templates could read the clock; messages that a chat template leaves out were left out; a
conversation that ended with the assistant got a second answer; completions of some tokenizers lost their first space;
stop strings never matched special tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from job.config import DataConfig, RunConfig
from job.data.finding import is_local
from job.errors import UsageError
from job.output.parts.manifest import Manifest


def as_started(config: RunConfig, found: Manifest | None) -> RunConfig:
    """Return the configuration for the run that is in the directory. Version 0.1 dropped a template's last newline."""
    if found is None:
        return config
    prompt = replace(config.prompt, text_rules=found.section("prompt")["text_rules"])
    if found.is_format_2 and prompt.prompt_template is not None:
        prompt = replace(prompt, prompt_template=prompt.prompt_template.removesuffix("\n"))
    return replace(config, prompt=prompt)


def dataset_commit(data: DataConfig, found: Manifest | None) -> str | None:
    """Return the commit of the dataset with which the run in the directory goes on; None if there is none.

    Raises:
        UsageError: version 0.3 or older started the run on a dataset of the Hub, whose files it read in another way.
    """
    if found is None or found.about["dataset"] != data.dataset or is_local(data):
        return None
    if (commit := found.about.get("dataset_commit")) is not None:
        return str(commit)
    if any(num_bytes is not None for num_bytes, _ in found.about.get("files", {}).values()):
        return None  # it was local, and is missing: the Hub is asked, as for a new run
    raise UsageError(
        f"The run in --output was started by version {found.about['versions']['job']}, which read datasets of the Hub "
        "in another way. Finish it with that version, or use a new --output."
    )


def all_columns(schema: pa.Schema, found: Manifest | None) -> Sequence[str]:
    """Return the columns that ``--keep-columns '*'`` stands for. Version 0.1 overlooked some that first occur late."""
    if found is None or not found.is_format_2:
        names: Sequence[str] = schema.names
        return names
    kept = found.section("columns")["kept"]
    return [field.name for field in schema if f"{field.name}: {field.type}" in kept]

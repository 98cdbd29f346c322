"""What is asked, as older versions would have understood it: a run that one of them started goes on as it began.

Versions 0.1 and 0.2 (``text_rules`` 1) made other text of some templates, conversations and tokens: line ends in
templates were ``\\n``, and templates could read the clock; messages that a chat template leaves out were left out; a
conversation that ended with the assistant got a second answer; completions of some tokenizers lost their first space;
stop strings never matched special tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from job.config import DataConfig, ModelConfig, RunConfig
from job.data.finding import is_local
from job.engine.model.info import ModelInfo
from job.engine.model.naming import MODEL_CONFIG
from job.engine.model.weights import GENERATION_CONFIG, identify
from job.errors import UsageError
from job.fingerprint import fingerprint
from job.modes.row_params import RowParamsMode
from job.output.parts.manifest import Manifest
from job.remote.hub import COMMIT

SAMPLED = re.compile("[0-9a-f]{16}")
"""A hash of places in a local model's files: what identified it up to version 0.3."""

WHOLE = re.compile("[0-9a-f]{64}")
"""What identifies a model now."""


def as_started(config: RunConfig, found: Manifest | None) -> RunConfig:
    """Return the configuration for the run that is in the directory. Version 0.1 dropped a template's last newline."""
    if found is None:
        return config
    prompt = replace(config.prompt, text_rules=found.section("prompt")["text_rules"])
    if found.is_format_2 and prompt.prompt_template is not None:
        prompt = replace(prompt, prompt_template=prompt.prompt_template.removesuffix("\n"))
    return replace(config, prompt=prompt)


def with_requests(config: RunConfig, column: str, found: Manifest | None) -> RunConfig:
    """Return the configuration for requests to OpenAI's API, each of which runs with the parameters that it names.

    In runs that version 0.4 or older began, a request with other settings than the run's is an error row; it also is
    where choices are scored.

    Args:
        column: has the requests.
    """
    is_scored = any(mode.answers and mode.decides_end for mode in config.active_modes)
    began_so = found is None or any(isinstance(mode, RowParamsMode) and mode.request_column for mode in found.modes)
    if is_scored or not began_so:
        return config
    modes = (replace(mode, request_column=column) if isinstance(mode, RowParamsMode) else mode for mode in config.modes)
    return replace(config, modes=tuple(modes))


def dataset_commit(data: DataConfig, found: Manifest | None) -> str | None:
    """Return the commit of the dataset with which the run in the directory goes on, though its branch may have moved;
    None if there is none, or if the user names another revision than the run began with.

    Raises:
        UsageError: version 0.3 or older started the run on a dataset of the Hub, whose files it read in another way.
    """
    if found is None or found.about["dataset"] != data.dataset or is_local(data):
        return None
    if (commit := found.about.get("dataset_commit")) is not None:
        return str(commit) if data.dataset_revision in (None, found.about["dataset_revision"]) else None
    if any(num_bytes is not None for num_bytes, _ in found.about.get("files", {}).values()):
        return None  # it was local, and is missing: the Hub is asked, as for a new run
    raise UsageError(
        f"The run in --output was started by version {found.about['versions']['job']}, which read datasets of the Hub "
        "in another way. Finish it with that version, or use a new --output."
    )


def earlier_errors(config: DataConfig, found: Manifest | None) -> str | None:
    """Return what becomes of the error rows of an earlier run that is the dataset. None: they are rows like any others,
    as they were in versions before 0.5.
    """
    begun = "skip" if found is None else found.section("dataset")["earlier_errors"]
    return config.earlier_errors or begun


def all_columns(schema: pa.Schema, found: Manifest | None) -> Sequence[str]:
    """Return the columns that ``--keep-columns '*'`` stands for. Version 0.1 overlooked some that first occur late."""
    if found is None or not found.is_format_2:
        names: Sequence[str] = schema.names
        return names
    kept = found.section("columns")["kept"]
    return [field.name for field in schema if f"{field.name}: {field.type}" in kept]


def model_commit(config: ModelConfig, found: Manifest | None) -> str | None:
    """Return the commit of the model with which the run in the directory goes on, though its branch may have moved;
    None if there is none, or if the user names another model or revision than the run began with.

    Raises:
        UsageError: an older version did not record what its model was.
    """
    if found is None:
        return None
    known = str(found.section("model")["fingerprint"])
    if not any(form.fullmatch(known) for form in (SAMPLED, COMMIT, WHOLE)):
        raise UsageError(
            f"This run was started by version {found.about.get('versions', {}).get('job', '0.3 or older')}, which did "
            f"not record the commit of its model ({known!r}): nothing shows whether --model {config.model} is still "
            "the same. Use a new --output."
        )
    if found.about.get("model") != config.model or config.revision not in (None, found.about["revision"]):
        return None
    return found.about.get("model_commit") or (known if COMMIT.fullmatch(known) else None)


def adapter_commits(config: ModelConfig, found: Manifest | None) -> Sequence[str | None]:
    """Return the commits of the adapters with which the run in the directory goes on, though branches may have moved;
    None for those that have none, and for all if the user names others than the run began with.
    """
    begun = {} if found is None else found.about
    if begun.get("adapter", []) != list(config.adapter):
        return [None] * len(config.adapter)
    return list(begun.get("adapter_commits", []))


def model_fingerprint(info: ModelInfo, config: ModelConfig, found: Manifest | None) -> str:
    """Return what identifies the model, in the form that the run in the directory has."""
    files = info.files
    known = "" if found is None else str(found.section("model")["fingerprint"])
    if SAMPLED.fullmatch(known) and files.repository is None:
        return _sampled(files.directory)
    if COMMIT.fullmatch(known) and files.commit is not None:
        return files.commit
    return identify(files, info.weights, trust_remote_code=config.trust_remote_code)


def _sampled(directory: Path) -> str:
    settings = [directory / name for name in (MODEL_CONFIG, GENERATION_CONFIG)]
    return fingerprint([*sorted(directory.glob("*.safetensors")), *(file for file in settings if file.is_file())])

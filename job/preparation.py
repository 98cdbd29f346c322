"""From what the user asked to what the runner needs: everything is opened and checked here, before weights are loaded.

The order matters only for the messages: cheap and likely mistakes are found first.
"""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch

import job
from job.config import RunConfig
from job.data.opening import OpenDataset, open_dataset
from job.data.prompts import PromptRenderer, compile_template, read_template
from job.data.source import Source
from job.data.tokenization import Tokenization, chat_template_of, load_tokenizer, tokenizer_digest
from job.engine.loading import ModelInfo, inspect_model
from job.errors import UsageError, first_line
from job.output.leases import WorkerId
from job.output.manifest import Manifest, claim_run_directory
from job.output.paths import RunPaths
from job.output.plan import Plan
from job.output.shard import PartFormat, output_schema, own_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a leader needs but the model."""

    config: RunConfig
    model_info: ModelInfo
    source: Source
    renderer: PromptRenderer
    tokenization: Tokenization
    stop_token_ids: tuple[int, ...]
    """End-of-sequence ids of the tokenizer."""
    plan: Plan
    paths: RunPaths
    part_format: PartFormat
    kept_columns: tuple[str, ...]
    """Columns that go from the dataset to the output."""
    worker: WorkerId

    @property
    def is_done(self) -> bool:
        """Whether every shard is final."""
        return len(self.paths.done_shards()) == self.plan.num_shards


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Open the dataset, the tokenizer, the model's configuration and the run directory.

    Raises:
        UsageError: anything that cannot work as asked.
    """
    config = _with_template_text(config)
    info = inspect_model(config.model, device, config.engine.tensor_parallel_size)
    max_prompt_tokens = _max_prompt_tokens(config, info)
    tokenizer = load_tokenizer(config.model)
    if config.prompt.on_long_prompt != "error" and not tokenizer.is_fast:
        raise UsageError(
            f"--on-long-prompt {config.prompt.on_long_prompt} needs a fast tokenizer; this model has none."
        )
    dataset = open_dataset(config.data, _named_columns(config))
    schema = dataset.source.schema
    chat_template = chat_template_of(tokenizer, config.prompt.chat)
    renderer = PromptRenderer(config.prompt, chat_template, schema.names)
    _check_prompt_type(config, schema)
    kept = _kept_fields(config, schema)
    features = _features(config, schema, kept)
    num_rows = dataset.source.num_rows if config.data.limit is None else min(config.data.limit, dataset.source.num_rows)
    plan = Plan(num_rows=num_rows, rows_per_shard=config.output.rows_per_shard, num_samples=config.sampling.num_samples)
    manifest = _manifest(config, info, tokenizer, dataset, plan, kept, chat_template is not None, max_prompt_tokens)
    paths = RunPaths(config.output.output.absolute(), plan.num_shards)
    worker = WorkerId.of_this_process()
    manifest = _claim(paths, manifest, worker)
    return Prepared(
        config=config,
        model_info=info,
        source=dataset.source,
        renderer=renderer,
        tokenization=Tokenization(
            tokenizer,
            chat=chat_template is not None,
            max_prompt_tokens=max_prompt_tokens,
            on_long_prompt=config.prompt.on_long_prompt,
            stop=config.sampling.stop,
        ),
        stop_token_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        plan=plan,
        paths=paths,
        part_format=PartFormat.build(
            pa.schema(kept),
            include_prompt=config.output.include_prompt,
            logprobs=config.sampling.logprobs,
            compression=config.output.compression,
            metadata=_metadata(config, manifest, features),
        ),
        kept_columns=tuple(field.name for field in kept),
        worker=worker,
    )


def _with_template_text(config: RunConfig) -> RunConfig:
    """Replace the path of a template by its text, and check its syntax."""
    if config.prompt.prompt_template is None:
        return config
    text = read_template(config.prompt.prompt_template)
    compile_template(text)
    return replace(config, prompt=replace(config.prompt, prompt_template=text))


def _max_prompt_tokens(config: RunConfig, info: ModelInfo) -> int:
    room = info.max_model_len - config.sampling.max_new_tokens
    if room < 1:
        raise UsageError(
            f"--max-new-tokens is {config.sampling.max_new_tokens}, but the model has room for {info.max_model_len} "
            f"tokens, prompt included. Use {info.max_model_len - 1} or less."
        )
    wanted = config.prompt.max_prompt_tokens
    if wanted is not None and wanted > room:
        raise UsageError(
            f"--max-prompt-tokens {wanted} and --max-new-tokens {config.sampling.max_new_tokens} exceed the model's "
            f"{info.max_model_len} tokens together. Use at most {room} and {config.sampling.max_new_tokens}."
        )
    return wanted or room


def _check_prompt_type(config: RunConfig, schema: pa.Schema) -> None:
    """Refuse a prompt column none of whose rows can be a prompt. (JSON lines have types row by row.)"""
    name = config.prompt.text_column
    if name is None:
        return
    data_type = schema.field(name).type
    is_text = pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    if not (is_text or pa.types.is_null(data_type) or pa.types.is_dictionary(data_type)):
        raise UsageError(
            f"Column {name!r} is {data_type}, not string. Use --prompt-template '{{{{ {name} }}}}' to write it as text"
            f"{', or --messages-column' if pa.types.is_list(data_type) else ''}."
        )


def _named_columns(config: RunConfig) -> list[str]:
    ids = [config.data.id_column] if config.data.id_column else []
    return list(dict.fromkeys([*ids, *config.data.keep_columns]))


def _kept_fields(config: RunConfig, schema: pa.Schema) -> list[pa.Field]:
    """Return the kept columns, the id first.

    Raises:
        UsageError: one does not exist, or has the name of a column of ours.
    """
    names = _named_columns(config)
    if "*" in names:
        names = list(dict.fromkeys([*(name for name in names if name != "*"), *schema.names]))
    own = own_columns(include_prompt=config.output.include_prompt, logprobs=config.sampling.logprobs)
    reserved = {field.name for field in own}
    for name in names:
        option = "--id-column" if name == config.data.id_column else "--keep-columns"
        if name not in schema.names:
            raise UsageError(f"{option}: the dataset has no column {name!r}. Columns: {', '.join(schema.names)}.")
        if name in reserved:
            hint = "--no-include-prompt, or " if name == "prompt" else ""
            raise UsageError(f"{option} {name!r}: the output has a column of that name. Use {hint}another column.")
    return [schema.field(name) for name in names]


def _manifest(
    config: RunConfig,
    info: ModelInfo,
    tokenizer: Any,
    dataset: OpenDataset,
    plan: Plan,
    kept: Sequence[pa.Field],
    chat: bool,
    max_prompt_tokens: int,
) -> Manifest:
    resolved = {"prompt_column": config.prompt.text_column, "chat": chat, "max_prompt_tokens": max_prompt_tokens}
    identity = {
        "dataset": {"fingerprint": dataset.fingerprint, "split": dataset.split, "limit": config.data.limit},
        "plan": {"num_rows": plan.num_rows, "rows_per_shard": plan.rows_per_shard},
        "model": {
            "fingerprint": info.fingerprint,
            "tokenizer": tokenizer_digest(tokenizer),
            "dtype": info.dtype,
        },
        "prompt": asdict(config.prompt) | resolved,
        "sampling": asdict(config.sampling),
        "columns": {
            "kept": [f"{field.name}: {field.type}" for field in kept],
            "include_prompt": config.output.include_prompt,
        },
        "engine": "fake" if config.engine.engine == "fake" else "model",
    }
    about = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": config.model.model,
        "revision": config.model.revision,
        "dataset": config.data.dataset,
        "dataset_config": config.data.dataset_config,
        "dataset_revision": config.data.dataset_revision,
        "data_files": list(config.data.data_files),
        "host": platform.node(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "versions": _versions(),
    }
    return Manifest(identity, about)


def _claim(paths: RunPaths, manifest: Manifest, worker: WorkerId) -> Manifest:
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        found = claim_run_directory(paths.root, manifest, str(worker))
        paths.make_directories()
        paths.check_writable(str(worker))
        return found
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--output {paths.root} cannot be written: {reason}. Use another directory.") from None


def _features(config: RunConfig, schema: pa.Schema, kept: Sequence[pa.Field]) -> bytes:
    """Return HuggingFace's description of the output's columns, so that class labels and the like survive.

    Raises:
        UsageError: a kept column has a type that ``datasets`` cannot describe.
    """
    import datasets

    for field in kept:
        try:
            datasets.Features.from_arrow_schema(pa.schema([field]))
        except (ValueError, TypeError) as error:
            raise UsageError(f"--keep-columns {field.name}: {first_line(error)} Leave the column out.") from None
    full = output_schema(
        pa.schema(kept, metadata=schema.metadata),
        include_prompt=config.output.include_prompt,
        logprobs=config.sampling.logprobs,
    )
    content: bytes = datasets.Features.from_arrow_schema(full).arrow_schema.metadata[b"huggingface"]
    return content


def _metadata(config: RunConfig, manifest: Manifest, features: bytes) -> dict[bytes, bytes]:
    """Return what every part carries: which run made it, and HuggingFace's types."""
    return {
        b"job.manifest": manifest.digest.encode(),
        b"job.model": config.model.model.encode(),
        b"job.revision": str(config.model.revision or "").encode(),
        b"job.versions": " ".join(f"{name}={number}" for name, number in _versions().items()).encode(),
        b"huggingface": features,
    }


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "deepspeed", "datasets", "pyarrow")
    return {"job": job.__version__, "python": platform.python_version()} | {name: version(name) for name in names}

"""A run's identity: what its manifest records (law 4), and what every part records about its run."""

import os
import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import job
from job.config import RunConfig
from job.data.dataset import OpenDataset
from job.data.runs import lineage_of
from job.engine.model.info import ModelInfo
from job.output.parts.defaults import without_defaults
from job.output.parts.manifest import Manifest
from job.output.parts.plan import Plan
from job.run.kept_columns import KeptColumns
from job.run.resolved import ResolvedRun
from job.wording import public_name

MAX_NOT_READ = 1000
"""A manifest names at most this many files that lie beside the data: there may be a million images."""


def manifest_of(
    run: ResolvedRun,
    info: ModelInfo,
    digests: tuple[str, str],
    dataset: OpenDataset,
    plan: Plan,
    kept: KeptColumns,
    found: Manifest | None = None,
) -> Manifest:
    """Return a run's manifest: every value that can change its output, and the circumstances.

    Args:
        digests: of the model and of its tokenizer.
        found: the manifest of the run, if it exists.
    """
    config, (fingerprint, tokenizer_digest) = run.config, digests
    identity = {
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "split": dataset.split,
            "limit": config.data.limit,
            **dataset.reading,
        },
        "plan": {"num_rows": plan.num_rows, "rows_per_shard": plan.rows_per_shard},
        "model": {
            "fingerprint": fingerprint,
            "tokenizer": tokenizer_digest,
            "task": config.model.task,
            **info.precision.identity(),
        },
        "prompt": _prompt(run),
        "sampling": config.sampling.options(),
        "modes": {mode.name: given for mode in config.active_modes if (given := mode.given())},
        "columns": {
            "include_prompt": config.output.include_prompt,
            "kept": kept.descriptions,
            "reused": has_origin(config, found),
        },
        "engine": "model" if config.engine.needs_model else config.engine.engine,
    }
    before = None if found is None else found.section("dataset")["fingerprint"]
    has_grown = found is not None and before is not None and dataset.continues(found.num_files, before)
    has_grown = has_grown or (config.output.extend and before not in (None, dataset.fingerprint))
    return Manifest(without_defaults(identity), _about(run, info, dataset), extends=before if has_grown else None)


def has_origin(config: RunConfig, found: Manifest | None) -> bool:
    """Whether rows have columns for their origin: a run keeps those that it began with."""
    return bool(config.output.reuse) if found is None else bool(found.section("columns")["reused"])


def _prompt(run: ResolvedRun) -> dict[str, Any]:
    looked_up = {
        "prompt_column": run.text_column,
        "request_column": run.request_column,
        "chat": run.chat,
        "max_prompt_tokens": run.max_prompt_tokens,
    }
    return asdict(run.config.prompt) | looked_up


def _about(run: ResolvedRun, info: ModelInfo, dataset: OpenDataset) -> dict[str, Any]:
    config = run.config
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": config.model.model,
        "revision": config.model.revision,
        "model_commit": info.files.commit,
        **_adapters(info),
        "dataset": config.data.dataset,
        "dataset_config": config.data.dataset_config,
        "dataset_revision": config.data.dataset_revision,
        "dataset_commit": dataset.commit,
        "data_files": list(config.data.data_files),
        "files": {file.name: [file.num_bytes, file.digest] for file in dataset.files},
        **({"earlier_runs": lineage_of(dataset.runs)} if dataset.runs else {}),
        "not_read": [unread.name for unread in dataset.unread[:MAX_NOT_READ]],
        "id_column": run.id_column,
        "host": platform.node(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "versions": versions(),
    }


def _adapters(info: ModelInfo) -> dict[str, Any]:
    files = info.files.adapters
    return (
        {"adapter": [each.name for each in files], "adapter_commits": [each.commit for each in files]} if files else {}
    )


def in_dtype(manifest: Manifest, dtype: str) -> Manifest:
    """Return the manifest of the same run in another dtype."""
    return replace(manifest, identity=manifest.identity | {"model": manifest.identity["model"] | {"dtype": dtype}})


def dtype_of(manifest: Manifest) -> str:
    """Return the dtype of a run."""
    return str(manifest.identity["model"]["dtype"])


def metadata_of(config: RunConfig, manifest: Manifest, features: bytes) -> dict[bytes, bytes]:
    """Return the metadata of every part, which may be published: which run wrote it, and Hugging Face's types."""
    return {
        b"job.manifest": manifest.digest.encode(),
        b"job.model": public_name(config.model.model).encode(),
        b"job.revision": str(manifest.about.get("model_commit") or config.model.revision or "").encode(),
        b"job.versions": " ".join(f"{name}={number}" for name, number in versions().items()).encode(),
        b"huggingface": features,
        **{key: value for mode in manifest.modes for key, value in mode.part_metadata().items()},
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that takes part in computing a run."""
    names = ("torch", "transformers", "deepspeed", "datasets", "pyarrow", "llguidance")
    return {"job": job.__version__, "python": platform.python_version()} | {name: version(name) for name in names}

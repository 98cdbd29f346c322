"""What a run is, as its manifest says it (law 4), and what every part says of its run."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pyarrow as pa

import job
from job.config import RunConfig
from job.data.opening import OpenDataset
from job.data.tokenization import tokenizer_digest
from job.engine.model.info import ModelInfo
from job.output.parts.columns import Columns
from job.output.parts.manifest import Manifest
from job.output.parts.plan import Plan


def manifest_of(
    config: RunConfig,
    info: ModelInfo,
    tokenizer: Any,
    dataset: OpenDataset,
    plan: Plan,
    columns: Columns,
    kept: Sequence[pa.Field],
    *,
    chat: bool,
    max_prompt_tokens: int,
) -> Manifest:
    """Return what a run is: every value that can change its output, and its circumstances."""
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
        "answer": asdict(config.answer),
        "columns": {"own": asdict(columns), "kept": [f"{field.name}: {field.type}" for field in kept]},
        "engine": "model" if config.engine.needs_model else config.engine.engine,
    }
    about = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": config.model.model,
        "revision": config.model.revision,
        "dataset": config.data.dataset,
        "dataset_config": config.data.dataset_config,
        "dataset_revision": config.data.dataset_revision,
        "data_files": list(config.data.data_files),
        "id_column": config.data.id_column,
        "host": platform.node(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "versions": versions(),
    }
    return Manifest(identity, about)


def metadata_of(config: RunConfig, manifest: Manifest, features: bytes) -> dict[bytes, bytes]:
    """Return what every part carries: which run made it, and HuggingFace's types."""
    choices = [text.strip() for text in config.answer.choices]
    return {
        b"job.manifest": manifest.digest.encode(),
        b"job.model": config.model.model.encode(),
        b"job.revision": str(config.model.revision or "").encode(),
        b"job.versions": " ".join(f"{name}={number}" for name, number in versions().items()).encode(),
        b"huggingface": features,
        **({b"job.choices": json.dumps(choices).encode()} if choices else {}),
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    names = ("torch", "transformers", "deepspeed", "datasets", "pyarrow", "llguidance")
    return {"job": job.__version__, "python": platform.python_version()} | {name: version(name) for name in names}

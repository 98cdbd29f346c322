"""Run directories with labels, written without a model: the parts and the manifest that a run would have left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job.output.parts.counts import Counts
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import Columns
from job.output.store.names import MANIFEST, PARTS, RunNames

CHOICES = {"choices": {"choices": [" yes", " no"]}}


def write_run(
    output: Path,
    completions: Sequence[str | None],
    *,
    modes: Mapping[str, Any] = CHOICES,
    kept: Mapping[str, Any] | None = None,
    values: Mapping[str, Sequence[Any]] | None = None,
    num_samples: int = 1,
    rows_per_shard: int = 10_000,
    num_parts: int | None = None,
    id_column: str | None = None,
    dataset: str = "missing.jsonl",
    fingerprint: str = "0",
    model: str = "org/model",
    features: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run.

    Args:
        completions: of each sample; None is an error row.
        kept: columns of the dataset, with a value for each sample.
        values: the columns of the modes; those that are missing here are null.
        num_parts: how many parts there are already. None: all.
        features: Hugging Face's description of columns.
    """
    num_rows = len(completions) // num_samples
    identity = {
        "dataset": {"fingerprint": fingerprint, "split": "train"},
        "plan": {"num_rows": num_rows, "rows_per_shard": rows_per_shard},
        "model": {"fingerprint": model, "tokenizer": "0", "dtype": "float32"},
        "prompt": {"chat": False, "text_rules": 2},
        "sampling": {"num_samples": num_samples} if num_samples > 1 else {},
        "modes": dict(modes),
        "columns": {"kept": []},
        "engine": "model",
    }
    about = {
        "created": "2026-11-28T00:00:00+0000",
        "model": model,
        "revision": None,
        "model_commit": None,
        "dataset": dataset,
        "dataset_config": None,
        "dataset_revision": None,
        "dataset_commit": None,
        "data_files": [],
        "files": {},
        "not_read": [],
        "id_column": id_column,
        "host": "h",
        "versions": {},
    }
    manifest = Manifest(identity, about)
    kept_columns = pa.table(dict(kept or {}))
    schema = Columns.of(manifest).schema(kept_columns.schema)
    described = {"info": {"features": {**dict.fromkeys(schema.names), **(features or {})}}}
    schema = schema.with_metadata(
        {b"job.manifest": manifest.digest.encode(), b"huggingface": json.dumps(described).encode()}
    )
    is_error = [completion is None for completion in completions]
    columns = {
        "row_idx": [idx // num_samples for idx in range(len(completions))],
        "sample_idx": [idx % num_samples for idx in range(len(completions))],
        "prompt": [f"prompt {idx // num_samples}" for idx in range(len(completions))],
        "completion": completions,
        "finish_reason": [None if error else "stop" for error in is_error],
        "num_prompt_tokens": [2] * len(completions),
        "num_completion_tokens": [1] * len(completions),
        "error": ["engine_error: broken" if error else None for error in is_error],
        "error_kind": ["engine_error" if error else None for error in is_error],
        **{name: kept_columns[name] for name in kept_columns.column_names},
        **(values or {}),
    }
    arrays = [
        columns[field.name].combine_chunks()
        if isinstance(columns.get(field.name), pa.ChunkedArray)
        else pa.array(columns.get(field.name, [None] * len(completions)), field.type)
        for field in schema
    ]
    table = pa.table(arrays, schema=schema)
    (output / PARTS).mkdir(parents=True)
    (output / MANIFEST).write_text(manifest.to_json())
    names, size = RunNames(manifest.plan.num_shards, PARTS), rows_per_shard * num_samples
    for shard_idx in range(manifest.plan.num_shards if num_parts is None else num_parts):
        rows, counts = table.slice(shard_idx * size, size), Counts()
        counts.add_batch(rows, manifest.modes)
        rows = rows.replace_schema_metadata({**schema.metadata, **counts.to_metadata()})
        pq.write_table(rows, output / names.part(shard_idx))
    return output


def probs_of(completions: Sequence[str | None], certainty: Sequence[float]) -> dict[str, list[Any]]:
    """Return the columns of ``CHOICES`` for these answers with these probabilities."""
    pairs = zip(completions, certainty, strict=True)
    probs = [None if text is None else [p, 1 - p] if text == "yes" else [1 - p, p] for text, p in pairs]
    return {"choice_probs": probs, "choice_logprobs": probs}

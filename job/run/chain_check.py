"""Looks ahead at the steps of a chain: their options are checked against the columns that earlier steps will write."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from job.data.dataset import OpenDataset
from job.data.runs import RunInput
from job.data.source import SchemaSource
from job.launch.devices import likely_device
from job.output.store.addresses import open_store
from job.run.chain_step import Step, of_step
from job.run.examination import Examined, examine, foresee
from job.run.pinned import model_files
from job.run.preparation import found_in
from job.run.reuse import as_in_others, check_fit, check_others, open_others


def look_ahead(examined: Examined, steps: Sequence[Step], device: torch.device) -> Iterator[tuple[Step, list[str]]]:
    """Check the steps that follow one, and yield each with the columns of its output.

    Steps that have begun are left out: they are checked when it is their turn, against what is there.

    Args:
        examined: the first of the steps.

    Raises:
        UsageError: one of them cannot work as asked.
    """
    first = steps[0]
    schemas = {first.name: examined.columns.schema(examined.kept.schema)}
    yield first, schemas[first.name].names
    for step in steps[1:]:
        if step.source not in schemas or found_in(open_store(step.config.output.output)) is not None:
            continue
        is_same = step.config.model == examined.config.model
        with of_step(step.name):
            files = examined.model_info.files if is_same else model_files(step.config)
            others = open_others(step.config, None)
            future = _future(schemas[step.source], step)
            config = as_in_others(step.config, others)
            seen = foresee(config, files, device, future)
            check_fit(seen.manifest, others, seen.fallback_dtype)
            schemas[step.name] = seen.schema
        yield step, schemas[step.name].names


def describe_ahead(steps: Sequence[Step]) -> Iterator[str]:
    """Check all steps, and yield a line for each with what it reads and writes.

    Raises:
        UsageError: one of them cannot work as asked.
    """
    config = steps[0].config
    device = likely_device(config.engine.device, is_gpu_named=False)
    with of_step(steps[0].name):
        others = open_others(config, found_in(open_store(config.output.output)))
        config = as_in_others(config, others)
        examined = check_others(examine(config, model_files(config), device, needs_weights=False), others)
    seen = set()
    for step, names in look_ahead(examined, steps, device):
        source = step.config.data.dataset
        seen.add(step.name)
        yield f"step {step.name}: {source} -> {step.config.output.output}; columns: {', '.join(names)}"
    for step in steps:
        if step.name not in seen:
            place = step.config.output.output
            why = "has begun" if found_in(open_store(place)) else "reads a step that has begun"
            yield f"step {step.name}: {why}; it is checked when it is its turn"


def _future(schema: pa.Schema, step: Step) -> OpenDataset:
    """Return the output of a step as a dataset, before it is there."""
    run = RunInput(path=Path(step.config.data.dataset), shards=(), parts=())
    return OpenDataset(source=SchemaSource(schema), fingerprint="", split="train", runs=(run,))

"""Converts manifests of older versions, and values in their parts, to the form of this one."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

OPTIONS_OF_MODES = {
    "choices": ("choices", "choice_normalization", "choice_calibration"),
    "structured": ("json_schema", "regex", "grammar"),
    "aggregate": ("aggregate",),
}
"""The modes that now have the options of format 2's section ``answer``."""

UNSET: tuple[Any, ...] = (None, [], "none")
"""The defaults in that section."""

FORMAT_2_JOURNAL = (
    pa.field("row_idx", pa.int64(), nullable=False),
    pa.field("sample_idx", pa.int32(), nullable=False),
    pa.field("prompt", pa.string()),
    pa.field("completion", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("num_prompt_tokens", pa.int32(), nullable=False),
    pa.field("num_completion_tokens", pa.int32(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("token_ids", pa.list_(pa.int32())),
    pa.field("token_logprobs", pa.list_(pa.float32())),
    pa.field("cumulative_logprob", pa.float64()),
    pa.field("choice_logprobs", pa.list_(pa.float64())),
    pa.field("choice_probs", pa.list_(pa.float64())),
    pa.field("choice_margin", pa.float64()),
)
"""The columns of every journal of version 0.1, whatever the run's mode is."""

UNITS_PER_SEC = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of Arrow's times of day."""


def from_format_2(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a run of version 0.1.

    Version 0.1 wrote every option, even one with its default. The options of answers had a section of their own, the
    column flags followed from other options, and log probabilities were a sampling option.
    """
    answer, sampling = identity["answer"], dict(identity["sampling"])
    modes = {
        mode: {name: answer[name] for name in names if answer.get(name) not in UNSET}
        for mode, names in OPTIONS_OF_MODES.items()
    }
    modes["completion"] = {"logprobs": True} if sampling.pop("logprobs", False) else {}
    prompt = dict(identity["prompt"])
    if prompt["prompt_template"] is not None:  # version 0.1 dropped a template's trailing newline
        prompt["prompt_template"] = prompt["prompt_template"].removesuffix("\n")
    columns = {
        "include_prompt": identity["columns"]["own"]["include_prompt"],
        "kept": identity["columns"]["kept"],
    }
    return {
        **{name: value for name, value in identity.items() if name != "answer"},
        "prompt": prompt,
        "sampling": sampling,
        "modes": {name: options for name, options in modes.items() if options},
        "columns": columns,
    }


def without_late_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch of a part with null for each time of 24:00:00 or later, as parts have had it since format 3.

    Version 0.1 wrote such times, which are invalid in Arrow, into the columns that it kept.
    """
    for idx, field in enumerate(batch.schema):
        if pa.types.is_time(field.type):
            width = pa.int32() if pa.types.is_time32(field.type) else pa.int64()
            num_units = pa.scalar(86_400 * UNITS_PER_SEC[field.type.unit], width)
            is_valid = pc.less(batch.column(idx).view(width), num_units)
            nulls = pa.nulls(len(batch), field.type)
            batch = batch.set_column(idx, field, pc.if_else(is_valid, batch.column(idx), nulls))
    return batch

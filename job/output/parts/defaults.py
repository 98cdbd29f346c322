"""A run's identity as JSON values, and the values in it that are left out."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, SamplingConfig


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON: a tuple becomes a list."""
    return json.loads(json.dumps(value))


def defaults_of(cls: type, *names: str) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields as JSON values; of all fields if none is named."""
    found = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    return {name: _plain(found[name]) for name in names or found}


DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dataset": {
        **defaults_of(DataConfig, "limit", "csv_delimiter", "csv_encoding", "sheet", "earlier_errors"),
        "reader": None,
        "card_options": None,
    },
    "model": defaults_of(ModelConfig, "kv_cache_dtype", "task", "quantize", "adapter"),
    "prompt": {**defaults_of(PromptConfig), "request_column": None, "text_rules": 1},
    "sampling": _plain(SamplingConfig().options()),
    "columns": {**defaults_of(OutputConfig, "include_prompt"), "reused": False},
}
"""Values that an identity leaves out, by section. A changed default needs a new format version, as a test checks."""


def without_defaults(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without the values that are defaults, as it comes back from JSON."""
    return {
        section: {
            name: value for name, value in values.items() if (name, value) not in DEFAULTS.get(section, {}).items()
        }
        if isinstance(values, Mapping)
        else values
        for section, values in _plain(identity).items()
    }

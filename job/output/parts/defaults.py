"""A run's identity as JSON values: leaving out defaults, and describing how two identities differ."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from job.config import DataConfig, OutputConfig, PromptConfig, SamplingConfig
from job.errors import shorten
from job.modes.registry import MODES


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON: a tuple becomes a list."""
    return json.loads(json.dumps(value))


def defaults_of(cls: type, *names: str) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields as JSON values; of all fields if none is named."""
    found = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    return {name: _plain(found[name]) for name in names or found}


DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dataset": defaults_of(DataConfig, "limit"),
    "prompt": {**defaults_of(PromptConfig), "request_column": None},
    "sampling": _plain(SamplingConfig().options()),
    "columns": defaults_of(OutputConfig, "include_prompt"),
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


def describe_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe how two identities without defaults differ: each field with both values."""
    before, after = _flatten(was), _flatten(now)
    defaults = _flatten({**DEFAULTS, "modes": {mode.name: defaults_of(mode) for mode in MODES}})
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return [_describe(name, before, after, defaults) for name in names]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    items: dict[str, Any] = {}
    for key, inner in value.items():
        items |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return items


def _describe(name: str, before: dict[str, Any], after: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Describe how one field differs. A side that does not name it has the default, if the field has one."""
    was, now = (_show(values[name]) if name in values else None for values in (defaults | before, defaults | after))
    if now is None:
        return f"{name} was {was}, which this version does not know"
    if was == now:
        return f"{name} was {was}, now {now} ({_where(str((defaults | before)[name]), str((defaults | after)[name]))})"
    return f"{name} was {'unknown to the version that wrote it' if was is None else was}, now {now}"


def _where(one: str, other: str) -> str:
    """Return where two long texts differ that begin alike."""
    pairs = enumerate(zip(one, other, strict=False))
    place = next((idx for idx, pair in pairs if pair[0] != pair[1]), min(len(one), len(other)))
    excerpts = [repr(text[max(0, place - 10) : place + 30]) for text in (one, other)]
    return f"they differ at character {place}: {' and '.join(excerpts)}"


def _show(value: Any) -> str:
    """Return a value for a message."""
    return shorten(json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value)

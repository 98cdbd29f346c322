"""The lease timeout and its default: a setting that all who look at a run share, and that a restart may change.

It is not part of what the run is (law 4).
"""

import json
import os
from dataclasses import asdict, dataclass, fields

from job.output.store.names import SETTINGS
from job.output.store.store import Store

LEASE_TIMEOUT_SECS = 60.0
"""The default of ``RunSettings.lease_timeout_secs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Settings of a run, as its directory stores them."""

    lease_timeout_secs: float
    """Silence after which a lease may be taken over."""

    @classmethod
    def default(cls) -> "RunSettings":
        """Return the settings of a run that stores none. (The environment variable is for tests.)"""
        return cls(lease_timeout_secs=float(os.environ.get("JOB_LEASE_STALE_SECS", LEASE_TIMEOUT_SECS)))


def read_settings(store: Store) -> RunSettings:
    """Return a run's settings. Missing and invalid ones have their default; unknown ones are ignored."""
    settings = RunSettings.default()
    try:
        content = json.loads(store.read(SETTINGS))
        values = {field.name: float(content[field.name]) for field in fields(settings) if field.name in content}
    except (FileNotFoundError, ValueError, TypeError):
        return settings
    known = {name: value for name, value in values.items() if value > 0}
    return RunSettings(**{**asdict(settings), **known})


def set_settings(store: Store, *, lease_timeout_secs: float | None) -> RunSettings:
    """Change a run's settings, if there is something to change.

    Args:
        lease_timeout_secs: None leaves it unchanged.
    """
    found = read_settings(store)
    wanted = found if lease_timeout_secs is None else RunSettings(lease_timeout_secs=lease_timeout_secs)
    if wanted != found:
        store.replace(SETTINGS, json.dumps(asdict(wanted)).encode())
    return wanted

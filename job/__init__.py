"""Batch offline LLM inference over datasets.

``from job import run, RunConfig`` runs one from Python.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from job.errors import JobError as JobError
    from job.errors import UsageError as UsageError
    from job.run.api import RunConfig as RunConfig
    from job.run.api import RunResult as RunResult
    from job.run.api import run as run

__version__ = "0.4.0"

_PLACES = {
    "JobError": "job.errors",
    "UsageError": "job.errors",
    "RunConfig": "job.run.api",
    "RunResult": "job.run.api",
}
"""What is imported only when it is asked for: the command line needs none of it."""


def __getattr__(name: str) -> Any:
    if name == "run":
        return importlib.import_module("job.run")  # it can be called
    if name not in _PLACES:
        raise AttributeError(f"module 'job' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)

"""Imports what serves each kind of task in an engine. The tasks name it themselves (``served_by`` in ``job.tasks``)."""

from collections.abc import Collection
from importlib import import_module
from typing import Any, get_args

from job import tasks
from job.errors import JobError


def servers(engine: str) -> dict[type, Any]:
    """Return what serves each kind of task in an engine, for the kinds that it serves."""
    return {kind: _find(kind.served_by[engine]) for kind in get_args(tasks.Task) if engine in kind.served_by}


def require_served(task: tasks.Task, kinds: Collection[type], engine: str) -> None:
    """Check that a task is of one of the kinds that an engine serves.

    Raises:
        JobError: it is not, and neither is any other task of its mode.
    """
    if type(task) not in kinds:
        others = " or ".join(f"--engine {name}" for name in task.served_by)
        raise JobError(f"The {engine} engine does not serve tasks of the kind {type(task).__name__}. Use {others}.")


def _find(place: str) -> Any:
    """Import what ``module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)

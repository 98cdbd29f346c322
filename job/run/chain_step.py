"""A step of a chain. Imports nothing heavy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from job.config import RunConfig
from job.errors import JobError, PeerFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A run of a chain."""

    name: str
    config: RunConfig
    """Its dataset is the output of an earlier step, or that of the chain."""
    source: str | None
    """The step whose rows it reads; None: the dataset of the chain."""


@contextmanager
def of_step(name: str) -> Iterator[None]:
    """Let errors say which step they are of, unless they name one already."""
    try:
        yield
    except PeerFailed:
        raise
    except JobError as error:
        if not str(error).startswith("step "):
            error.args = (f"step {name}: {error}", *error.args[1:])
        raise

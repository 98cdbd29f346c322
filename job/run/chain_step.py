"""A step of a chain. Imports nothing heavy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from job.config import RunConfig
from job.errors import JobError, NoEffect, PeerFailed, RunDiffers
from job.wording import listed


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
            is_idle = isinstance(error, NoEffect)
            hint = " What is at the top is for all steps: write it in the tables of those that use it."
            error.args = (f"step {name}: {error}{hint if is_idle else ''}", *error.args[1:])
        raise


@contextmanager
def of_changed_step(step: Step, steps: Sequence[Step]) -> Iterator[None]:
    """Let the refusal of a step that has begun otherwise say how to compute it anew.

    Args:
        steps: those that follow it, in their order, at least.
    """
    try:
        yield
    except RunDiffers as error:
        names, places = {step.name}, [step.config.output.output]
        for other in steps:
            if other.source in names:
                names.add(other.name)
                places.append(other.config.output.output)
        also = " and those of the steps that read it" if len(places) > 1 else ""
        error.args = (f"{error} To compute this step anew, delete its directory{also}: {listed(places)}.",)
        raise

"""Computes what the modes need before the first row, such as how likely each choice is for a row without content."""

from collections.abc import Sequence

from job.engine.protocol import Engine
from job.errors import JobError
from job.launch.stop import StopFlag
from job.modes.bound import BoundModes
from job.observe.watchdog import Watchdog
from job.records import Generation
from job.run.preparation import Prepared


def calibrate(prepared: Prepared, engine: Engine, stop: StopFlag, watchdog: Watchdog) -> BoundModes:
    """Compute the probes, if there are any, and return the calibrated modes. Returns early on a stop request.

    Raises:
        JobError: a probe could not be scored.
    """
    generations: list[Generation] = []
    for request in prepared.probes:
        engine.submit(request)
    while len(generations) < len(prepared.probes) and not stop():
        with watchdog.watching():
            generations += engine.step()
    if not generations or stop():
        return prepared.modes
    generations.sort(key=lambda generation: -generation.request.row_idx)
    return calibrated(prepared.modes, generations)


def calibrated(modes: BoundModes, generations: Sequence[Generation]) -> BoundModes:
    """Return modes that are calibrated with the results of their probes, in the order of these.

    Raises:
        JobError: a probe could not be scored.
    """
    for probe, generation in zip(modes.probes, generations, strict=True):
        if generation.error is not None:
            raise JobError(f"{probe.option} {probe.text!r} failed: {generation.error}.")
    return modes.calibrated(generations)

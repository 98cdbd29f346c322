"""Content-free prompts are scored before the first row, so that the choices' scores can be compared with theirs."""

from job.engine.protocol import Engine
from job.errors import JobError
from job.launch.stop import StopFlag
from job.modes.bound import BoundModes
from job.observe.watchdog import Watchdog
from job.records import Generation
from job.run.preparation import Prepared


def calibrate(prepared: Prepared, engine: Engine, stop: StopFlag, watchdog: Watchdog) -> BoundModes:
    """Compute the content-free prompts, if there are any, and return the modes that know them. Leaves early on a stop.

    Raises:
        JobError: one of them could not be scored.
    """
    generations: list[Generation] = []
    for request in prepared.probes:
        engine.submit(request)
    while len(generations) < len(prepared.probes) and not stop():
        with watchdog.watching():
            generations += engine.step()
    if not generations or stop():
        return prepared.modes
    for generation in generations:
        if generation.error is not None:
            raise JobError(f"--choice-calibration: a content-free prompt failed: {generation.error}.")
    return prepared.modes.calibrated(sorted(generations, key=lambda generation: -generation.request.row_idx))

"""Content-free prompts are scored before the first row, so that the choices' scores can be compared with theirs."""

from job.engine.protocol import Engine
from job.errors import JobError
from job.launch.stop import StopFlag
from job.observe.watchdog import Watchdog
from job.records import Generation
from job.run.preparation import Prepared


def calibrate(prepared: Prepared, engine: Engine, stop: StopFlag, watchdog: Watchdog) -> None:
    """Score the content-free prompts, if there are any, and let the tokenization know. Leaves early on a stop.

    Raises:
        JobError: one of them could not be scored.
    """
    generations: list[Generation] = []
    for request in prepared.calibration:
        engine.submit(request)
    while len(generations) < len(prepared.calibration) and not stop():
        with watchdog.watching():
            generations += engine.step()
    if not generations or stop():
        return
    for generation in generations:
        if generation.error is not None:
            raise JobError(f"--choice-calibration: a content-free prompt failed: {generation.error}.")
    prepared.tokenization.calibrate(sorted(generations, key=lambda generation: generation.request.key))

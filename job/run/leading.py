"""A leader's work on a run from the first claim to the last line: with a model, or without one if nothing needs it.

Rows that are in journals, that are copied from other runs, or whose prompts are errors become parts without a model, so
a run that has only such rows left ends before it loads one: loading may take minutes of a GPU's time.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from job.engine.protocol import Engine, Load
from job.errors import EXIT_DONE, EXIT_LIMIT, EXIT_STOPPED, EXIT_TOO_MANY_ERRORS, Unavailable
from job.launch.activity import doing, telling_what_takes_long
from job.launch.stop import StopFlag
from job.observe.progress import Progress
from job.observe.stopwatch import Stopwatch
from job.observe.watchdog import Heartbeat
from job.output.sharing.metrics import WorkerStats
from job.records import Generation, Partial, PartialKey, Request
from job.run.first_rows import NothingSucceeds
from job.run.live import Live
from job.run.preparation import Prepared
from job.run.runner import Runner
from job.run.stopping import advice_at_limit

COUNT_SECS = 5.0
"""How long counting what is finished of a run may delay its restart."""

FEW = 1_000
"""At most this many rows that are neither finished nor copied are read to see whether they all are errors."""

PATIENCE_SECS = 2.0
"""How long to wait for such rows, or for other workers that hold them, before the model is loaded after all."""


class ModelNeeded(Exception):
    """A row needs a model. It ends a loop that has none."""


class NoModel:
    """Takes the place of an engine for rows that need none."""

    num_pending, min_pending, max_pending, num_computed_tokens, load = 0, 1, 1, 0, Load()

    def __init__(self, patience_secs: float) -> None:
        """Wait no longer than this for other workers and for rows that are being read."""
        self._end = time.monotonic() + patience_secs

    @property
    def in_flight(self) -> list[Request]:
        """See ``Engine``."""
        return []

    def partials(self, known: Mapping[PartialKey, int]) -> list[Partial]:
        """See ``Engine``."""
        return []

    def submit(self, request: Request) -> None:
        """Refuse a request.

        Raises:
            ModelNeeded: always.
        """
        raise ModelNeeded("a row needs the model")

    def withdraw(self) -> list[Request]:
        """See ``Engine``."""
        return []

    def step(self) -> list[Generation]:
        """See ``Engine``."""
        return []

    def keep_alive(self) -> None:
        """See ``Engine``.

        Raises:
            ModelNeeded: it has taken too long.
        """
        if time.monotonic() > self._end:
            raise ModelNeeded("rows that may need the model are not there yet")

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""

    def follow(self) -> int:
        """See ``Engine``. Nothing is sent."""
        return 0


def lead(runner: Runner, engine: Engine, stop: StopFlag, progress: Progress) -> int:
    """Have ``runner`` work, release the followers, and say how it ended. Returns the exit code."""
    try:
        with telling_what_takes_long(progress.note, only_servers=True):
            exit_code = runner.run()
    except (NothingSucceeds, Unavailable) as error:  # the followers end with the same code
        engine.close(error.exit_code)
        raise
    engine.close(exit_code)
    if exit_code == EXIT_LIMIT:
        progress.note(advice_at_limit(runner.prepared))
    if exit_code == EXIT_STOPPED:
        progress.note(_advice_on_stop(stop))
    if exit_code in (EXIT_DONE, EXIT_TOO_MANY_ERRORS):
        progress.finish(runner.summary())
    return exit_code


def lead_without_model(
    prepared: Prepared,
    stop: StopFlag,
    progress: Progress,
    stopwatch: Stopwatch,
    launch_id: str,
    live: Live,
    add: Callable[[Sequence[WorkerStats]], None],
) -> int | None:
    """Finish a run of which nothing is left to compute. One process does this for the whole launch.

    Args:
        add: takes the figures of the launch's workers, if it ends here.

    Returns:
        The exit code; None if the model is needed. What was finished until then is in journals and parts.
    """
    num_left = _num_to_compute(prepared)
    if num_left is None or num_left > FEW:
        return None
    # If every row is accounted for, other workers that write some of them now are waited for.
    engine = NoModel(PATIENCE_SECS if num_left else float("inf"))
    doing("writing rows that are finished or copied into parts")
    stop.begin_work()
    of_rest = replace(prepared, probes=())  # they need the model
    runner = Runner(of_rest, engine, stop, Heartbeat(stop), progress, stopwatch, launch_id, live=live)
    try:
        exit_code = lead(runner, engine, stop, progress)
    except ModelNeeded:
        if not runner.of_launch()[0].num_rows:
            with contextlib.suppress(OSError, Unavailable):
                prepared.directory.store.delete(prepared.directory.names.metrics(str(prepared.worker)))
        if stop():
            progress.note(_advice_on_stop(stop))
        return EXIT_STOPPED if stop() else None
    finally:
        stop.end_work()
    add(runner.of_launch())
    if exit_code in (EXIT_DONE, EXIT_TOO_MANY_ERRORS):
        for note in prepared.notes:
            progress.note(note)
        progress.note(f"{prepared.config.model.model} was not loaded: no row was left to compute")
    return exit_code


def _advice_on_stop(stop: StopFlag) -> str:
    return f"stopped on {stop.signal_name}; finished rows are safe, run the same command again to continue"


def _num_to_compute(prepared: Prepared) -> int | None:
    """Return about how many completions are neither finished nor copied; None if that is not known soon enough."""
    if not prepared.is_claimed or not (prepared.is_restart or prepared.copies):
        return None
    finished, plan = prepared.finished, prepared.plan
    finished.look(budget_secs=COUNT_SECS)
    written = prepared.directory.written_shards()
    unwritten = (shard_idx for shard_idx in range(plan.num_shards) if shard_idx not in written)
    num_copied = 0 if prepared.copies is None else sum(map(prepared.copies.num_rows, unwritten)) * plan.num_samples
    return plan.num_completions - finished.num_rows() - num_copied

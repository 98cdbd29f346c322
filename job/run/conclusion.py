"""The end of a run, when every shard is final."""

from collections.abc import Callable

from job.errors import EXIT_DONE, EXIT_TOO_MANY_ERRORS, JobError
from job.observe.progress import Progress
from job.observe.text import number
from job.output.looking.totals import add_up, read_totals
from job.output.parts.card import write_card
from job.output.parts.counts import Counts
from job.output.parts.growth import read_growth
from job.output.sharing.leases import Leases
from job.output.store.names import CONCLUSION
from job.run.copy_decision import record_keys
from job.run.preparation import Prepared
from job.run.stopping import leave_early


def conclude(
    prepared: Prepared, leases: Leases | None = None, wait: Callable[[], bool] = lambda: True, *, by: str = ""
) -> Counts:
    """Clean up a finished run's directory, write its card, and return the totals of its parts.

    Many workers, from any number of launches, may get here at the same time. Only one of them reads the footers of all
    parts: with 64 workers and 100,000 parts, the file system would otherwise have to serve all of them 64 times within
    a minute. The others read the totals that it leaves. If it dies, another one takes its place.

    Args:
        leases: this worker's. None: read the footers even if another worker left totals, which finds damaged parts.
        wait: sleeps briefly; returns True if there is no time to wait for another worker.
        by: the launch that has completed the run if nobody was first.

    Raises:
        JobError: a part cannot be read or the card cannot be written.
    """
    directory = prepared.directory
    try:
        directory.sweep()
        if _is_latest(prepared):
            directory.discard_drafts()
        totals = _add_up_once(prepared, leases, wait, by)
    except OSError as error:
        path = error.filename or directory.store.describe()
        raise JobError(
            f"{path}: {error.strerror or error}. All rows are finished; fix this and run the same command."
        ) from None
    if _is_latest(prepared):
        write_card(directory.store, prepared.manifest, totals)
    return totals


def _is_latest(prepared: Prepared) -> bool:
    """Whether the run has not grown since. If it has, its other workers write drafts and, at the end, the card."""
    return read_growth(prepared.directory.store) == prepared.manifest.growth


def _add_up_once(prepared: Prepared, leases: Leases | None, wait: Callable[[], bool], by: str) -> Counts:
    directory = prepared.directory
    if leases is None:
        found = add_up(directory, by)
        directory.store.delete(CONCLUSION)  # left by a worker that died here; one that still waits finds the totals
        return found
    while (totals := read_totals(directory)) is None:
        if leases.acquire_name(CONCLUSION):
            try:
                # Another worker may have left its totals between our check and the release of its lease.
                return read_totals(directory) or add_up(directory, by)
            finally:
                leases.release_name(CONCLUSION)
        if wait():
            return add_up(directory, by)
    return totals


def exit_code_of(totals: Counts, prepared: Prepared, note: Callable[[str], None]) -> int:
    """Return the exit code of a finished run. All processes compute it from the same totals."""
    max_error_rate = prepared.config.output.max_error_rate
    if totals.error_rate <= max_error_rate:
        return EXIT_DONE
    note(
        f"{100 * totals.error_rate:.1f} % of the rows are errors, more than --max-error-rate {max_error_rate:g}: "
        f"exit code {EXIT_TOO_MANY_ERRORS}"
    )
    return EXIT_TOO_MANY_ERRORS


def finish_early(prepared: Prepared, progress: Progress, launch_id: str) -> int | None:
    """If nothing is left to do, report that without loading a model, and return the exit code.

    One process does this for the whole launch, because it reads the footers of all parts.
    """
    if not prepared.is_done:
        return leave_early(prepared, progress.note)
    totals = conclude(prepared, by=launch_id)
    record_keys(prepared, progress.note)
    verb = "is" if totals.num_rows == 1 else "are"
    if prepared.config.output.extend:
        progress.note(f"--extend: {prepared.config.data.dataset} has no new rows")
    progress.note(f"all {number(totals.num_rows, 'row')} {verb} already done, {totals.num_errors:,} with an error")
    return exit_code_of(totals, prepared, progress.note)

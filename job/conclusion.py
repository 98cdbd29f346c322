"""The end of a run: every shard is final."""

import contextlib

from job.errors import EXIT_DONE, EXIT_TOO_MANY_ERRORS
from job.output.counts import Counts
from job.preparation import Prepared


def conclude(prepared: Prepared) -> Counts:
    """Sweep a finished run's directory, and return what its parts hold, from their footers."""
    for leftover in prepared.paths.leftovers():
        with contextlib.suppress(OSError):  # another worker does the same
            leftover.unlink()
    totals = Counts()
    for shard_idx in range(prepared.plan.num_shards):
        totals.add_part(prepared.paths.part(shard_idx))
    return totals


def exit_code_of(totals: Counts, prepared: Prepared) -> int:
    """Return the exit code of a finished run."""
    max_error_rate = prepared.config.output.max_error_rate
    return EXIT_TOO_MANY_ERRORS if totals.error_rate > max_error_rate else EXIT_DONE

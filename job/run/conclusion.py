"""The end of a run: every shard is final."""

import contextlib

from job.errors import EXIT_DONE, EXIT_TOO_MANY_ERRORS
from job.output.looking.footers import count_all
from job.output.parts.card import write_card
from job.output.parts.counts import Counts
from job.run.preparation import Prepared


def conclude(prepared: Prepared) -> Counts:
    """Sweep a finished run's directory, write its card, and return what its parts hold, from their footers.

    Raises:
        JobError: a part cannot be read, or the card not be written.
    """
    for leftover in prepared.paths.leftovers():
        with contextlib.suppress(OSError):  # another worker does the same
            leftover.unlink()
    totals = count_all(prepared.paths)
    write_card(prepared.paths, prepared.manifest, totals, str(prepared.worker))
    return totals


def exit_code_of(totals: Counts, prepared: Prepared) -> int:
    """Return the exit code of a finished run."""
    max_error_rate = prepared.config.output.max_error_rate
    return EXIT_TOO_MANY_ERRORS if totals.error_rate > max_error_rate else EXIT_DONE

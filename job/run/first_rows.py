"""Ends a run of which nothing succeeds: the rest could take all night, and would fail, too.

Each worker watches its own first rows, whatever the kind of error. Before it gives up, it waits for the rows in flight,
and looks at the whole run: where any worker has ever completed a row, all go on. So workers come to the same verdict.
A restart begins to watch anew, with the rows that are left; finished rows, errors included, are not computed again.
"""

from collections import Counter

from job.errors import EXIT_TOO_MANY_ERRORS, JobError
from job.output.looking.finished import FinishedRows
from job.output.parts.plan import Plan
from job.records import Completion

NUM_PROMPTS = 256
"""How many different prompts must have failed in the same way, before any row has succeeded."""

NUM_COPIES = 10 * NUM_PROMPTS
"""How many rows must have failed in the same way, if they are copies of fewer prompts."""

READ_SECS = 10.0


class NothingSucceeds(JobError):
    """The first rows of a run are all errors."""

    exit_code = EXIT_TOO_MANY_ERRORS


class FirstRows:
    """Watches the first rows that a worker finishes."""

    def __init__(self, *, max_error_rate: float) -> None:
        """Watch a run. If all of its rows may be errors, there is nothing to watch."""
        self._num_rows = Counter[str]()
        self._prompts: dict[str, set[int]] = {}
        """Error kind to the hashes of the prompts that had it; a row without a prompt counts as one of its own."""
        self._is_hopeful = max_error_rate >= 1

    def add(self, completion: Completion) -> None:
        """Look at a finished row."""
        if self._is_hopeful:  # nearly always
            return
        if completion.error is None:
            self._is_hopeful = True
            return
        kind, prompt = completion.error.kind, completion.prompt
        self._num_rows[kind] += 1
        self._prompts.setdefault(kind, set()).add(hash(completion.row_idx if prompt is None else prompt))

    @property
    def are_bad(self) -> bool:
        """Whether so many have failed that no more should be started until those in flight have ended."""
        return not self._is_hopeful and any(
            len(prompts) >= NUM_PROMPTS or self._num_rows[kind] >= NUM_COPIES for kind, prompts in self._prompts.items()
        )

    def check_run(self, finished: FinishedRows, plan: Plan, where: str) -> None:
        """Give up, unless a row has succeeded elsewhere in the run or none is left.

        Args:
            where: the run directory, for the message.

        Raises:
            NothingSucceeds: the run is given up.
        """
        finished.look(budget_secs=READ_SECS)
        counts = finished.counts()
        if counts.num_errors < finished.num_rows() or finished.num_rows() == plan.num_completions:
            self._is_hopeful = True
            return
        kind, number = counts.errors.most_common(1)[0]
        row_idx, detail = counts.first_errors[kind]
        raise NothingSucceeds(
            f"Nothing has succeeded so far, and {number:,} {plan.unit} have the same kind of error. The first is row "
            f"{row_idx}: {kind}: {' '.join(detail.split()).rstrip('.')}. The run stops here. If an option is wrong, "
            "start again with the right one and a new --output. If the cause lies elsewhere, fix it and run the same "
            f"command: it continues with the rows that are left, and after its end, job retry {where} lets it "
            "recompute these. With --max-error-rate 1, a run never stops for this."
        )

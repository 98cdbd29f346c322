"""The end of a launch: collects what came out, and has it sent to whom ``--on-end`` names.

One process of a launch does so, once, after everything else: its journals are closed, so nothing can be lost by it.
Whatever goes wrong here is a line on standard error.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import job
from job.config import RunConfig
from job.config.launch import is_webhook
from job.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_LIMIT,
    EXIT_STOPPED,
    EXIT_TOO_MANY_ERRORS,
    EXIT_USAGE,
    MAX_REASON_CHARACTERS,
    JobError,
    PeerFailed,
    Unavailable,
    first_line,
    shorten,
)
from job.launch import slurm
from job.launch.environment import is_first_process
from job.launch.notice import KILL_SECS, host_of, missing_program, post, run_command
from job.launch.replica import Replica
from job.launch.stop import StopFlag
from job.output.looking.finished import FinishedRows
from job.output.looking.found import FoundRun, find_run
from job.output.looking.totals import completed_by, read_totals
from job.output.sharing.metrics import WorkerStats
from job.output.store.names import PAGE
from job.remote.patience import lose_patience
from job.report.ending import Ended, LaunchShare, RunRows, RunTotals
from job.wording import redacted

SECS = 60.0
"""How long all of this may take."""

STOPPED_SECS = 10.0
"""The same from when a stop was requested: a preemption by Slurm may leave 30 s for everything."""

READ_SECS, STOPPED_READ_SECS = 5.0, 2.0
"""How long the run may be read, of that time."""

REASONS = {
    EXIT_DONE: "every row is in a part",
    EXIT_TOO_MANY_ERRORS: "every row is in a part, and more of them are errors than --max-error-rate allows",
}


class Ending:
    """A context in which a launch works. Leaving it sends the notice, unless nothing was begun (exit code 2)."""

    def __init__(self, config: RunConfig, stop: StopFlag, note: Callable[[str], None]) -> None:
        """Know who is to be told.

        Args:
            config: of the run; of a chain, that of its first step.
            stop: asks the launch to stop.
            note: prints a line for the user.
        """
        self._config, self._step = config, ""
        self._on_end, self._stop, self._note = config.launch.on_end, stop, note
        self._is_first = is_first_process(os.environ)
        self._shares: list[Sequence[WorkerStats]] = []
        self._replica: Replica | None = None
        self._start = self._end = time.monotonic()
        self._is_over = False
        self._short_from: float | None = None
        """When it became known that there is little time."""
        self.exit_code = EXIT_FAILED
        """Of the launch, if it ends without an exception."""

    def begins(self, config: RunConfig, step: str = "") -> None:
        """Say which run the launch works on from now on; of a chain, which step."""
        self._config, self._step = config, step

    def joined(self, replica: Replica) -> None:
        """Say that the processes of the launch have found each other."""
        self._replica = replica

    def add(self, workers: Sequence[WorkerStats]) -> None:
        """Count what workers of this launch have done for a run."""
        self._shares.append(workers)

    def __enter__(self) -> "Ending":
        if self._on_end is None:
            return self
        self._stop.farewell = lambda name: self._tell(EXIT_STOPPED, name)
        if self._is_first:
            self._stop.on_stall = lambda reason: self._tell(EXIT_FAILED, reason)
            word = None if is_webhook(self._on_end) else missing_program(self._on_end)
            if word is not None:
                self._note(f"--on-end: there is no program {word!r} here; it is looked for again when the launch ends")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._on_end is None or not isinstance(error, Exception | None):  # Ctrl-C, twice
            return
        self._stop.begin_work()  # a signal must not end the process in the middle of this, nor change its exit code
        exit_code, reason = self._outcome(error)
        if exit_code != EXIT_USAGE or self._shares:  # a later step of a chain may be refused
            self._tell(exit_code, reason)

    def _outcome(self, error: Exception | None) -> tuple[int, str]:
        if isinstance(error, PeerFailed):
            why = self._stop.signal_name if error.exit_code == EXIT_STOPPED else None
            return error.exit_code, why or "another process of this launch has failed; its own message says why"
        if error is not None:
            reason = shorten(redacted(str(error)), MAX_REASON_CHARACTERS)
            if isinstance(error, JobError):  # the scripts for Slurm ask for a code of their own if a server is silent
                return EXIT_FAILED if isinstance(error, Unavailable) else error.exit_code, reason
            return EXIT_FAILED, f"{type(error).__name__}: {reason}"
        if self.exit_code == EXIT_STOPPED:
            name = self._stop.signal_name or "stopped"
            failure = next(
                (each.left for share in self._shares for each in share if _has_failed(each.left, name)), None
            )
            return EXIT_STOPPED, name if failure is None else f"{name}, after a worker of this launch failed: {failure}"
        return self.exit_code, REASONS.get(self.exit_code, "see its messages")

    def _tell(self, exit_code: int, reason: str) -> None:
        """Send the notice, or wait until the process that sends it has done so."""
        if self._is_over or self._on_end is None:
            return
        self._is_over = True
        self._end = time.monotonic() + SECS
        if not self._is_first:
            # A launcher stops all processes as soon as one ends with an exit code other than 0.
            if exit_code in (EXIT_STOPPED, EXIT_LIMIT) and self._replica is not None:
                self._replica.wait_for_report(STOPPED_SECS + 2 * KILL_SECS)
            return
        if exit_code == EXIT_STOPPED:
            self._short_from = time.monotonic()
        lose_patience()
        try:
            problem = self._send(self._ended(exit_code, reason))
        except KeyboardInterrupt:
            if not self._stop.is_installed:  # it is for the program that runs this
                raise
            problem = "ended by Ctrl-C"  # which does not undo what the launch has done
        except Exception as error:  # also a bug: the launch has ended as it has
            problem = f"{type(error).__name__}: {shorten(redacted(str(error)))}"
        if problem is not None:
            self._note(f"--on-end: {problem}")
        if self._replica is not None:
            self._replica.say_ended()

    def _left(self) -> float:
        """Return how many seconds are left."""
        now = time.monotonic()
        if self._short_from is None and self._stop():
            self._short_from = now
        end = self._end if self._short_from is None else min(self._end, self._short_from + STOPPED_SECS)
        return end - now

    def _send(self, ended: Ended) -> str | None:
        assert self._on_end is not None
        document = json.dumps(ended.to_dict(), ensure_ascii=False) + "\n"
        if is_webhook(self._on_end):
            problem = post(self._on_end, document, self._left, job.__version__)
            return problem and f"{host_of(self._on_end)} {problem}"
        env = {
            "JOB_RUN": ended.run,
            "JOB_STATE": ended.state,
            "JOB_EXIT_CODE": str(ended.exit_code),
            "JOB_TEXT": ended.text,
        }
        problem = run_command(self._on_end, document, env, self._left)
        return problem and f"the command {problem}"

    def _ended(self, exit_code: int, reason: str) -> Ended:
        output, launch_id = self._config.output.output, "" if self._replica is None else self._replica.launch_id
        read_secs = READ_SECS if self._short_from is None else STOPPED_READ_SECS
        found: list[tuple[RunTotals, bool]] = []
        is_done = exit_code in REASONS
        # In a thread: a disk or a store that hangs must not take all the time.
        args = (output, launch_id, is_done, read_secs, found, self._note)
        reading = threading.Thread(target=_read, args=args, name="on-end", daemon=True)
        reading.start()
        reading.join(1.5 * read_secs)
        totals, has_report = found[0] if found else (None, False)
        return Ended(
            run=redacted(output),
            step=self._step or None,
            exit_code=exit_code,
            reason=reason,
            model=redacted(self._config.model.model),
            dataset=redacted(self._config.data.dataset),
            version=job.__version__,
            totals=totals,
            launch=LaunchShare(
                launch_id=launch_id,
                host=socket.gethostname(),
                slurm_job_id=slurm.job_id(os.environ),
                num_workers=max(map(len, self._shares), default=0),
                num_rows=sum(each.num_rows for share in self._shares for each in share),
                num_tokens=sum(each.num_tokens for share in self._shares for each in share),
                secs=time.monotonic() - self._start,
            ),
            report=f"{redacted(output)}/{PAGE}" if has_report else None,
        )


def _has_failed(left: str, signal_name: str) -> bool:
    """Whether a worker gave a failure as the reason why it ended, rather than the stop of the launch."""
    return (
        bool(left)
        and left not in ("done", "stopped", signal_name)
        and " " in left
        and not left.startswith("the end of")
    )


def _read(
    output: str,
    launch_id: str,
    is_done: bool,
    secs: float,
    found: list[tuple[RunTotals, bool]],
    note: Callable[[str], None],
) -> None:
    """Read what is finished of a run, and whether it has a page."""
    try:
        run = find_run(output)
        found.append((totals_of(run, launch_id, is_done=is_done, secs=secs), run.directory.store.exists(PAGE)))
    except Exception as error:  # also a bug: the launch has ended as it has
        if not isinstance(error, JobError) or is_done:
            note(f"--on-end: the rows of the run could not be counted: {shorten(redacted(first_line(error)))}")


def totals_of(run: FoundRun, launch_id: str, *, is_done: bool, secs: float) -> RunTotals:
    """Return what is finished of a run.

    Args:
        launch_id: of this launch.
        is_done: whether every row of the run is in a part.
        secs: how long it may be read.

    Raises:
        OSError: the directory cannot be read.
    """
    counts, num_rows, is_partial = read_totals(run.directory) if is_done else None, run.plan.num_completions, False
    if counts is None:
        finished = FinishedRows(run.directory, run.plan)
        finished.look(budget_secs=secs / 2)
        counts, num_rows, is_partial = finished.counts(), finished.num_rows(), finished.is_partial
    rows = RunRows(
        total=run.plan.num_completions,
        done=num_rows - counts.num_errors,
        errors=counts.num_errors,
        pending=run.plan.num_completions - num_rows,
        is_partial=is_partial,
    )
    return RunTotals(
        rows=rows,
        errors={kind: number for kind, number in counts.errors.items() if number},
        num_prompt_tokens=counts.num_prompt_tokens,
        num_completion_tokens=counts.num_completion_tokens,
        is_completed_here=is_done and bool(launch_id) and completed_by(run.directory) == launch_id,
    )

"""How a launch ended, as it is told to others: which run, what it did, what is left. No text of a row is in it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from job.errors import EXIT_DONE, EXIT_LIMIT, EXIT_STOPPED, EXIT_TOO_MANY_ERRORS
from job.observe.text import format_secs

DONE, STOPPED, FAILED = "done", "stopped", "failed"
STATES = {EXIT_DONE: DONE, EXIT_TOO_MANY_ERRORS: DONE, EXIT_STOPPED: STOPPED, EXIT_LIMIT: STOPPED}
"""By exit code; any other is a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """The rows of a run: ``total`` is ``done + errors + pending``."""

    total: int
    done: int
    """Finished without an error."""
    errors: int
    pending: int
    is_partial: bool
    """Whether there was no time to read everything: then more may be done, or be errors, than were counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTotals:
    """What is finished of a run."""

    rows: RunRows
    errors: Mapping[str, int]
    """Error kind to number of rows."""
    num_prompt_tokens: int
    num_completion_tokens: int
    is_completed_here: bool
    """Whether this launch is the one that completed the run: it is true for one launch, however many are at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchShare:
    """What one launch did."""

    launch_id: str
    host: str
    slurm_job_id: str | None
    num_workers: int
    num_rows: int
    """Finished by this launch, errors included."""
    num_tokens: int
    """Prompt and completion tokens computed."""
    secs: float
    """Since it was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a launch."""

    run: str
    step: str | None
    """Of a chain: the step that it ended with."""
    exit_code: int
    reason: str
    model: str
    dataset: str
    version: str
    totals: RunTotals | None
    """None: the run directory cannot be read, or does not exist yet."""
    launch: LaunchShare
    report: str | None
    """The page that ``job report`` has written, if there is one."""

    @property
    def state(self) -> str:
        """``done``, ``stopped`` or ``failed``."""
        return STATES.get(self.exit_code, FAILED)

    @property
    def text(self) -> str:
        """The end in one line."""
        name = self.run if self.step is None else f"{self.run} (step {self.step})"
        words = f"{name}: {self.state}" + ("" if self.exit_code == EXIT_DONE else f", exit code {self.exit_code}")
        if self.totals is not None:
            rows = self.totals.rows
            words += f"; {rows.done + rows.errors:,} of {rows.total:,} rows"
            words += f", {rows.errors:,} with an error" if rows.errors else ""
        words += f"; this launch: {self.launch.num_rows:,} rows in {format_secs(self.launch.secs)}"
        return words if self.state == DONE else f"{words}. {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values. The keys are documented in the README and do not change."""
        totals = self.totals
        rows = None if totals is None else asdict(totals.rows)
        return {
            "text": self.text,
            "run": self.run,
            "step": self.step,
            "state": self.state,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "run_done": self.state == DONE,
            "completed_run": totals is not None and totals.is_completed_here,
            "rows": rows,
            "errors": None if totals is None else dict(totals.errors),
            "tokens": None
            if totals is None
            else {"prompt": totals.num_prompt_tokens, "completion": totals.num_completion_tokens},
            "launch": {
                "id": self.launch.launch_id,
                "host": self.launch.host,
                "slurm_job_id": self.launch.slurm_job_id,
                "workers": self.launch.num_workers,
                "rows": self.launch.num_rows,
                "tokens": self.launch.num_tokens,
                "seconds": round(self.launch.secs, 3),
            },
            "model": self.model,
            "dataset": self.dataset,
            "report": self.report,
            "version": self.version,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

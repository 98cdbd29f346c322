"""How far the run is: a bar on a terminal, a line every 30 seconds elsewhere. On stderr; stdout is the user's."""

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Any

from job.observe.summary import Summary
from job.observe.text import format_secs

LINE_SECS = 30.0
BAR_SECS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Where all workers on this run stand together."""

    num_rows: int
    """Finished rows of the run, those of earlier launches included."""
    total_rows: int
    num_errors: int
    """Seen by the workers at work now."""
    num_new_rows: int
    """Finished since these workers started."""
    num_tokens: int
    """Computed since these workers started, of unfinished rows, too."""
    num_at_work: int
    """Rows that are being computed now."""
    tokens_per_sec: float

    @property
    def eta_secs(self) -> float | None:
        """Remaining rows times tokens per row over tokens per second; None before that means anything.

        Tokens, not rows: the longest rows come first, so rows per second mislead for hours. Rows at work count half.
        They all start together, so the first ends tell nothing: as many must have ended as are at work.
        """
        if self.num_new_rows < max(1, self.num_at_work) or not self.tokens_per_sec:
            return None
        tokens_per_row = self.num_tokens / (self.num_new_rows + self.num_at_work / 2)
        num_left = max(0.0, self.total_rows - self.num_rows - self.num_at_work / 2)
        return num_left * tokens_per_row / self.tokens_per_sec


def describe(progress: RunProgress) -> str:
    """Return progress as one line of a log.

    >>> describe(RunProgress(num_rows=50, total_rows=200, num_errors=1, num_new_rows=50, num_tokens=5000,
    ...                   num_at_work=0, tokens_per_sec=100.0))
    'rows 50/200 (25.0%)  errors 1  tokens/s 100  left 2m30s'
    """
    share = 100 * progress.num_rows / progress.total_rows if progress.total_rows else 100.0
    left = (
        "0s"
        if progress.num_rows == progress.total_rows
        else "unknown"
        if progress.eta_secs is None
        else format_secs(progress.eta_secs)
    )
    return (
        f"rows {progress.num_rows:,}/{progress.total_rows:,} ({share:.1f}%)  errors {progress.num_errors:,}  "
        f"tokens/s {progress.tokens_per_sec:,.0f}  left {left}"
    )


class Progress:
    """Shows progress. One process of a launch shows them; the others have ``enabled=False``."""

    def __init__(self, *, enabled: bool) -> None:
        """Show nothing yet."""
        self._enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        self._is_terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def note(self, text: str) -> None:
        """Tell the user something once."""
        if not self._enabled:
            return
        stamp = time.strftime("%H:%M:%S")
        with contextlib.suppress(OSError):  # the log's disk is full, or the terminal is gone: no reason to end a run
            if self._bar is not None:
                self._bar.console.print(f"{stamp}  {text}", markup=False, highlight=False)
            else:
                print(f"{stamp}  {text}", file=sys.stderr, flush=True)

    def is_due(self) -> bool:
        """Whether it is time to show where the run is."""
        every = BAR_SECS if self._is_terminal else LINE_SECS
        return self._enabled and time.monotonic() - self._last >= every

    def show(self, progress: RunProgress) -> None:
        """Show where the run is."""
        self._last = time.monotonic()
        if not self._enabled:
            return
        if not self._is_terminal:
            self.note(describe(progress))
            return
        self._start_bar(progress.total_rows)
        text = describe(progress).split("  ", 1)[1]
        self._bar.update(self._task, completed=progress.num_rows, description=text)

    def finish(self, summary: Summary) -> None:
        """Print the summary, for the user, on stdout."""
        if not self._enabled:
            return
        try:
            print(summary, flush=True)
        except OSError as error:
            self.note(f"the summary cannot be written to standard output: {error.strerror}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None

    def _start_bar(self, total_rows: int) -> None:
        if self._bar is not None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("rows  {task.description}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=total_rows)
        self._bar.start()

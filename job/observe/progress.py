"""Shows progress on stderr: a bar on a terminal, a line every 30 seconds elsewhere. Stdout gets only the summary."""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from job.observe.row_report import describe_briefly
from job.observe.summary import Summary
from job.observe.text import describe_errors, format_secs
from job.records import Completion

LINE_SECS = 30.0
ROW_SECS = 60.0
"""How often a finished row is shown."""
BAR_SECS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """The progress of all workers of this run together."""

    num_rows: int
    """Finished rows of the run, including those of earlier launches."""
    total_rows: int
    unit: str
    """``rows``, or ``samples`` if a row has several."""
    num_errors: int
    """Error rows of the run, including those of earlier launches."""
    num_cut: int
    """Completions of the run that reached the maximum number of new tokens, or ended in a loop."""
    is_partial: bool
    """Whether there are more than these, because not everything has been read yet."""
    num_new_rows: int
    """Rows finished since these workers started."""
    num_tokens: int
    """Tokens computed since these workers started, including those of unfinished rows."""
    num_at_work: int
    """Rows in flight."""
    tokens_per_sec: float
    """Prompt and completion tokens computed."""
    completion_tokens_per_sec: float = 0.0
    """Completion tokens of finished rows."""
    first_errors: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Error kind to the lowest row index that has it, and its detail."""

    @property
    def eta_secs(self) -> float | None:
        """See ``time_left``."""
        return time_left(
            num_left=self.total_rows - self.num_rows,
            num_new_rows=self.num_new_rows,
            num_tokens=self.num_tokens,
            num_at_work=self.num_at_work,
            tokens_per_sec=self.tokens_per_sec,
        )


def time_left(
    *, num_left: int, num_new_rows: int, num_tokens: int, num_at_work: int, tokens_per_sec: float
) -> float | None:
    """Return remaining rows times tokens per row, divided by tokens per second; None until that is meaningful.

    It is based on tokens because the longest rows come first, so rows per second would mislead for hours. Rows in
    flight count half. They all start together, so the first rows to finish are not representative: the estimate
    begins when the number of finished rows has reached the number in flight.
    """
    if num_new_rows < max(1, num_at_work) or not tokens_per_sec:
        return None
    tokens_per_row = num_tokens / (num_new_rows + num_at_work / 2)
    return max(0.0, num_left - num_at_work / 2) * tokens_per_row / tokens_per_sec


def describe(progress: RunProgress) -> str:
    """Return progress as one log line.

    >>> describe(RunProgress(num_rows=50, total_rows=200, unit="rows", num_errors=1, num_cut=7, is_partial=False,
    ...                   num_new_rows=50, num_tokens=5000, num_at_work=0, tokens_per_sec=100.0,
    ...                   completion_tokens_per_sec=20.0))
    'rows 50/200 (25.0%)  errors 1  cut 7  tokens/s 100 (completion 20)  left 2m30s'
    """
    share = 100 * progress.num_rows / progress.total_rows if progress.total_rows else 100.0
    left = (
        "0s"
        if progress.num_rows == progress.total_rows
        else "unknown"
        if progress.eta_secs is None
        else format_secs(progress.eta_secs)
    )
    more = "+" if progress.is_partial else ""
    cut = f"  cut {progress.num_cut:,}{more}" if progress.num_cut else ""
    return (
        f"{progress.unit} {progress.num_rows:,}{more}/{progress.total_rows:,} ({share:.1f}%)  "
        f"errors {progress.num_errors:,}{more}{cut}  "
        f"tokens/s {progress.tokens_per_sec:,.0f} (completion {progress.completion_tokens_per_sec:,.0f})  left {left}"
    )


class Progress:
    """Shows progress. Only one process of a launch does; the others pass ``enabled=False``."""

    def __init__(self, *, enabled: bool, shows_rows: bool | None = None, summary_file: TextIO | None = None) -> None:
        """Prepare to write to stderr, with a bar if it is a terminal. The bar appears with the first ``show``.

        Args:
            shows_rows: whether a finished row is shown every minute. None: on a terminal, since a log may be read by
                others.
            summary_file: where the summary goes. None: stdout.
        """
        self._summary_file = summary_file
        self.is_enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        self._is_terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._shows_rows = self._is_terminal if shows_rows is None else shows_rows
        self._last_row = -ROW_SECS
        self._known_kinds: set[str] = set()

    def note(self, text: str) -> None:
        """Print a note with a time stamp."""
        if not self.is_enabled:
            return
        stamp = time.strftime("%H:%M:%S")
        with contextlib.suppress(OSError):  # a full disk under the log or a closed terminal must not end a run
            if self._bar is not None:
                self._bar.console.print(f"{stamp}  {text}", markup=False, highlight=False)
            else:
                print(f"{stamp}  {text}", file=sys.stderr, flush=True)

    def is_due(self) -> bool:
        """Whether it is time to show progress again."""
        every = BAR_SECS if self._is_terminal else LINE_SECS
        return self.is_enabled and time.monotonic() - self._last >= every

    def show(self, progress: RunProgress) -> None:
        """Update the bar, or print a line."""
        self._last = time.monotonic()
        if not self.is_enabled:
            return
        for kind in progress.first_errors.keys() - self._known_kinds:
            self._known_kinds.add(kind)
            [line] = describe_errors({}, {kind: progress.first_errors[kind]})
            self.note(f"error {line}")
        if not self._is_terminal:
            self.note(describe(progress))
            return
        self._start_bar(progress)
        text = describe(progress).split("  ", 1)[1]
        self._bar.update(self._task, completed=progress.num_rows, description=text)

    def show_row(self, row: Completion) -> None:
        """Show a finished row, if it is time for one: it shows whether prompts and answers are as they should be."""
        if self._shows_rows and time.monotonic() - self._last_row >= ROW_SECS:
            self._last_row = time.monotonic()
            self.note(describe_briefly(row))

    def finish(self, summary: Summary) -> None:
        """Print the summary."""
        if not self.is_enabled:
            return
        try:
            print(summary, file=self._summary_file, flush=True)
        except OSError as error:
            self.note(f"the summary cannot be written to standard output: {error.strerror}")

    def close(self) -> None:
        """Remove the bar and restore the terminal."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None

    def _start_bar(self, progress: RunProgress) -> None:
        if self._bar is not None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(f"{progress.unit}  {{task.description}}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=progress.total_rows)
        self._bar.start()

"""Ends a process whose engine hangs, and says which rows it was at.

A kernel that never returns, or a collective whose other side is gone, would hold the GPUs until the time limit.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from job.errors import EXIT_FAILED
from job.launch.stop import StopFlag
from job.observe.text import rows_text


class Watchdog:
    """Watches whether the engine still asks if it should stop, as it does before every token."""

    def __init__(self, stall_secs: float, stop: StopFlag, rows_at_work: Callable[[], list[int]]) -> None:
        """Begin to watch.

        Args:
            stall_secs: silence after which the process ends; 0 never.
            rows_at_work: indices of the rows that the engine is at.
        """
        self._stall_secs, self._stop, self._rows_at_work = stall_secs, stop, rows_at_work
        self._is_watching = False
        self._stopped = threading.Event()
        if stall_secs > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the engine works. Reading may take its time."""
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False

    def close(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        every_secs = min(1.0, self._stall_secs / 4)
        silent_secs, last_asked = 0.0, self._stop.last_asked
        while not self._stopped.wait(every_secs):
            if not self._is_watching or self._stop.last_asked != last_asked:
                silent_secs, last_asked = 0.0, self._stop.last_asked
            else:
                silent_secs += every_secs  # not by the clock: the process may have been suspended
            if silent_secs > self._stall_secs:
                self._end(silent_secs)

    def _end(self, silent_secs: float) -> None:
        try:
            print(
                f"job: the engine has not ended a step for {silent_secs:.0f} s (--stall-timeout). It was at "
                f"{rows_text(self._rows_at_work())}. What is finished is safe; run the same command again to continue.",
                file=sys.stderr,
                flush=True,
            )
        finally:  # also if nobody can be told
            os._exit(EXIT_FAILED)

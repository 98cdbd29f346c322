"""Ends a process whose engine hangs, and says which rows it was at.

A kernel that never returns, or a collective whose other side is gone, would hold the GPUs until the time limit.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from job.errors import EXIT_FAILED
from job.observe.text import rows_text


class Heartbeat:
    """The engine's sign of life: it asks before every token whether it should stop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        """Wrap the question that the engine asks."""
        self._should_stop = should_stop
        self.num_beats = 0

    def beat(self) -> bool:
        """Count a sign of life, and return whether the engine should stop."""
        self.num_beats += 1
        return self._should_stop()


class Watchdog:
    """Watches whether the engine's heart still beats."""

    def __init__(self, stall_secs: float, heartbeat: Heartbeat, rows_at_work: Callable[[], list[int]]) -> None:
        """Begin to watch.

        Args:
            stall_secs: silence after which the process ends; 0 never.
            rows_at_work: indices of the rows that the engine is at.
        """
        self._stall_secs, self._heartbeat, self._rows_at_work = stall_secs, heartbeat, rows_at_work
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
        silent_secs, num_beats = 0.0, self._heartbeat.num_beats
        while not self._stopped.wait(every_secs):
            if not self._is_watching or self._heartbeat.num_beats != num_beats:
                silent_secs, num_beats = 0.0, self._heartbeat.num_beats
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

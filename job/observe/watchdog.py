"""Ends a process whose engine hangs, and reports the rows that were in flight.

A kernel that never returns, or a collective whose other side has died, would hold the GPUs until the time limit.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from job.errors import EXIT_FAILED
from job.observe.text import rows_text


class Heartbeat:
    """The engine's sign of life: the engine asks before every token whether it should stop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        """Wrap ``should_stop``, the function that the engine calls."""
        self._should_stop = should_stop
        self.num_beats = 0

    def beat(self) -> bool:
        """Count a sign of life, and return whether the engine should stop."""
        self.num_beats += 1
        return self._should_stop()


class Watchdog:
    """Watches a heartbeat, and ends the process when it stops."""

    def __init__(
        self,
        stall_secs: float,
        heartbeat: Heartbeat,
        rows_at_work: Callable[[], list[int]],
        farewell: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Start the watching thread.

        Args:
            stall_secs: seconds without a heartbeat after which the process ends; 0: never.
            rows_at_work: returns the indices of the rows in flight.
            farewell: called with the reason before the process ends.
        """
        self._farewell = farewell
        self._stall_secs, self._heartbeat, self._rows_at_work = stall_secs, heartbeat, rows_at_work
        self._is_watching = False
        self._stopped = threading.Event()
        if stall_secs > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside this context, while the engine works: reading data may take longer."""
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False

    def close(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self) -> None:
        every_secs = min(1.0, self._stall_secs / 4)
        silent_secs, num_beats = 0.0, self._heartbeat.num_beats
        while not self._stopped.wait(every_secs):
            if not self._is_watching or self._heartbeat.num_beats != num_beats:
                silent_secs, num_beats = 0.0, self._heartbeat.num_beats
            else:
                silent_secs += every_secs  # not measured by the clock: the process may have been suspended
            if silent_secs > self._stall_secs:
                self._end(silent_secs)

    def _end(self, silent_secs: float) -> None:
        try:
            reason = f"the engine has not finished a step for {silent_secs:.0f} s (--stall-timeout)"
            print(
                f"job: {reason}. In flight: {rows_text(self._rows_at_work())}. Finished rows are safe; run the same "
                "command again to continue.",
                file=sys.stderr,
                flush=True,
            )
            self._farewell(reason)
        finally:  # even if stderr is closed
            os._exit(EXIT_FAILED)

"""Measures where the time goes: seconds by activity, for the summary."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        """Start measuring the total time."""
        self.secs: defaultdict[str, float] = defaultdict(float)
        self._start = time.monotonic()

    @property
    def total_secs(self) -> float:
        """Seconds since the stopwatch was created."""
        return time.monotonic() - self._start

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.secs[name] += time.monotonic() - start

"""Looks from time to time whether a worker has been fenced off by a launch with --extend."""

import time

from job.output.parts.fence import is_fenced_off
from job.run.preparation import Prepared


class FenceWatch:
    """Whether what a worker of this launch finishes counts no more."""

    def __init__(self, prepared: Prepared, secs: float) -> None:
        """Look when this is asked, but not more often than every ``secs`` seconds."""
        self._prepared, self._secs = prepared, secs
        self._last_look, self._is_up = time.monotonic(), False

    @property
    def is_up(self) -> bool:
        """As it was at the last look."""
        return self.look() if time.monotonic() - self._last_look >= self._secs else self._is_up

    def look(self) -> bool:
        """Look now."""
        self._last_look = time.monotonic()
        self._is_up |= is_fenced_off(self._prepared.directory.store, self._prepared.manifest.growth)
        return self._is_up

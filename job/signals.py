"""A request to stop, as a flag. Signals only set it; the leader acts on it between two tokens (law 1)."""

import signal
import threading
from types import FrameType


class StopFlag:
    """Set by SIGTERM, SIGUSR1 (Slurm's ``--signal``) and SIGINT (Ctrl-C). A second signal changes nothing."""

    def __init__(self) -> None:
        """Make a flag that nothing sets yet."""
        self.signal_name: str | None = None
        self._event = threading.Event()

    def install(self) -> None:
        """Let the signals set the flag."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    def wait(self, secs: float) -> bool:
        """Sleep, but no longer than until a stop is requested."""
        return self._event.wait(secs)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name
        self._event.set()

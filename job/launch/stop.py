"""A request to stop, as a flag. Signals only set it; the leader acts on it between two tokens (law 1)."""

import signal
import time
from types import FrameType


class StopFlag:
    """Set by SIGTERM, SIGUSR1 (Slurm's ``--signal``) and SIGINT (Ctrl-C). A second one changes nothing, but for
    Ctrl-C: then the process ends at once, as after a kill."""

    def __init__(self) -> None:
        """Make a flag that nothing sets yet."""
        self.signal_name: str | None = None
        self.last_asked = time.monotonic()
        """When somebody last asked: the loop and the engines do so before every token. See ``Watchdog``."""

    def request(self, name: str) -> None:
        """Set the flag; ``name`` says why, if it is the first reason."""
        self.signal_name = self.signal_name or name

    def install(self) -> None:
        """Let the signals set the flag."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        self.last_asked = time.monotonic()
        return self.signal_name is not None

    def wait(self, secs: float) -> bool:
        """Sleep, but no longer than until a stop is requested."""
        end = time.monotonic() + secs
        while not self() and time.monotonic() < end:
            time.sleep(min(0.1, secs))  # no threading.Event: setting one in a handler can deadlock with its wait
        return self()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self():
            raise KeyboardInterrupt  # a second Ctrl-C: the user will not wait
        self.request(signal.Signals(number).name)

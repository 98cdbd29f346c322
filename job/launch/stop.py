"""A request to stop. Until the work begins, it ends the process immediately. After that it sets a flag, which the
leader checks between two tokens (law 1).

Before the first row there is nothing to save: no shard is claimed, and anything that a conversion or a claim of the run
directory leaves half-written is ignored or removed by the next launch. Waiting would use up the time that Slurm gives
before it kills the process.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import ClassVar, NoReturn

from job.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What the launchers, Slurm's ``--signal``, and Ctrl-C send."""

BEFORE_WORK = " before the first row. Nothing is lost; run the same command again"


class StopFlag:
    """A flag set by signals. A second signal changes nothing, except Ctrl-C: then the process ends as after a kill."""

    _writing: ClassVar[socket.socket | None] = None
    """What signals are written to, of the flag that was installed last."""

    def __init__(self, *, speaks: bool = True, ending: str = BEFORE_WORK) -> None:
        """Make a flag that is not set. Signals reach it only after ``install``.

        Args:
            speaks: whether this process prints a message when it ends immediately. One process of a launch does.
            ending: the end of that message, after the name of the signal.
        """
        self.signal_name: str | None = None
        self.announce: Callable[[str], None] = lambda name: None
        """Notifies the other processes of the launch. See ``peers``."""
        self.farewell: Callable[[str], None] = lambda name: None
        """Called with the name of the signal before the process ends immediately. See ``run.ending``."""
        self.on_stall: Callable[[str], None] = lambda reason: None
        """Called with the reason before the watchdog ends the process."""
        self._speaks, self._ending = speaks, ending
        self._is_installed = self._ends_at_once = False
        self._was_signalled = False
        # Reentrant: a handler may interrupt the main thread while it holds this.
        self._lock = threading.RLock()

    def request(self, name: str) -> None:
        """Set the flag, or end the process if the work has not begun. The first ``name`` is kept as the reason."""
        with self._lock:
            if self._ends_at_once:
                self._leave(name)
            self.signal_name = self.signal_name or name

    def install(self) -> None:
        """Make signals end the process, until ``begin_work``."""
        self._is_installed = self._ends_at_once = True
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # Python runs handlers between two instructions of the main thread, which may be waiting in C for minutes, for
        # the other processes to join or for rank 0 to convert a dataset. This file descriptor is written immediately.
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        if StopFlag._writing is not None:  # of an earlier run in this process: its thread ends, and closes its own end
            StopFlag._writing.close()
        StopFlag._writing = writing  # the interpreter has only its number
        threading.Thread(target=self._listen, args=(reading,), name="signals", daemon=True).start()

    @contextlib.contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Make signals set the flag in here, without ever ending the process. Only in the main thread."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def is_installed(self) -> bool:
        """Whether this process's signals are its own: it is a command, not a program that runs one."""
        return self._is_installed

    def begin_work(self) -> None:
        """From now on, make signals set the flag."""
        with self._lock:
            self._ends_at_once = False

    def end_work(self) -> None:
        """From now on, until work begins again, let signals have the effect that they had before it began."""
        with self._lock:
            self._ends_at_once = self._is_installed

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self.signal_name is not None

    def wait(self, secs: float) -> bool:
        """Sleep for ``secs``, or until a stop is requested. True if one was."""
        end = time.monotonic() + secs
        while not self() and time.monotonic() < end:
            time.sleep(min(0.1, secs))  # no threading.Event: setting one in a handler can deadlock with its wait
        return self()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Counts only this process's own signals: after the first Ctrl-C, a peer's notice may arrive before the handler.
        if number == signal.SIGINT and self._was_signalled:
            raise KeyboardInterrupt  # a second Ctrl-C: the user does not want to wait
        self._was_signalled = True
        self.request(signal.Signals(number).name)

    def _listen(self, reading: socket.socket) -> None:
        """Act on signals while the main thread cannot."""
        with reading:
            while numbers := reading.recv(64):
                for number in filter(SIGNALS.__contains__, numbers):
                    name = signal.Signals(number).name
                    self.request(name)
                    self.announce(name)

    def _leave(self, name: str) -> NoReturn:
        try:
            self.announce(name)
            if self._speaks:
                line = f"job: stopped on {name}{self._ending}.\n"
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
            self.farewell(name)
        finally:
            os._exit(EXIT_STOPPED)

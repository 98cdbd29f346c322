"""Notifies the other processes of a launch that one of them was asked to stop.

A signal may reach only one process. If that one exits immediately, the others wait for it in a collective, or lose its
connection without knowing why. So it leaves a notice in the store through which they found each other, where a thread
of each process waits for it.
"""

import contextlib
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

from job.launch.environment import ProcessInfo
from job.launch.rendezvous import ATTEMPT, CONNECT_SECS, NUM_JOINED, connect, hosts_store
from job.launch.stop import StopFlag

REASON, NUM_LEFT, ENDED = (f"job/{name}/{ATTEMPT}" for name in ("stop", "num_left", "ended"))

FOREVER = timedelta(days=3650)

NOTICE_SECS = 1.0
"""How long a notice may take to reach the others."""


class Peers:
    """The other processes of the launch, seen from one of them."""

    def __init__(self, info: ProcessInfo, stop: StopFlag) -> None:
        """Wait for the others' notice in a thread, and let ``stop`` send one. The store must exist already.

        Raises:
            RuntimeError: the store of the launch cannot be reached.
        """
        self._stop = stop
        self._hosts_store = hosts_store(info)  # it ends with this process
        # Two connections: on a shared one, the wait in one thread would block the other.
        self._store, listening = (connect(info, CONNECT_SECS) for _ in range(2))
        self._heard = threading.Event()
        stop.announce = self._announce
        threading.Thread(target=self._listen, args=(listening,), name="peers", daemon=True).start()

    def were_stopped(self) -> bool:
        """Whether one of them was asked to stop. To be called after a connection was lost."""
        return self._heard.wait(NOTICE_SECS)

    def say_ended(self) -> None:
        """Let the others know that this process, which reports the end of the launch, has done so."""
        with contextlib.suppress(RuntimeError):
            self._store.set(ENDED, "1")

    def wait_for_report(self, secs: float) -> None:
        """Wait until the process that reports the end of the launch has done so, or is dead: launchers stop all
        processes as soon as one ends with an exit code other than 0."""
        with contextlib.suppress(RuntimeError):
            self._store.wait([ENDED], timedelta(seconds=secs))

    def _announce(self, name: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store is closed, so the launch has ended
            self._store.set(REASON, name)
            num_left, num_joined = self._store.add(NUM_LEFT, 1), self._store.add(NUM_JOINED, 0)
            end = time.monotonic() + NOTICE_SECS
            while self._hosts_store and num_left < num_joined and time.monotonic() < end:
                time.sleep(0.01)
                num_left = self._store.add(NUM_LEFT, 0)

    def _listen(self, store: TCPStore) -> None:
        try:
            store.wait([REASON], FOREVER)
            name = store.get(REASON).decode()
        except RuntimeError:  # the store is closed
            return
        self._heard.set()
        self._stop.request(name)

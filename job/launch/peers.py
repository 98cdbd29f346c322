"""Tells the other processes of a launch that one of them was asked to stop.

A signal may reach one process alone. If it ends at once, the others wait for it in a collective, or lose its connection
and cannot know why; so it leaves a word in the store through which they found each other, where a thread of each waits.
"""

import contextlib
import os
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

from job.launch.environment import ProcessInfo
from job.launch.stop import StopFlag

REASON, NUM_LEFT = "job/stop", "job/num_left"

FOREVER = timedelta(days=3650)

NOTICE_SECS = 1.0
"""How long a word may take to reach the others."""


class Peers:
    """The other processes of the launch, seen from one of them."""

    def __init__(self, info: ProcessInfo, stop: StopFlag) -> None:
        """Wait for the others' word in a thread, and let ``stop`` tell them. They have all found each other.

        Raises:
            RuntimeError: the store of the launch cannot be reached.
        """
        self._world_size, self._stop = info.world_size, stop
        # Of torchrun's agent, where that says so; else rank 0 has the store, and it ends with it.
        self._hosts_store = info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # Connections of their own: a wait in one thread would hold up the others.
        self._store, listening = (
            TCPStore(info.master_addr, info.master_port, is_master=False, wait_for_workers=False) for _ in range(2)
        )
        self._heard = threading.Event()
        stop.announce = self._announce
        threading.Thread(target=self._listen, args=(listening,), name="peers", daemon=True).start()

    def were_stopped(self) -> bool:
        """Whether one of them was asked to stop. For a process that has just lost its connection."""
        return self._heard.wait(NOTICE_SECS)

    def _announce(self, name: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store has ended: so has the launch
            self._store.set(REASON, name)
            num_left = self._store.add(NUM_LEFT, 1)
            end = time.monotonic() + NOTICE_SECS
            while self._hosts_store and num_left < self._world_size and time.monotonic() < end:
                time.sleep(0.01)
                num_left = self._store.add(NUM_LEFT, 0)

    def _listen(self, store: TCPStore) -> None:
        try:
            store.wait([REASON], FOREVER)
            name = store.get(REASON).decode()
        except RuntimeError:  # the store has ended
            return
        self._heard.set()
        self._stop.request(name)

"""How the processes of a launch find each other: rank 0 hosts a store, in which each of them signs in.

Torch's own rendezvous waits in C, for half an hour, and does not say for whom. A single process is alone with the
variables of a launch more often than one would think: in an interactive shell of ``srun --pty``, or in a container
whose image sets RANK and WORLD_SIZE.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

from job.errors import JobError, first_line
from job.launch.environment import ProcessInfo

ATTEMPT = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
"""torchrun may start the processes again with the same store, which still holds the keys of the last ones."""

NUM_JOINED = f"job/{ATTEMPT}/num_joined"

JOIN_SECS = 600.0
"""How long the processes of a launch wait for each other. The first imports from a cold network disk take minutes."""

CONNECT_SECS = 60.0
TELL_SECS = 10.0
TELL_AGAIN_SECS = 60.0
POLL_SECS = 0.05
MAX_POLLS_PER_SEC = 2000
"""By all processes together: one thread of rank 0 answers them."""

USED_SECS = 1800.0
"""How long torch may wait for a key once all have joined: processes may load their parts of a model at other speeds."""


def connect(info: ProcessInfo, timeout_secs: float, *, hosts: bool = False) -> TCPStore:
    """Connect to the launch's store; ``hosts``: as its host.

    Raises:
        RuntimeError: it cannot be reached, or the port is taken.
    """
    return TCPStore(
        info.master_addr,
        info.master_port,
        is_master=hosts,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_secs),
    )


def hosts_store(info: ProcessInfo) -> bool:
    """Whether this process hosts the store. It is torchrun's agent's if the agent says so, otherwise rank 0's."""
    return info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


class Rendezvous:
    """One process's way into its launch: ``sign_in``, then ``wait_for_all``."""

    def __init__(self, info: ProcessInfo, note: Callable[[str], None]) -> None:
        """Know which process this is, and how to tell the user what it waits for."""
        self._info, self._note = info, note
        self._start = self._last_told = time.monotonic()
        self._poll_secs = max(POLL_SECS, info.world_size / MAX_POLLS_PER_SEC)

    def sign_in(self) -> TCPStore:
        """Find the store of the launch and leave this process's mark in it.

        Raises:
            JobError: rank 0 cannot be reached, or another launch uses its port.
        """
        self._store = self._find_store()
        own = uuid.uuid4().hex
        marks = {f"job/{ATTEMPT}/world_size": str(self._info.world_size), _mark(self._info.rank): own}
        for key, value in marks.items():
            if self._store.compare_set(key, "", value) != value.encode():
                raise JobError(f"rank {self._info.rank}: {self._port_is_taken()}")
        self._store.add(NUM_JOINED, 1)
        return self._store

    def wait_for_all(self) -> PrefixStore:
        """Wait until every process has signed in, and return the store for torch's process groups.

        Raises:
            JobError: some did not come.
        """
        while (num_joined := self._num_joined()) < self._info.world_size:
            if self._info.speaks and self._is_time_to_tell():
                self._note(f"waiting for {self._missing(num_joined)}")
            if self._elapsed() > JOIN_SECS + (0 if self._info.speaks else 5):  # rank 0 first: it says who is missing
                raise JobError(
                    f"rank {self._info.rank}: gave up after {JOIN_SECS / 60:.0f} minutes without "
                    f"{self._missing(num_joined)}"
                )
            time.sleep(self._poll_secs)
        self._store.set_timeout(timedelta(seconds=USED_SECS))
        return PrefixStore(f"job/{ATTEMPT}/torch", self._store)

    def _find_store(self) -> TCPStore:
        if hosts_store(self._info):
            try:
                return connect(self._info, CONNECT_SECS, hosts=True)
            except RuntimeError as error:
                in_use = "in use" in str(error)
                raise JobError(self._port_is_taken() if in_use else self._unreachable(error)) from None
        address = (self._info.master_addr, self._info.master_port)
        while True:
            try:
                socket.create_connection(address, timeout=TELL_SECS).close()  # quietly: torch logs each attempt
                return connect(self._info, CONNECT_SECS)
            except (OSError, RuntimeError) as error:
                if self._elapsed() > JOIN_SECS:
                    raise JobError(self._unreachable(error)) from None
            if self._is_time_to_tell():
                self._note(f"rank {self._info.rank} is waiting for rank 0 at {_place(self._info)}. {self._remedy()}")
            time.sleep(self._poll_secs)

    def _num_joined(self) -> int:
        try:
            return int(self._store.add(NUM_JOINED, 0))
        except RuntimeError:
            raise JobError(f"rank {self._info.rank}: rank 0 left before all processes had joined.") from None

    def _missing(self, num_joined: int) -> str:
        """Describe who is missing, and what the user may have meant."""
        size = self._info.world_size
        ranks = [rank for rank in range(size) if not self._store.check([_mark(rank)])]
        named = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        return (
            f"{size - num_joined} of {size} processes (rank{'s' if len(ranks) > 1 else ''} {named}). {self._remedy()}"
        )

    def _remedy(self) -> str:
        launcher = self._info.launcher
        return (
            f"Were all {self._info.world_size} started? {launcher.start_all} For a single process, unset "
            f"{' and '.join(launcher.recognized_by[:2])}."
        )

    def _port_is_taken(self) -> str:
        return (
            f"port {self._info.master_port} of {self._info.master_addr} is in use, perhaps by another launch. Choose "
            f"another one with {self._info.launcher.port_option}."
        )

    def _unreachable(self, error: Exception) -> str:
        where = _place(self._info)
        return f"rank {self._info.rank}: cannot join rank 0 at {where}: {first_line(error)}. {self._remedy()}"

    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _is_time_to_tell(self) -> bool:
        """Whether the user should hear what this process waits for: soon, then every minute.

        If rank 0 is late, only a few of the others say so soon.
        """
        soon = self._info.rank <= 1 or self._info.local_rank == 0
        now, told_before = time.monotonic(), self._last_told > self._start
        if now - self._last_told < (TELL_SECS if soon and not told_before else TELL_AGAIN_SECS):
            return False
        self._last_told = now
        return True


def _place(info: ProcessInfo) -> str:
    return f"{info.master_addr}:{info.master_port}"


def _mark(rank: int) -> str:
    return f"job/{ATTEMPT}/rank/{rank}"

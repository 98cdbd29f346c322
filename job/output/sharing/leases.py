"""Leases: who works on which shard or slice of one, on any shared file system, without a server.

A lease is a file. Creating it claims the shard, touching it says that its holder lives, removing it gives the shard
back. A lease whose holder is silent for too long is taken over by renaming it away: of many who try, one succeeds.
Ages are differences of two times that the file system itself stamped, since the clocks of nodes differ.

Leases save work; they do not protect data. Two workers on one shard (a cut network, a paused process) write the same
rows under names of their own, and the last rename wins with the same content.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from job.launch.processes import start_time_of
from job.output.store.local import UnlessGone, create_exclusively, link
from job.output.store.paths import RunPaths

STALE_SECS = 60.0
"""Silence after which a lease may be taken over. Heartbeats come 12 times as often."""

UNKNOWN = "unknown"
"""The namespace where there is no /proc: nobody can tell there whether a process runs, only silence can."""


@dataclass(frozen=True, slots=True)
class WorkerId:
    """One replica's leader: unique over nodes, restarts and time."""

    host: str
    pid: int
    start_time: str
    """Of the process, as the kernel counts it: tells it from a later process with the same number."""
    namespace: str
    """Of process ids. Two containers on one host may both have a process 7."""
    nonce: str
    """Random: two machines cloned from one image may agree in all of the above."""

    @classmethod
    def of_this_process(cls) -> "WorkerId":
        """Describe the process that calls."""
        return cls(
            socket.gethostname(), os.getpid(), start_time_of(os.getpid()) or "0", _pid_namespace(), secrets.token_hex(3)
        )

    @classmethod
    def from_json(cls, content: bytes) -> "WorkerId | None":
        """Read what a lease says; None if it says nothing."""
        try:
            worker = cls(**json.loads(content))
            hash(worker)
            return worker
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        host = "".join(c if c.isalnum() else "-" for c in self.host)
        return f"{host}-{self.pid}-{self.nonce}"

    def is_dead(self) -> bool:
        """Whether that process certainly runs no more. Only a process of the same host and namespace can tell."""
        here = socket.gethostname(), _pid_namespace()
        if self.namespace == UNKNOWN or (self.host, self.namespace) != here:
            return False
        found = start_time_of(self.pid)
        if found is None:
            return True
        # A later process has the number. Only if both are ticks: what another version has written in another form, or
        # what may not be seen, proves nothing, and then silence decides.
        return found.isdecimal() and self.start_time.isdecimal() and found != self.start_time


class Leases:
    """The shards that this worker holds, kept alive by a thread."""

    def __init__(
        self, paths: RunPaths, worker: WorkerId, *, stale_secs: float = STALE_SECS, beat_secs: float | None = None
    ) -> None:
        """Start the heartbeat.

        Args:
            stale_secs: silence after which a lease may be taken over.
            beat_secs: time between two heartbeats; several must fit into ``stale_secs``.
        """
        self._paths, self._worker = paths, worker
        self._stale_secs, self._beat_secs = stale_secs, stale_secs / 12 if beat_secs is None else beat_secs
        self._held: set[Path] = set()
        self._clock = paths.clock(str(worker))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        self._thread.start()

    def acquire(self, shard_idx: int, slice_idx: int | None = None) -> bool:
        """Try to claim a shard, or a slice of one, taking over the lease of a dead worker. True if it is ours now."""
        lease = self._paths.lease(shard_idx, slice_idx)
        if lease.exists() and not self._clear_if_dead(lease):
            return False
        if not self._create(lease):  # another was faster
            return False
        self._held.add(lease)
        return True

    def release(self, shard_idx: int, slice_idx: int | None = None) -> None:
        """Give a shard or a slice back."""
        self._release(self._paths.lease(shard_idx, slice_idx))

    def _release(self, lease: Path) -> None:
        self._held.discard(lease)
        if read_holder(lease) == self._worker:
            lease.unlink(missing_ok=True)

    def close(self) -> None:
        """Give everything back and stop the heartbeat."""
        self._stopped.set()
        self._thread.join()
        for lease in list(self._held):
            self._release(lease)
        self._clock.unlink(missing_ok=True)

    def _create(self, lease: Path) -> bool:
        record = {name: getattr(self._worker, name) for name in WorkerId.__slots__}
        return create_exclusively(lease, json.dumps(record).encode(), str(self._worker), durable=False)

    def _clear_if_dead(self, lease: Path) -> bool:
        """Rename a dead worker's lease away. False if the holder lives, or another was faster."""
        holder = read_holder(lease)
        with UnlessGone():  # given back meanwhile: free to claim
            silent_secs = self._now() - lease.stat().st_mtime
            is_dead = holder is not None and holder.is_dead()
            if not is_dead and silent_secs < self._stale_secs:  # one that cannot be read is perhaps being written
                return False
            aside = self._paths.lease_aside(lease, str(self._worker))
            lease.rename(aside)
            is_same = read_holder(aside) == holder
            if not is_same:  # somebody took it over between our look and our rename: put it back
                with contextlib.suppress(FileExistsError):
                    link(aside, lease)
            aside.unlink()
            return is_same
        return True

    def _now(self) -> float:
        """Return the file system's time in seconds: utime without values lets the server stamp it."""
        self._clock.touch()
        return self._clock.stat().st_mtime

    def _beat(self) -> None:
        while not self._stopped.wait(self._beat_secs):
            for lease in list(self._held):
                with contextlib.suppress(OSError):  # gone: taken over. Full or away: the main thread meets it too.
                    os.utime(lease)


def read_holder(lease: Path) -> WorkerId | None:
    """Return who holds a lease; None if it is gone or cannot be read."""
    with UnlessGone():
        return WorkerId.from_json(lease.read_bytes())
    return None


def _pid_namespace() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot_id.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return UNKNOWN

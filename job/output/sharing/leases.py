"""Leases: which worker works on which shard or slice, in any shared directory, without a server.

A lease is an object. Creating it claims the shard, touching it shows that its holder is alive, removing it gives the
shard back. If the holder is dead, or silent for too long, a worker that wants the shard removes the lease, unless it
belongs to another worker by then. An age is the difference between two times that the store itself stamped, since the
clocks of nodes differ.

Leases save work; they do not protect data. Two workers on one shard (a cut network, a paused process) write the same
rows to files of their own, and the last one to rename its part wins, with the same content.
"""

import contextlib
import threading
from collections.abc import Callable

from job.errors import JobError
from job.output.sharing.settings import LEASE_TIMEOUT_SECS
from job.output.sharing.worker import WorkerId
from job.output.store.directory import RunDirectory
from job.output.store.store import Stamp, Store

MAX_BEAT_SECS = 5.0
"""The longest time between heartbeats: a restart may shorten the timeout while workers still use the old one."""

MAX_JOIN_SECS = 2.0
"""How long the end of a worker waits for a heartbeat that the store does not answer."""

SILENT_BEATS = 3
"""The heartbeats without one after which the user is told about a worker that may be dead."""


class Leases:
    """The leases of this worker, kept alive by a thread."""

    def __init__(
        self,
        directory: RunDirectory,
        worker: WorkerId,
        *,
        timeout_secs: float = LEASE_TIMEOUT_SECS,
        beat_secs: float | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Start the heartbeat.

        Args:
            timeout_secs: silence after which a lease may be taken over.
            beat_secs: time between two heartbeats; several must fit into ``timeout_secs``.
            note: tells the user about holders that may be dead.
        """
        self._store, self._names, self._worker = directory.store, directory.names, worker
        self._timeout_secs = timeout_secs
        longest = max(MAX_BEAT_SECS, self._store.pause_secs / 3)
        self._beat_secs = min(longest, longest * timeout_secs / LEASE_TIMEOUT_SECS) if beat_secs is None else beat_secs
        self._silent_secs = SILENT_BEATS * longest
        self._note = note
        self._held: set[str] = set()
        self._silent: set[WorkerId] = set()
        """Workers that the user has been told about."""
        self._clock = directory.names.clock(str(worker))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        self._thread.start()

    def acquire(self, shard_idx: int, slice_idx: int | None = None) -> bool:
        """Try to claim a shard, or a slice of one, taking over the lease of a dead worker. True if it is ours."""
        return self.acquire_name(self._names.lease(shard_idx, slice_idx))

    def acquire_name(self, lease: str) -> bool:
        """Try to acquire the lease of this name. True if it is ours."""
        try:
            seen = self._store.look(lease)
        except FileNotFoundError:
            # Exclusively: other workers that saw none may be trying the same at this moment.
            is_ours = self._store.create_exclusively(lease, self._worker.to_json(), durable=False)
        else:
            # Another worker may have done the same since we looked, and left its own lease, which must stay.
            is_ours = self._is_dead(seen) and self._store.replace_if_same(lease, seen, self._worker.to_json())
        if is_ours:
            self._held.add(lease)
        return is_ours

    def release(self, shard_idx: int, slice_idx: int | None = None) -> None:
        """Give a shard or a slice back."""
        self.release_name(self._names.lease(shard_idx, slice_idx))

    def release_name(self, lease: str) -> None:
        """Give back the lease of this name."""
        self._held.discard(lease)
        # Another worker may have taken it over while this process was paused. If that happens between this check and
        # the deletion, two workers work on one shard, which is allowed.
        if read_holder(self._store, lease) == self._worker:
            self._store.delete(lease)

    def close(self) -> None:
        """Give everything back and stop the heartbeat."""
        self._stopped.set()
        self._thread.join(MAX_JOIN_SECS)
        for lease in list(self._held):
            self.release_name(lease)
        self._store.delete(self._clock)

    def _is_dead(self, seen: tuple[bytes, Stamp]) -> bool:
        """Whether a lease may be taken over."""
        content, stamp = seen
        silent_secs = self._now() - stamp.written
        holder = WorkerId.from_json(content)
        if (holder is not None and holder.is_dead()) or silent_secs >= self._timeout_secs:
            return True
        self._tell_if_silent(holder, silent_secs)  # an unreadable one may be half-written
        return False

    def _tell_if_silent(self, holder: WorkerId | None, silent_secs: float) -> None:
        """Tell the user why nothing happens: whether a worker on another host is dead, only time can show."""
        if holder is None or holder in self._silent or silent_secs < self._silent_secs:
            return
        self._silent.add(holder)
        self._note(
            f"process {holder.pid} on {holder.host} has been silent for {silent_secs:.0f} s: after "
            f"{self._timeout_secs:.0f} s it counts as dead, and its rows are taken over"
        )

    def _now(self) -> float:
        """Return the store's time. To ``job status``, a clock that keeps being touched means a live worker."""
        return self._store.touch(self._clock, create=True)

    def _beat(self) -> None:
        while not self._stopped.wait(self._beat_secs):
            for lease in list(self._held):
                # If it is missing, it was taken over. A full or unreachable store is trouble in the main thread, too.
                with contextlib.suppress(OSError, JobError):
                    self._store.touch(lease)


def read_holder(store: Store, lease: str) -> WorkerId | None:
    """Return the holder of a lease; None if the lease is missing or invalid."""
    with contextlib.suppress(FileNotFoundError):
        return WorkerId.from_json(store.read(lease))
    return None

"""The identity of a worker, one replica's leader: unique over nodes, containers, restarts and time."""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass

from job.launch.processes import UNKNOWN, pid_namespace, start_time_of


@dataclass(frozen=True, slots=True)
class WorkerId:
    """One replica's leader."""

    host: str
    pid: int
    start_time: str
    """As ``start_time_of`` returns it. Distinguishes the process from a later one with the same pid."""
    namespace: str
    """The namespace of the pid: two containers on one host may both have a process 7."""
    nonce: str
    """Random: two machines cloned from one image may agree in all of the above."""

    @classmethod
    def of_this_process(cls) -> "WorkerId":
        """Return the identity of the calling process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, start_time_of(pid) or "0", pid_namespace(), secrets.token_hex(3))

    @classmethod
    def from_json(cls, content: bytes) -> "WorkerId | None":
        """Read the contents of a lease; None if they are invalid."""
        try:
            worker = cls(**json.loads(content))
            hash(worker)
            return worker
        except (ValueError, TypeError):
            return None

    def to_json(self) -> bytes:
        """Return the contents of a lease."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        host = "".join(c if c.isalnum() else "-" for c in self.host)
        return f"{host}-{self.pid}-{self.nonce}"

    def is_dead(self) -> bool:
        """Whether that process is certainly dead, which only a process of the same host and namespace can know.

        In case of doubt the answer is False, and the lease timeout decides: a live worker that is taken for dead would
        lose its shard.
        """
        here = socket.gethostname(), pid_namespace()
        if self.namespace == UNKNOWN or (self.host, self.namespace) != here:
            return False
        found = start_time_of(self.pid)
        if found is None:
            return True
        # A later process may have the same pid. Start times are compared only if both are clock ticks: one that another
        # version wrote in another form, or that is hidden from us, proves nothing.
        return found.isdecimal() and str(self.start_time).isdecimal() and found != self.start_time

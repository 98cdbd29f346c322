"""Who works on a run: one replica's leader, told from every other over nodes, containers, restarts and time."""

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
    """Of the process, as ``start_time_of`` gives it: tells it from a later process with the same number."""
    namespace: str
    """Of process ids. Two containers on one host may both have a process 7."""
    nonce: str
    """Random: two machines cloned from one image may agree in all of the above."""

    @classmethod
    def of_this_process(cls) -> "WorkerId":
        """Describe the process that calls."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, start_time_of(pid) or "0", pid_namespace(), secrets.token_hex(3))

    @classmethod
    def from_json(cls, content: bytes) -> "WorkerId | None":
        """Read what a lease says; None if it says nothing."""
        try:
            worker = cls(**json.loads(content))
            hash(worker)
            return worker
        except (ValueError, TypeError):
            return None

    def to_json(self) -> bytes:
        """Return what a lease says."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        host = "".join(c if c.isalnum() else "-" for c in self.host)
        return f"{host}-{self.pid}-{self.nonce}"

    def is_dead(self) -> bool:
        """Whether that process certainly runs no longer. Only a process of the same host and namespace can say so.

        Whoever is in doubt says False: then silence decides. A living worker that is taken for dead loses its shard.
        """
        here = socket.gethostname(), pid_namespace()
        if self.namespace == UNKNOWN or (self.host, self.namespace) != here:
            return False
        found = start_time_of(self.pid)
        if found is None:
            return True
        # A later process may have the number. Two start times differ only if both are clock ticks: one that another
        # version has written in another form, or that may not be seen, proves nothing.
        return found.isdecimal() and str(self.start_time).isdecimal() and found != self.start_time

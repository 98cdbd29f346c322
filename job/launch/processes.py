"""What the kernel says of processes. Knows nothing where there is no /proc."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process that runs."""

    parent: int
    start_time: str
    """In clock ticks since boot: tells it from a later process with the same number."""


def status_of(pid: int) -> ProcessStatus | None:
    """Return the status of a process; None if there is none (proc(5), /proc/pid/stat, fields 3, 4 and 22).

    One that has ended and that its parent has not asked about (a zombie, as in containers whose first process reaps
    none) is none.
    """
    try:
        state, parent, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else ProcessStatus(int(parent), fields[17])


def start_time_of(pid: int) -> str | None:
    """Return when a process started; None if there is none."""
    status = status_of(pid)
    return None if status is None else status.start_time

"""What the operating system says of other processes, by psutil. Whether one still runs, and who started it."""

import contextlib
import os

import psutil

HIDDEN = ""
"""The start time of a process that runs, but of which this user may learn nothing (``hidepid`` on shared nodes)."""


def start_time_of(pid: int) -> str | None:
    """Return when a process started: tells it from a later process with the same number. None if it does not run.

    A zombie, whose parent has not asked about it (as in containers whose first process reaps none), does not run.

    In clock ticks since boot on Linux, as /proc/pid/stat has it, and not as a time of day: when the clock of the
    machine is set, ``create_time()`` of a process moves with it, and a living process would look like another one.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        boot_time = psutil.boot_time() if psutil.LINUX else 0.0  # first: older psutil keep it for create_time()
        return str(round((process.create_time() - boot_time) * os.sysconf("SC_CLK_TCK")))
    except psutil.AccessDenied:
        return HIDDEN
    except psutil.NoSuchProcess:
        return HIDDEN if _is_hidden(pid) else None


def parent_of(pid: int) -> int | None:
    """Return the process that started this one, or adopted it. None if it does not run."""
    try:
        parent: int = psutil.Process(pid).ppid()
    except psutil.Error:
        return None
    return parent


def command_of(pid: int) -> list[str]:
    """Return the command line of a process. Empty if it does not run, or may not be seen."""
    with contextlib.suppress(psutil.Error):
        argv: list[str] = psutil.Process(pid).cmdline()
        return argv
    return []


def _is_hidden(pid: int) -> bool:
    """Whether another user's process has this number, though no file in /proc shows it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False

"""What the operating system says about other processes, through psutil: whether one still runs, and its parent."""

import contextlib
import os
from pathlib import Path

import psutil

HIDDEN = ""
"""The start time of a process that is running but hidden from this user (``hidepid`` on shared nodes)."""

UNKNOWN = "unknown"
"""The namespace on systems without /proc. There, only silence can show that a process has died."""


def start_time_of(pid: int) -> str | None:
    """Return when a process started, to distinguish it from a later one with the same pid. None if it is not running.

    A zombie, which its parent has not reaped (as in containers whose first process reaps none), is not running.

    On Linux, the time is in clock ticks since boot, as in /proc/pid/stat, and not a time of day: when the machine's
    clock is set, a process's ``create_time()`` moves with it, and a live process would look like a different one.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        boot_time = psutil.boot_time() if psutil.LINUX else 0.0  # first: older psutil cache it for create_time()
        return str(round((process.create_time() - boot_time) * os.sysconf("SC_CLK_TCK")))
    except psutil.AccessDenied:
        return HIDDEN
    except psutil.NoSuchProcess:
        return HIDDEN if _is_hidden(pid) else None


def parent_of(pid: int) -> int | None:
    """Return the pid of the process that started or adopted this one. None if it is not running."""
    try:
        parent: int = psutil.Process(pid).ppid()
    except psutil.Error:
        return None
    return parent


def command_of(pid: int) -> list[str]:
    """Return the command line of a process. Empty if it is not running or is hidden."""
    with contextlib.suppress(psutil.Error):
        argv: list[str] = psutil.Process(pid).cmdline()
        return argv
    return []


def pid_namespace() -> str:
    """Return the namespace of this process's pid, which differs between containers and between boots."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot_id.read_text(encoding='utf-8').strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return UNKNOWN


def _is_hidden(pid: int) -> bool:
    """Whether another user's process has this number, though no file in /proc shows it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False

"""Notices the death of the launcher, so that no process of a launch outlives it.

``deepspeed`` dies of SIGTERM immediately and leaves behind the process that it started, with all workers; a killed
``torchrun`` leaves behind its workers. They would go on holding the GPUs, unnoticed. Only known launchers are watched:
under ``nohup`` or ``setsid``, a process is meant to outlive its parent.
"""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from job.launch.launchers import LAUNCHERS
from job.launch.processes import command_of, parent_of, start_time_of

PROGRAMS = frozenset(program for launcher in LAUNCHERS for program in launcher.programs)
PACKAGES = tuple(f"{package}." for launcher in LAUNCHERS for package in launcher.packages)

MAX_GENERATIONS = 2
"""``deepspeed`` starts ``deepspeed.launcher.launch``, which starts the workers."""


def launchers_above(pid: int) -> list[tuple[int, str]]:
    """Return (pid, start time) of the launchers that this process descends from, the nearest first."""
    found: list[tuple[int, str]] = []
    while len(found) < MAX_GENERATIONS and (parent := parent_of(pid)) is not None:
        pid = parent
        start_time = start_time_of(pid)
        if start_time is None or not is_launcher(command_of(pid)):
            break
        found.append((pid, start_time))
    return found


def is_launcher(argv: Sequence[str]) -> bool:
    """Whether a command line starts a launcher: as the executable, as an interpreter's script, or as a module.

    >>> is_launcher(["python", "-u", "/usr/bin/torchrun", "a.py"]), is_launcher(["slurmstepd: [7.0]"])
    (True, True)
    >>> is_launcher(["python", "-m", "torch.distributed.run"]), is_launcher(["bash", "deepspeed-eval.sh", "deepspeed"])
    (True, False)
    """
    program, *words = argv or [""]
    if Path(program).name.partition(":")[0] in PROGRAMS:
        return True
    for word, following in pairwise([*words, ""]):
        if word == "-m":
            return f"{following}.".startswith(PACKAGES)
        if not word.startswith("-"):
            return Path(word).name in PROGRAMS
    return False


def watch(launchers: Sequence[tuple[int, str]], tell: Callable[[], None], *, every_secs: float = 1.0) -> None:
    """Call ``tell`` from a separate thread as soon as one of the launchers has exited."""
    if launchers:
        threading.Thread(target=_watch, args=(launchers, tell, every_secs), name="launcher-watch", daemon=True).start()


def _watch(launchers: Sequence[tuple[int, str]], tell: Callable[[], None], every_secs: float) -> None:
    pause = threading.Event()
    while all(start_time_of(pid) == start_time for pid, start_time in launchers):
        pause.wait(every_secs)
    tell()

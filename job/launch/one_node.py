"""Starts the processes of one node through DeepSpeed's launcher, and passes on signals and exit codes.

``deepspeed`` imports DeepSpeed and starts ``deepspeed.launcher.launch``, which starts one process per GPU. The former
dies of a signal at once and the latter passes it on to one process after another, so the latter is started here
directly, and signals go to the processes themselves.
"""

import base64
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from job.errors import EXIT_DONE, EXIT_FAILED, EXIT_LIMIT, EXIT_STOPPED, EXIT_TOO_MANY_ERRORS, EXIT_USAGE
from job.launch.stop import SIGNALS

POLL_SECS = 0.2
PR_SET_PDEATHSIG = 1

JOB = (sys.executable, "-P", "-m", "job")
"""``-P``: a file ``job.py`` in the working directory must not run in place of this program."""


def start_on_this_node(gpus: Sequence[str], num_processes: int, words: Sequence[str]) -> int:
    """Run a command in several processes of this node. Returns its exit code.

    Args:
        words: what follows ``job`` in the command.
        gpus: one for each process, as in CUDA_VISIBLE_DEVICES; empty: they compute on the CPU.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(gpus) or list(range(num_processes))}).encode())
    launcher = [sys.executable, "-P", "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world.decode()}"]
    launcher += [f"--master_port={_free_port()}", "--log_level=critical", "--no_python", "--no_local_rank"]
    env = {**os.environ, "DS_ACCELERATOR": "cuda" if gpus else "cpu"}
    return _Launch([*launcher, *JOB, *words], env).wait()


class _Launch:
    """The launcher's process, and those that it has started."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self._signals: list[int] = []
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # A session of its own: Ctrl-C on the terminal comes here alone and is passed on once.
        self._launcher = subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=_die_with_parent)

    def wait(self) -> int:
        """Pass on signals until the launcher has ended, and return what ``job run`` would have."""
        num_passed = 0
        while (code := self._launcher.poll()) is None:
            if len(self._signals) > num_passed:
                num_passed += 1
                self._pass_on(self._signals[num_passed - 1])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(POLL_SECS)
        return _exit_code(code, was_stopped=bool(self._signals))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _pass_on(self, number: int) -> None:
        processes = psutil.Process(self._launcher.pid).children()
        if not processes:  # it has not started any yet, and will not
            self._launcher.kill()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _die_with_parent() -> None:
    """Let the kernel end the launcher if this program is killed; its processes notice that and stop."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_code(code: int, *, was_stopped: bool) -> int:
    """Return what ``job run`` means by the launcher's exit code: that of the first process that did not end with 0.

    >>> [_exit_code(code, was_stopped=False) for code in (0, 3, 4, 75, 247, -9)]
    [0, 3, 4, 75, 1, 1]
    """
    if code in (EXIT_DONE, EXIT_USAGE, EXIT_TOO_MANY_ERRORS, EXIT_LIMIT):
        return code
    # Asked to stop, a process that has no handler yet dies of the signal.
    return EXIT_STOPPED if code == EXIT_STOPPED or was_stopped else EXIT_FAILED


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

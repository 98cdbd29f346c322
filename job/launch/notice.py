"""Sends word of the end of a launch: to a command, through its standard input, or to a webhook, by POST.

Neither can fail the launch, nor hold it up for longer than it is given: a job that Slurm stops has some seconds left.
"""

import base64
import contextlib
import os
import re
import select
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from job.errors import UsageError, first_line
from job.launch.environment import EXPORTED

ATTEMPTS = 3
PAUSE_SECS = 1.0
"""Before the second attempt; twice that before the third."""

REQUEST_SECS = 15.0
"""How long a webhook may take to answer."""

KILL_SECS = 1.0
"""Between SIGTERM and SIGKILL, to a command that takes too long."""

POLL_SECS = 0.05

WRAPPER = 'exec 4<&0; { /bin/sh -c "$0" <&4 4<&- >&2; echo $?; } &'
"""Runs a command as an orphan, and prints its exit code: if one process of a launch fails, DeepSpeed's launcher sends
SIGTERM to the others with all that they have started, while this may just be telling of the failure."""

SIGNALLED = 128
"""What a shell adds to the number of the signal that a command died of."""

TRANSIENT = (408, 429)
"""HTTP codes below 500 that may go away."""

OF_LAUNCHERS = (*EXPORTED, "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID")
"""With these, a ``job`` that a command starts would take itself for a process of the launch."""

Left = Callable[[], float]
"""Returns how many seconds are left; a signal may shorten that."""


def check_command(command: str) -> None:
    """Refuse a command that is not one for a shell, such as one whose quotes do not close.

    Raises:
        UsageError: it is not.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        result = subprocess.run(
            ["/bin/sh", "-n", "-c", command], capture_output=True, text=True, timeout=10, check=False
        )
        if result.returncode:
            reason = first_line(RuntimeError(result.stderr)).rpartition(": ")[2] or "the shell refuses it"
            raise UsageError(f"--on-end is not a command that a shell understands: {reason}. Check its quotes.")


def missing_program(command: str) -> str | None:
    """Return the program of a command if it is certain that there is none. It may be there at the end.

    >>> missing_program("no-such-program --now"), missing_program("cd / && ls"), missing_program("X=1 $HOME/a")
    ('no-such-program', None, None)
    """
    word = command.split(maxsplit=1)[0]
    if re.fullmatch(r"[\w./+-]+", word) is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        test = ["/bin/sh", "-c", 'command -v -- "$0" >/dev/null', word]
        return word if subprocess.run(test, timeout=10, check=False).returncode else None
    return None


def run_command(command: str, document: str, env: Mapping[str, str], left: Left) -> str | None:
    """Run a shell command, whose output goes to standard error.

    Args:
        document: its standard input.
        env: variables that it gets beside those of this process.

    Returns:
        What went wrong, or None.
    """
    own = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    more: dict[str, str | bytes] = {name: value.encode() for name, value in env.items()}  # whatever the locale
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", WRAPPER, command.encode(errors="surrogateescape")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=2,
            env={**own, **more},
            start_new_session=True,  # a signal to the job's process group is not for it, and all of it can be ended
        )
    except OSError as error:
        return f"cannot be started: {error.strerror or error}"
    threading.Thread(target=_write, args=(process.stdin, document), name="on-end", daemon=True).start()
    try:
        code = _exit_code(process, left)
    except BaseException:  # a second Ctrl-C
        _end(process)
        raise
    if code is None:
        _end(process)
        return "took too long and was ended"
    if code > SIGNALLED:
        return f"died of {_name(code - SIGNALLED)}"
    return {0: None, 127: "was not found (exit code 127)"}.get(code, f"failed with exit code {code}")


def _exit_code(process: "subprocess.Popen[bytes]", left: Left) -> int | None:
    """Return the exit code that the wrapper prints, as a shell counts it; None if it does not in time."""
    assert process.stdout is not None
    poll = select.poll()  # unlike select, it takes the numbers of a process that has more than 1,024 files open
    poll.register(process.stdout)
    while (secs := left()) > 0:
        if poll.poll(1000 * min(POLL_SECS, secs)):
            text = process.stdout.readline()
            process.wait()
            return int(text) if text else SIGNALLED + signal.SIGKILL
    return None


def post(url: str, document: str, left: Left, version: str) -> str | None:
    """Send a JSON document to a webhook, up to three times.

    Returns:
        What went wrong, without the address, or None.
    """
    outcome: list[str | None] = []
    # In a thread: a name that cannot be resolved, or an answer that comes byte by byte, knows no time limit.
    thread = threading.Thread(
        target=_attempts, args=(url, document, left, version, outcome), name="on-end", daemon=True
    )
    thread.start()
    while thread.is_alive() and left() > 0:
        thread.join(POLL_SECS)
    return outcome[0] if outcome else "did not answer in time"


def host_of(url: str) -> str:
    """Return a webhook as it may be shown: the rest of its address is often a secret.

    >>> host_of("https://me:pw@host:8080/services/T0/B0/secret?token=1")
    'https://host:8080'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _write(stdin: Any, document: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a command need not read it
        stdin.write(document.encode())
        stdin.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a command with all that it has started."""
    end = time.monotonic() + KILL_SECS
    with contextlib.suppress(ProcessLookupError):  # once all of its group are dead
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < end:
            time.sleep(POLL_SECS)
            process.poll()
            os.killpg(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Python would follow with a GET, which carries nothing."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Let it be an error."""


def _attempts(url: str, document: str, left: Left, version: str, outcome: list[str | None]) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": f"job/{version}"}
    user, _, host = urlsplit(url).netloc.rpartition("@")
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        url = urlsplit(url)._replace(netloc=host).geturl()
    opener = urllib.request.build_opener(_NoRedirect)
    problem: str | None = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            request = urllib.request.Request(url, document.encode(), headers, method="POST")
            with opener.open(request, timeout=max(0.1, min(REQUEST_SECS, left()))):
                outcome.append(None)
                return
        except urllib.error.HTTPError as error:
            problem = f"answered {error.code}"
            if error.code < 500 and error.code not in TRANSIENT:
                break
        except (OSError, HTTPException, ValueError) as error:
            problem = f"cannot be reached: {_reason(error)}"
        pause = PAUSE_SECS * attempt
        if attempt == ATTEMPTS or left() <= pause:
            break
        time.sleep(pause)
    outcome.append(f"{problem} ({attempt} attempt{'s' if attempt > 1 else ''})")


def _reason(error: BaseException) -> str:
    """Return why a request failed, without the address: messages of libraries may have it."""
    inner = getattr(error, "reason", None)
    error = inner if isinstance(inner, OSError) else error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__

"""What this process is doing before its first row, and a line that says so whenever that takes long.

A dataset is converted, a lock waited for, or a model read from a slow disk, deep in libraries that say nothing. The
code that calls them names the activity; a thread says it. Once rows are computed, their progress takes over, and only
servers that do not answer are reported.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

FIRST_SECS = 10.0
MAX_PAUSE_SECS = 60.0


class _Activity:
    """What a process is doing. There is one, as a process does one thing before its first row."""

    def __init__(self) -> None:
        self.text = "starting"
        self.since = time.monotonic()
        self.failing: dict[str, tuple[str, float]] = {}
        """Servers that do not answer, with the reason, and since when."""
        self.lock = threading.Lock()


_current = _Activity()


def doing(what: str, progress: str = "") -> None:
    """Say what this process does from now on, such as ``reading the tokenizer``, and how far it is."""
    if not _current.text.startswith(what):
        _current.since = time.monotonic()
    _current.text = f"{what}: {progress}" if progress else what


def fails(server: str, reason: str) -> float:
    """Say that a server does not answer, in any thread. Returns for how many seconds it has not."""
    with _current.lock:
        now = time.monotonic()
        _, since = _current.failing.get(server, (reason, now))
        _current.failing[server] = reason, since
        return now - since


def answers(server: str) -> None:
    """Say that a server has answered."""
    with _current.lock:
        _current.failing.pop(server, None)


@contextlib.contextmanager
def telling_what_takes_long(
    note: Callable[[str], None], *, first_secs: float | None = None, only_servers: bool = False
) -> Iterator[None]:
    """Inside this context, print what the process is doing once that has taken 10 s, and then from time to time.

    Args:
        only_servers: print only which server does not answer.
    """
    over = threading.Event()
    args = (note, over, FIRST_SECS if first_secs is None else first_secs, only_servers)
    threading.Thread(target=_tell, args=args, name="activity", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _tell(note: Callable[[str], None], over: threading.Event, first_secs: float, only_servers: bool) -> None:
    look_secs = min(1.0, first_secs)
    next_line = time.monotonic() + first_secs
    while not over.wait(look_secs):
        now, failure = time.monotonic(), _longest_failure()
        text, since = failure or (_current.text, _current.since)
        if now < next_line or now - since < first_secs or (only_servers and failure is None):
            continue
        note(f"still {text} ({now - since:.0f} s)")
        next_line = now + (MAX_PAUSE_SECS if failure else min(MAX_PAUSE_SECS, max(first_secs, (now - since) / 3)))


def _longest_failure() -> tuple[str, float] | None:
    """Return the server that has not answered for the longest time, and since when."""
    with _current.lock:
        failing = [(since, f"waiting for {server}: {reason}") for server, (reason, since) in _current.failing.items()]
    since, text = min(failing, default=(0.0, ""))
    return (text, since) if text else None

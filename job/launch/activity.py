"""What this process is doing before its first row, and a line that says so whenever that takes long.

A dataset is converted, a lock waited for, or a model read from a slow disk, deep in libraries that say nothing. The
code that calls them names the activity; a thread says it. Once rows are computed, their progress takes over.
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


_current = _Activity()


def doing(what: str, progress: str = "") -> None:
    """Say what this process does from now on, such as ``reading the tokenizer``, and how far it is."""
    if not _current.text.startswith(what):
        _current.since = time.monotonic()
    _current.text = f"{what}: {progress}" if progress else what


@contextlib.contextmanager
def telling_what_takes_long(note: Callable[[str], None], *, first_secs: float | None = None) -> Iterator[None]:
    """Inside this context, print what the process is doing once that has taken 10 s, and then from time to time."""
    over = threading.Event()
    args = (note, over, FIRST_SECS if first_secs is None else first_secs)
    threading.Thread(target=_tell, args=args, name="activity", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _tell(note: Callable[[str], None], over: threading.Event, first_secs: float) -> None:
    pause = first_secs
    while not over.wait(pause):
        elapsed = time.monotonic() - _current.since
        if elapsed >= first_secs:
            note(f"still {_current.text} ({elapsed:.0f} s)")
        pause = min(MAX_PAUSE_SECS, max(first_secs, elapsed / 3))

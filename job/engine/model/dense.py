"""Weights that are made once of other weights: a directory of safetensors in the cache, which every process then maps.

What is converted in the memory of a process is private to it, on every rank; pages of a mapped file are shared. So a
checkpoint that is not used as it is stored (quantized, or with an adapter) is written once, by one process per file
system, and then read like any other. The directory is known by what it was made of, so it is no part of a run's
identity. It appears by one rename: whatever a killed process leaves is deleted by the next one (``job.remote.once``).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from job.errors import UsageError
from job.launch.activity import doing
from job.remote.cache import ADVICE, kept_directory, writable_root
from job.remote.once import made_once, say

KIND = "dense"

SIZES = "sizes.json"
"""Beside the weights: the size of every file, by which one that was cut off later is found."""

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""At the end of what safetensors says of a failed write."""

GB = 10**9


def dense_directory(facts: Any, *, what: str, num_bytes: int, make: Callable[[Path], None]) -> Path:
    """Return a directory with what ``make`` writes into an empty one, now or at an earlier start.

    Args:
        facts: JSON values that decide every byte of it: hashes of contents, how it is made, versions of what makes it.
        what: what is converted, for messages.
        num_bytes: about how large it will be.

    Raises:
        UsageError: there is no room for it, or the cache cannot be written.
    """
    key = _key(facts)
    found = kept_directory(KIND, key)
    if found is not None and is_whole(found):
        return found
    root = writable_root(KIND, say)

    def make_with_room(directory: Path) -> None:
        _check_free(root, what, num_bytes)
        doing(f"converting {what}")
        with _saying_what_failed(what):
            make(directory)
        sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in _files_of(directory)}
        (directory / SIZES).write_text(json.dumps(sizes), encoding="utf-8")

    doing(f"waiting for another process that converts {what}")
    return made_once(root / key, what, "convert", make_with_room, is_whole)


def is_whole(directory: Path) -> bool:
    """Whether every file of a dense directory is there and as long as it was made."""
    try:
        sizes = json.loads((directory / SIZES).read_text(encoding="utf-8"))
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _files_of(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


@contextlib.contextmanager
def _saying_what_failed(what: str) -> Iterator[None]:
    """Raise what the system said where safetensors wraps it, so that a full disk is known as one."""
    try:
        yield
    except SafetensorError as error:
        if number := OS_ERROR.search(str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise UsageError(f"{what} cannot be converted: {error}. Copy it again.") from error


def check_room(facts: Any, *, what: str, num_bytes: int) -> None:
    """Check before anything is converted that a dense directory is there, or has room.

    Args:
        facts: those of ``dense_directory``, as are the others.

    Raises:
        UsageError: it has none.
    """
    found = kept_directory(KIND, _key(facts))
    if found is None or not is_whole(found):
        _check_free(writable_root(KIND, say), what, num_bytes)


def _check_free(root: Path, what: str, num_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if free < num_bytes:
        raise UsageError(
            f"{what} is converted once before it is loaded, which takes {in_gb(num_bytes)} of disk; {root} has "
            f"{in_gb(free)} free. {ADVICE}."
        )


def in_gb(num_bytes: int) -> str:
    """Return a size for people.

    >>> in_gb(141_107_412_992), in_gb(1_543_000_000), in_gb(320_000)
    ('141 GB', '1.5 GB', '0.0003 GB')
    """
    size = num_bytes / GB
    return f"{size:,.0f} GB" if size >= 10 else f"{size:.1f} GB" if size >= 0.1 else f"{size:.1g} GB"


def _key(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

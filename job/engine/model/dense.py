"""Weights that are made once of other weights: a directory of safetensors in the cache, which every process then maps.

What is converted in the memory of a process is private to it, on every rank; pages of a mapped file are shared. So a
checkpoint that is not used as it is stored (quantized, or with an adapter) is written once, by one process per file
system, and then read like any other. The directory is known by what it was made of, so it is no part of a run's
identity. It appears by one rename: whatever a killed process leaves is deleted by the next one (``job.remote.once``).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.errors import UsageError
from job.launch.activity import doing
from job.remote.cache import ADVICE, kept_directory, writable_root
from job.remote.once import made_once, say

KIND = "dense"

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
    if found is not None:
        return found
    root = writable_root(KIND, say)

    def make_with_room(directory: Path) -> None:
        _check_free(root, what, num_bytes)
        doing(f"converting {what}")
        make(directory)

    doing(f"waiting for another process that converts {what}")
    return made_once(root / key, what, "convert", make_with_room)


def check_room(facts: Any, *, what: str, num_bytes: int) -> None:
    """Check before anything is converted that a dense directory is there, or has room.

    Args:
        facts: those of ``dense_directory``, as are the others.

    Raises:
        UsageError: it has none.
    """
    if kept_directory(KIND, _key(facts)) is None:
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

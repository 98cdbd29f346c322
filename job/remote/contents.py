"""SHA-256 of local files. Each is computed once for a state of a file, and kept: a model is read in full for it."""

import hashlib
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from job.errors import UsageError
from job.launch.activity import doing
from job.remote.cache import cache_roots, delete_unused, writable_root, write_whole

NUM_THREADS = 8

SETTLED_SECS = 5.0
"""The hash of a file that has changed more recently is not kept: it may change again within a tick of its clock."""

SHA256 = re.compile("[0-9a-f]{64}")


def hashes_of(paths: Sequence[Path], what: str) -> list[str]:
    """Return the SHA-256 of files in hexadecimal, several at a time.

    Args:
        paths: local files. A link into the Hub's cache is known by the name of the blob, without being read.
        what: what is read, for whoever waits.
    """
    if not paths:
        return []
    done, lock = [0], threading.Lock()

    def hash_one(path: Path) -> str:
        digest = _hash_of(path)
        with lock:
            done[0] += 1
            doing(f"hashing {what}", f"{done[0]:,} of {len(paths):,} files")
        return digest

    doing(f"hashing {what}")
    pool = ThreadPoolExecutor(min(NUM_THREADS, os.cpu_count() or 1))
    try:
        return list(pool.map(hash_one, paths))
    finally:
        pool.shutdown(cancel_futures=True)
        for root in cache_roots("hashes"):
            with suppress(OSError):
                delete_unused(root)


def _hash_of(path: Path) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and SHA256.fullmatch(target.name):
        return target.name
    key = _state(target)
    for root in cache_roots("hashes"):
        with suppress(OSError):
            kept = (root / key).read_text(encoding="utf-8")
            if SHA256.fullmatch(kept):
                os.utime(root / key)
                return kept
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if _state(target) != key:
        raise UsageError(f"{path} has changed while it was read. Start again once it is complete.")
    if time.time() - target.stat().st_mtime > SETTLED_SECS:
        _keep(key, digest)
    return digest


def _state(path: Path) -> str:
    """Return a name for a file in its current state. ``st_ctime_ns`` changes even if the other time is put back."""
    status = path.stat()
    facts = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _keep(key: str, digest: str) -> None:
    with suppress(OSError, UsageError):  # a cache that cannot be written costs time at the next start
        write_whole(writable_root("hashes") / key, digest)

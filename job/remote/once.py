"""Directories of the cache that are made once: one process makes a directory while others wait for its lock.

A directory appears by one rename, so it is always whole. The system frees the lock when the process ends in any way.
"""

import errno
import fcntl
import os
import platform
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from job.errors import UsageError
from job.remote.cache import ADVICE, delete_unused

POLL_SECS = 0.1
PATIENCE_SECS = 10.0
"""After this long, a waiting process says what it waits for."""

ABANDONED_SECS = 3600.0
"""After this long without a change, what was begun is deleted, unless its lock is held."""


def made_once(
    final: Path,
    what: str,
    verb: str,
    make: Callable[[Path], None],
    is_whole: Callable[[Path], bool] = lambda directory: True,
) -> Path:
    """Return a directory with what ``make`` writes into an empty one, unless another process has just made it.

    Args:
        final: its path, which is unique for what is in it.
        what: what is in it, for messages.
        verb: what is done to that: ``convert`` or ``fetch``.
        is_whole: whether a directory that is there is still as it was made. If not, it is made again.

    Raises:
        UsageError: the disk is full.
    """
    root, key = final.parent, final.name
    with _locked(root / f"{key}.lock", f"{verb}ing {what}") as is_alone:
        if final.is_dir() and is_whole(final):
            return final
        if is_alone:
            for torn in root.glob(f"{key}.*.tmp"):  # of a process that died
                shutil.rmtree(torn, ignore_errors=True)
            _delete_abandoned(root)
        delete_unused(root)
        if final.is_dir():
            say(f"{final} has been damaged since it was made: {verb}ing {what} again")
            _discard(final)
        directory = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
        try:
            make(directory)
            for path in (*(path for path in directory.rglob("*") if path.is_file()), directory):
                _sync(path)
            directory.chmod(0o755)
            directory.rename(final)
            _sync(root)
        except OSError as error:
            if final.is_dir() and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return final
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UsageError(f"{what} cannot be {verb}ed in {root}: {error.strerror}. {ADVICE}.") from None
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return final


def _discard(directory: Path) -> None:
    """Delete a directory, so that it is never there in part. Whoever has mapped its files keeps them."""
    unwanted = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.tmp")
    directory.rename(unwanted)
    shutil.rmtree(unwanted, ignore_errors=True)


def _delete_abandoned(root: Path) -> None:
    """Delete what processes that died have begun, and that nobody may ever ask for again."""
    for torn in root.glob("*.*.tmp"):
        lock = root / f"{torn.name.partition('.')[0]}.lock"
        with suppress(OSError):  # somebody else deletes it, too, or the lock is held
            newest = max(path.stat().st_mtime for path in (torn, *torn.rglob("*")))
            if torn.is_dir() and time.time() - newest > ABANDONED_SECS:
                with lock.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(torn, ignore_errors=True)


def _sync(path: Path) -> None:
    """Let a file or a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, doing: str) -> Iterator[bool]:
    """Hold a lock, and say what is waited for. Yields whether it is held: some file systems have no locks."""
    with path.open("a+b") as file:
        is_alone = _lock(file, path, doing)
        if is_alone:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            file.flush()
        yield is_alone


def _lock(file: BinaryIO, path: Path, doing: str) -> bool:
    start, has_said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not has_said and time.monotonic() - start > PATIENCE_SECS:
                file.seek(0)
                owner = file.read().decode(errors="replace") or "another process"
                say(f"waiting for {owner}, which is {doing} (lock: {path})")
                has_said = True
            time.sleep(POLL_SECS)
        except OSError:
            return False


def say(text: str) -> None:
    """Print a line for the user."""
    print(text, file=sys.stderr, flush=True)

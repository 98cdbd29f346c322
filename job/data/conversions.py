"""Files that are made once from a user's files and kept for the next start: Arrow tables of csv, unpacked JSON lines.

A conversion is a directory named by a hash of everything that it depends on, above all the *contents* of the user's
files: one that is changed in place is converted again even if its name, size and time stay the same. A directory
appears by one rename, so it is always whole. One process makes it while others wait for its lock, which the system
frees when that process ends in any way. What nobody has used for a month is deleted when something new is made.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from job.errors import UsageError
from job.remote.cache import ADVICE, cache_roots, delete_unused, writable_root

KIND = "datasets"

POLL_SECS = 0.1
PATIENCE_SECS = 10.0
"""After this long, a waiting process says what it waits for."""


def converted(files: Sequence[str], reader: str, facts: Any, make: Callable[[Path], None]) -> Path:
    """Return a directory with what ``make`` writes into an empty one, now or at an earlier start.

    Args:
        files: the user's files. Their whole contents are read for the hash, at every start.
        reader: the name of what makes it, with a version that rises when it makes something else of the same files.
        facts: JSON values that matter, too, such as options.

    Raises:
        UsageError: no directory can be written, or a file has changed in the meantime.
    """
    before = [_state(file) for file in files]
    key = _key(files, [reader, facts])
    found = next((path for root in cache_roots(KIND) if (path := root / key).is_dir()), None)
    if found is None:
        found = _made(writable_root(KIND, _say), key, files, make)
        for file, state in zip(files, before, strict=True):
            if _state(file) != state:
                shutil.rmtree(found, ignore_errors=True)
                raise UsageError(f"{file} has changed while it was read. Start again once it is complete.")
    with suppress(OSError):  # somebody else's, which we may read
        os.utime(found)
    return found


def _state(file: str) -> tuple[int, int, int]:
    status = Path(file).stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _key(files: Sequence[str], facts: Any) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in files:
        with Path(file).open("rb") as stream:
            contents = hashlib.file_digest(stream, "sha256").digest()
        digest.update(Path(file).name.encode(errors="surrogateescape") + b"\0" + contents)
    return digest.hexdigest()[:32]


def _made(root: Path, key: str, files: Sequence[str], make: Callable[[Path], None]) -> Path:
    final, names = root / key, Path(files[0]).name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    with _locked(root / f"{key}.lock", names) as is_alone:
        if final.is_dir():  # another process has just made it
            return final
        if is_alone:
            for torn in root.glob(f"{key}.*.tmp"):  # of a process that died
                shutil.rmtree(torn, ignore_errors=True)
        delete_unused(root)
        directory = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
        try:
            make(directory)
            for path in directory.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            directory.chmod(0o755)
            directory.rename(final)
        except OSError as error:
            if final.is_dir() and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return final
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UsageError(f"{names} cannot be converted in {root}: {error.strerror}. {ADVICE}.") from None
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return final


@contextmanager
def _locked(path: Path, names: str) -> Iterator[bool]:
    """Hold a lock, and say what is waited for. Yields whether it is held: some file systems have no locks."""
    with path.open("a+b") as file:
        is_alone = _lock(file, path, names)
        if is_alone:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            file.flush()
        yield is_alone


def _lock(file: BinaryIO, path: Path, names: str) -> bool:
    start, has_said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not has_said and time.monotonic() - start > PATIENCE_SECS:
                file.seek(0)
                owner = file.read().decode(errors="replace") or "another process"
                _say(f"waiting for {owner}, which is converting {names} (lock: {path})")
                has_said = True
            time.sleep(POLL_SECS)
        except OSError:
            return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

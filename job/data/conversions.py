"""Files that are made once from a user's files and kept for the next start: Arrow tables of csv, unpacked JSON lines.

A conversion is a directory named by a hash of everything that it depends on, above all the *contents* of the user's
files: one that is changed in place is converted again even if its name, size and time stay the same. It is made by one
process while others wait (``once``). What nobody has used for a month is deleted when something new is made.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from job.errors import UsageError
from job.remote.cache import kept_directory, writable_root
from job.remote.once import made_once, say

KIND = "datasets"


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
    found = kept_directory(KIND, key)
    if found is None:
        found = _made(writable_root(KIND, say), key, files, make)
        for file, state in zip(files, before, strict=True):
            if _state(file) != state:
                shutil.rmtree(found, ignore_errors=True)
                raise UsageError(f"{file} has changed while it was read. Start again once it is complete.")
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
    names = Path(files[0]).name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return made_once(root / key, names, "convert", make)

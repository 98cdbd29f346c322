"""Where this program keeps what it can make or fetch again: converted data, hashes, copies (``JOB_CACHE``)."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from job.errors import UsageError

KEPT_DAYS = 30

ADVICE = "Set JOB_CACHE to a directory that can be written and has room"


def cache_roots(kind: str) -> list[Path]:
    """Return where something of a kind may be: the user's cache, and a temporary directory if that cannot be written.

    Args:
        kind: the name of the folder in the cache.
    """
    if os.environ.get("JOB_CACHE"):
        first = Path(os.environ["JOB_CACHE"])
    else:
        home = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
        first = Path(home) / "dataset-inference-job"
    second = Path(tempfile.gettempdir()) / f"dataset-inference-job-{os.getuid()}"
    return [root / kind for root in (first, second) if _is_ours(root)]


def _is_ours(root: Path) -> bool:
    """Whether nobody else can have put files there, as anybody can in a shared temporary directory."""
    try:
        status = root.lstat()
    except OSError:
        return True
    return root.parent != Path(tempfile.gettempdir()) or (status.st_uid == os.getuid() and not root.is_symlink())


def writable_root(kind: str, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Return the first of ``cache_roots`` in which files can be made.

    Args:
        kind: the name of the folder in the cache.
        tell: says that it is not the first.

    Raises:
        UsageError: there is none.
    """
    failures = []
    for root in cache_roots(kind):
        try:
            root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            failures.append(f"{root}: {error.strerror}")
            continue
        if failures:
            tell(f"the cache is {root}, because the usual one cannot be written ({failures[0]})")
        return root
    raise UsageError(f"There is no place for a cache ({'; '.join(failures)}). {ADVICE}.")


def kept_directory(kind: str, key: str) -> Path | None:
    """Return a directory of the cache, and mark it as used; None if it is not there."""
    found = next((path for root in cache_roots(kind) if (path := root / key).is_dir()), None)
    if found is not None:
        with suppress(OSError):  # somebody else's, which we may read
            os.utime(found)
    return found


def write_whole(path: Path, content: str) -> None:
    """Write a small file at once, so that no reader sees half of it. Whoever shares the cache may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{uuid.uuid4().hex}.tmp")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def delete_unused(root: Path) -> None:
    """Delete what nobody has used for ``KEPT_DAYS`` days, by the times of last change."""
    for path in root.iterdir():
        try:
            is_old = time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400
        except OSError:  # another process has deleted it
            continue
        if is_old and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_old:
            path.unlink(missing_ok=True)

"""The first lines of a remote file as a local file, for whoever needs no more. They are kept for the next start."""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from job.errors import call_place
from job.launch.activity import doing
from job.remote.cache import delete_unused, kept_directory, writable_root
from job.remote.tree import RemoteTree

KIND = "beginnings"

FIRST_BYTES, PIECE_BYTES = 64 << 10, 8 << 20
"""How much is fetched to see how long lines are, and then at once."""

NOT_BLANK = re.compile(rb"\S[^\n]*\n")
"""A line, or the rest of one."""


def first_lines(tree: RemoteTree, path: str, num_lines: int | None) -> Path | None:
    """Return a file with the first lines of a remote one, under the same name.

    Args:
        num_lines: how many at least, without blank ones. None: those within ``FIRST_BYTES``.

    Returns:
        None if not even one line is that short, or if it takes more than half of the file: fetch it.

    Raises:
        UsageError, Unavailable: the file cannot be read.
    """
    file = tree.files[path]
    facts = (path, file.num_bytes, file.digest, num_lines)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    name = PurePosixPath(path).name
    found = kept_directory(KIND, key)
    if found is None:
        root = writable_root(KIND)
        delete_unused(root)
        draft = Path(tempfile.mkdtemp(dir=root))
        try:
            if not _write(draft / name, tree, path, num_lines):
                return None
            found = root / key
            try:
                draft.rename(found)
            except OSError:
                if not (found / name).is_file():  # otherwise another process has made it meanwhile
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    call_place(found, str(PurePosixPath(tree.name, path).parent))
    return found / name


def _write(target: Path, tree: RemoteTree, path: str, num_lines: int | None) -> bool:
    """Write lines, and return whether they are enough."""
    limit = tree.files[path].num_bytes
    content = tree.read(path, 0, FIRST_BYTES)
    num_found, end, position = len(NOT_BLANK.findall(content)), content.rfind(b"\n") + 1, len(content)
    with target.open("wb") as stream:
        stream.write(content)
        while num_lines is not None and num_found < num_lines:
            missing = (num_lines - num_found) * (position // num_found + 1) if num_found else limit
            if position + missing > limit // 2:
                return False
            doing(f"fetching the first lines of {tree.name}/{path}", f"{position:,} bytes")
            piece = tree.read(path, position, position + min(PIECE_BYTES, max(missing, FIRST_BYTES)))
            stream.write(piece)
            num_found += len(NOT_BLANK.findall(piece))
            end = position + piece.rfind(b"\n") + 1 if b"\n" in piece else end
            position += len(piece)
        stream.truncate(end)
    return end > 0

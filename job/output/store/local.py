"""Durable writes: what has been said to be on disk is on disk after a power cut. And how a file is found to be gone."""

import errno
import os
from pathlib import Path


def is_gone(error: OSError) -> bool:
    """Whether an error says that there is no such file, or no more.

    ESTALE is what NFS answers for an open file that another client has removed (RFC 1813, NFS3ERR_STALE).
    """
    return isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE


class UnlessGone:
    """A block that ends without a word where a file turns out to be gone."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Say whether that is all that went wrong."""
        return isinstance(error, OSError) and is_gone(error)


def fsync_dir(directory: Path) -> None:
    """Make a rename or a creation inside a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the contents of a closed file durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_exclusively(path: Path, data: bytes, worker_id: str, *, durable: bool = True) -> bool:
    """Create a file with its whole contents at once, or return False if it exists.

    Writes aside and links: whoever sees the name sees the contents, and of many processes one wins. ``O_EXCL`` alone
    would show the others an empty file for a moment.
    """
    tmp = path.with_name(f".{path.name}.{worker_id}.tmp")
    tmp.write_bytes(data)
    try:
        if durable:
            fsync_file(tmp)
        link(tmp, path)
    except FileExistsError:
        return False
    finally:
        tmp.unlink()
    if durable:
        fsync_dir(path.parent)
    return True


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links (some FUSE and SMB mounts).

    Raises:
        FileExistsError: there is such a name.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        with target.open("xb") as file:
            file.write(source.read_bytes())
            os.fsync(file.fileno())

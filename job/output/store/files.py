"""What the local store does with single files and directories, on top of what the operating system offers."""

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""The errors with which some FUSE and SMB mounts refuse ``link``."""


def remove(path: Path) -> None:
    """Remove a file or an empty directory, unless another process has done so."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Make every failure name this file, and turn ESTALE into ``FileNotFoundError``.

    NFS answers ESTALE for an open file that another client has removed (RFC 1813, NFS3ERR_STALE).
    """
    try:
        yield
    except OSError as error:
        number = errno.ENOENT if error.errno == errno.ESTALE else error.errno
        if number is None:  # not from the operating system
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


class FileAppender:
    """Appends to one file."""

    def __init__(self, path: Path) -> None:
        """Use this file, which need not exist yet."""
        self._path = path
        self._file: FileIO | None = None
        self._is_new = False

    def append(self, data: bytes, *, durable: bool = True) -> None:
        """Write at the end. A write that a full disk cut short is removed: nothing after it could be read."""
        with named(self._path):
            if self._file is None:
                self._is_new = not self._path.exists()
                self._file = self._path.open("ab", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            try:
                _write_all(self._file, data)
                if durable:
                    os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise
            if durable and self._is_new:
                fsync_dir(self._path.parent)
                self._is_new = False

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with named(self._path):
                file.close()


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def fsync_dir(directory: Path) -> None:
    """Make a rename or a creation inside a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file, which is synced if it is to be durable."""
    with path.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links.

    Args:
        source: has one name, which no other process knows.

    Raises:
        FileExistsError: the second name is in use.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # Over NFS, the answer to a first attempt may be lost, and the second one finds its own link (open(2)).
        if source.stat().st_nlink < 2:
            raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with target.open("xb") as file:
            file.write(source.read_bytes())
            os.fsync(file.fileno())

"""A run directory on a local file system, or on one shared over NFS or the like. Nothing else accesses its files.

Durable means that the data survives a power cut: contents are synced before the file gets its name, and the directory
afterwards. Drafts, which are half-written files, have names that begin with a dot; ``*.parquet`` does not match them.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from job.output.store.files import FileAppender, fsync_dir, link, named, remove, write
from job.output.store.store import Appender, Entry, Stamp

DRAFT = re.compile(r"\.(?:(?P<name>.+)\.[^.]+\.tmp|probe-.+|now-.+|.+\.taken-by-.+)", re.DOTALL)
"""Names of short-lived files: ``.<name>.<writer>.tmp`` is a draft of the object ``<name>``."""


class LocalStore:
    """The files below one directory."""

    pause_secs = 0.0

    def __init__(self, root: Path) -> None:
        """Use this directory, which need not exist yet."""
        self._root = root
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
        self._writer = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        """Distinguishes this process's drafts from those of other processes, on any node."""

    def describe(self, name: str = "") -> str:
        """Return a path."""
        return str(self._path(name))

    def prepare(self, directories: Sequence[str]) -> None:
        """Create the directories, and a probe in each: permissions do not show whether the disk is full.

        Below the run directory, the probe is a directory: a reader that takes every file must not find it.
        """
        for directory in directories:
            path = self._path(directory)
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".probe-{self._writer}"
            if path == self._root:
                probe.write_bytes(b"probe")
            else:
                probe.mkdir()
            remove(probe)
        fsync_dir(self._root)

    def list(self, directory: str = "") -> Sequence[Entry]:
        """Return the files, each with its inode, from one scan."""
        try:
            with os.scandir(self._path(directory)) as found:
                return [Entry(file.name, str(file.inode())) for file in found if not DRAFT.fullmatch(file.name)]
        except FileNotFoundError:
            if self._root.is_dir():
                return []
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root)) from None

    def exists(self, name: str) -> bool:
        """Whether the name exists. A dangling link counts: it is damaged, not missing."""
        return os.path.lexists(self._path(name))

    def stamp(self, name: str) -> Stamp:
        """Return a file's status. Opening the file first makes an NFS client ask the server again."""
        path = self._path(name)
        with named(path):
            try:
                with path.open("rb") as file:
                    return _stamp(os.fstat(file.fileno()))
            except PermissionError:
                return _stamp(path.stat())

    def read(self, name: str, start: int = 0) -> bytes:
        """Return the contents of a file from a position on."""
        return self.look(name, start)[0]

    def look(self, name: str, start: int = 0) -> tuple[bytes, Stamp]:
        """Return the contents and the status of a file."""
        path = self._path(name)
        with named(path), path.open("rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size + start) if start < 0 else start)
            return file.read(), _stamp(status)

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        path = self._path(name)
        with named(path):
            return path.open("rb")

    def create_exclusively(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """Write a draft and link it. With ``O_EXCL`` alone, others would see an empty file for a moment."""
        path = self._path(name)
        draft = self._draft(path)
        with named(path):
            try:
                write(draft, data, durable=durable)
                link(draft, path)
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)
            if durable:
                fsync_dir(path.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a draft and rename it."""
        with self.replacing(name, data):
            pass

    @contextlib.contextmanager
    def replacing(self, name: str, data: bytes) -> Iterator[None]:
        """Write a draft, which is renamed when the block ends."""
        with self.writing(name) as file:
            file.write(data)
            yield

    @contextlib.contextmanager
    def writing(self, name: str, over: Stamp | None = None) -> Iterator[BinaryIO]:
        """Write a draft and rename it. The last writer wins."""
        path = self._path(name)
        draft = self._draft(self._root / path.name)
        with named(path):
            try:
                with draft.open("w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)  # frees the space on a full disk
                raise
            fsync_dir(path.parent)

    @contextlib.contextmanager
    def append(self, name: str) -> Iterator[Appender]:
        """Append to a file, which is opened with the first bytes."""
        appender = FileAppender(self._path(name))
        try:
            yield appender
        finally:
            appender.close()

    def touch(self, name: str, *, create: bool = False) -> float:
        """Touch a file without passing a time, so that a file server stamps it by its own clock.

        A file that it creates is asked for its time while it is open: another worker may delete it at any moment.
        """
        path = self._path(name)
        with named(path):
            if create:
                with path.open("ab") as file:
                    os.utime(file.fileno())
                    return os.fstat(file.fileno()).st_mtime
            os.utime(path)
            return path.stat().st_mtime

    def now(self) -> float | None:
        """Return the file system's time, which only a newly written file shows."""
        probe = self._path(f".now-{self._writer}-{secrets.token_hex(4)}")
        try:
            probe.touch(exist_ok=False)
            os.utime(probe)
            return probe.stat().st_mtime
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file."""
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError), named(path):
            path.unlink()

    def replace_if_same(self, name: str, seen: tuple[bytes, Stamp], data: bytes) -> bool:
        """Remove the old file and create the new one: of several processes that try, one succeeds."""
        return self._remove_if_same(name, seen[0]) and self.create_exclusively(name, data, durable=False)

    def _remove_if_same(self, name: str, content: bytes) -> bool:
        """Rename the file away and read it.

        Only contents are compared: some FUSE mounts invent inode numbers, and others change the time of a file that is
        renamed. If it turns out to be another file, it is put back. For an instant its name is free, and a third
        process may create its own file: then that one stays.

        Returns:
            Whether that file is deleted, by whichever process. If several try at once, some may get False although it
            is.
        """
        path = self._path(name)
        aside = self._draft(path)
        with contextlib.suppress(FileNotFoundError), named(path):
            path.rename(aside)
            is_same = aside.read_bytes() == content
            if not is_same:
                with contextlib.suppress(FileExistsError):
                    link(aside, path)
            aside.unlink(missing_ok=True)
            return is_same
        return True

    def discard(self, directory: str, pattern: str, *, min_age_secs: float = 0.0) -> None:
        """Remove half-written files. One that cannot be removed stays."""
        now = self.now() if min_age_secs else None
        with contextlib.suppress(OSError), os.scandir(self._path(directory)) as found:
            for file in found:
                draft = DRAFT.fullmatch(file.name)
                if draft is None or not fnmatchcase(draft["name"] or file.name, pattern):
                    continue
                with contextlib.suppress(OSError):
                    if not min_age_secs or (now is not None and now - file.stat().st_mtime >= min_age_secs):
                        remove(Path(file.path))

    def _path(self, name: str) -> Path:
        return self._root / name

    def _draft(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self._writer}.tmp")


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(str(status.st_ino), status.st_size, status.st_mtime)

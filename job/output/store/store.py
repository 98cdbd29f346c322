"""What a run needs from the storage that it is kept in: a few methods, and what each of them guarantees.

A name is a string relative to the run directory, with ``/`` between its parts (``leases/00042``). A missing object
raises ``FileNotFoundError``, whatever the storage calls it; every other failure is an ``OSError`` whose ``filename`` a
user can find. A POSIX file system and an object store with conditional writes can both offer these methods. A run
directory is accessed only through them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing."""

    name: str
    """Relative to its directory."""
    identity: str
    """Changes when the object is replaced, but not when it is appended to or touched."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the store knows about an object besides its contents."""

    identity: str
    """As in a listing."""
    num_bytes: int
    written: float
    """Unix time of the last write or touch, by the store's clock. Compare it only with ``now`` and ``touch``: the
    clocks of the machines that use the store differ.
    """


class Appender(Protocol):
    """Appends to one object, to which no other process appends."""

    def append(self, data: bytes, *, durable: bool = True) -> None:
        """Add bytes. If durable, they survive a power cut once this returns.

        Raises:
            OSError: they could not be added. None of them is left, unless removing them failed, too.
        """

    def close(self) -> None:
        """Stop appending."""


class Store(Protocol):
    """The objects of one run."""

    pause_secs: float
    """How long a process should wait at least between two writes of the same kind; 0 if writes cost nothing."""

    def describe(self, name: str = "") -> str:
        """Return an address at which users find an object, or the run directory."""

    def prepare(self, directories: Sequence[str]) -> None:
        """Make sure that objects can be created in these directories (the run's own is ``""``).

        Raises:
            OSError: they cannot be created, or the store is full.
        """

    def list(self, directory: str = "") -> Sequence[Entry]:
        """Return the objects in a directory, in no particular order and without drafts. A missing directory is empty.

        Raises:
            FileNotFoundError: the run directory itself is missing.
        """

    def exists(self, name: str) -> bool:
        """Whether readers see this name, even if the object is damaged."""

    def stamp(self, name: str) -> Stamp:
        """Return the current stamp of an object, bypassing all caches."""

    def read(self, name: str, start: int = 0) -> bytes:
        """Return the contents from a position on; a negative position counts from the end."""

    def look(self, name: str, start: int = 0) -> tuple[bytes, Stamp]:
        """Return the results of ``read`` and ``stamp`` for the same version of an object."""

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading at any position. If it is replaced, the reader sees the old contents, or fails."""

    def create_exclusively(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """Create an object with its whole contents at once, or return False if it exists.

        A process that sees the name sees the contents, and of several processes that try, one succeeds.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Give an object new contents, durably. Readers see the old ones or the new ones, never a mixture."""

    def replacing(self, name: str, data: bytes) -> AbstractContextManager[None]:
        """Do what ``replace`` does when the block ends; if the block raises an exception, nothing has changed.

        A store that has drafts writes one first, so that ``discard`` prevents it from getting its name.

        Raises:
            FileNotFoundError: another process has discarded the draft in the meantime.
        """

    def writing(self, name: str, over: Stamp | None = None) -> AbstractContextManager[BinaryIO]:
        """Write an object that is too large for ``replace``.

        The draft lies in the run directory itself, whatever the object's directory is: a reader that takes every file
        of a directory must not find it. The file can be written and read back. When the block ends, the object has
        these contents, durably; if the block raises an exception, nothing has changed.

        Args:
            over: the version that is to be replaced; None: none is there yet. A store that can compare versions refuses
                to replace any other one.

        Raises:
            FileNotFoundError: another process has discarded the draft in the meantime, or written the object.
        """

    def append(self, name: str) -> AbstractContextManager[Appender]:
        """Append to an object, which is created with the first bytes. Its name is one of those that are appended to."""

    def touch(self, name: str, *, create: bool = False) -> float:
        """Let the store stamp an object as written now, which shows that its owner is alive. Returns that time.

        Raises:
            FileNotFoundError: the object does not exist, and ``create`` is False.
        """

    def now(self) -> float | None:
        """Return the time by the store's clock; None if nothing can be written, since only a write shows the time."""

    def delete(self, name: str) -> None:
        """Remove an object, if it exists."""

    def replace_if_same(self, name: str, seen: tuple[bytes, Stamp], data: bytes) -> bool:
        """Replace an object if it is still the one that ``look`` returned. (It may have been touched since.)

        Returns:
            Whether this process has replaced it. Of several that try, one succeeds at most.
        """

    def discard(self, directory: str, pattern: str, *, min_age_secs: float = 0.0) -> None:
        """Remove drafts, abandoned or still being written, of the objects whose names match the pattern (fnmatch)."""

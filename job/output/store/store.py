"""What a run needs of the place that it is kept in: few verbs, and what each of them guarantees.

A name is a string relative to the run directory, with ``/`` between its parts (``leases/00042``). An object that is not
there, or no longer, is a ``FileNotFoundError`` whatever the place calls it; all other failures are an ``OSError`` whose
``filename`` a user can find. The verbs are those that a POSIX file system and an object store with conditional writes
can both offer; nothing else in ``job.output`` calls a file system.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of an object."""

    name: str
    """Within its directory."""
    identity: str
    """Changes when the object is replaced; not when it is appended to or touched."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the store knows of an object besides its contents."""

    identity: str
    """As in a listing."""
    num_bytes: int
    written: float
    """When it was last written or touched: Unix time by the store's clock, to be compared with ``now`` and ``touch``.
    Clocks of the machines that use the store differ.
    """


class Appender(Protocol):
    """The end of one object, to which this process alone appends."""

    def append(self, data: bytes, *, durable: bool = True) -> None:
        """Add bytes. If durable, they are there after a power cut once this returns.

        Raises:
            OSError: they could not be added, and none of them is there unless removing them failed, too.
        """

    def close(self) -> None:
        """Append no more."""


class Store(Protocol):
    """The objects of one run."""

    def describe(self, name: str = "") -> str:
        """Return an address under which users find an object, or the run directory."""

    def prepare(self, directories: Sequence[str]) -> None:
        """Make sure that objects can be created in these directories (the run's own is ``""``).

        Raises:
            OSError: they cannot be, or nothing more fits.
        """

    def list(self, directory: str = "") -> Sequence[Entry]:
        """Return the objects in a directory, in no order, without what is half-written. None, if it is not there.

        Raises:
            FileNotFoundError: there is no run directory at all.
        """

    def exists(self, name: str) -> bool:
        """Whether readers see this name, though it may be damaged."""

    def stamp(self, name: str) -> Stamp:
        """Return what the store knows of an object now, past all caches."""

    def read(self, name: str, start: int = 0) -> bytes:
        """Return the contents, from a position on; a negative one counts from the end."""

    def look(self, name: str, start: int = 0) -> tuple[bytes, Stamp]:
        """Return what ``read`` and ``stamp`` do, both of the same object."""

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading at any place. For this reader it stays as it was, even if it is replaced."""

    def create_exclusively(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """Create an object with its whole contents at once, or return False if there is one.

        Whoever sees the name sees the contents, and of many processes one succeeds.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Give an object new contents, durably. Readers see the old ones or the new ones, never a part of either."""

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write an object that is too large for ``replace``.

        The file that this gives can be written, and read back. The object is there, durably, when the block ends, and
        not at all if it ends with an exception.

        Raises:
            FileNotFoundError: what was half-written has been discarded meanwhile.
        """

    def append(self, name: str) -> AbstractContextManager[Appender]:
        """Append to an object, which is created with the first bytes."""

    def touch(self, name: str, *, create: bool = False) -> float:
        """Say that whoever owns an object lives: let the store stamp it as written now. Returns that time.

        Raises:
            FileNotFoundError: there is no such object, and it was not to be created.
        """

    def now(self) -> float | None:
        """Return the time by the store's clock; None if nothing can be written, so that there is no way to learn it."""

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""

    def delete_if_same(self, name: str, seen: tuple[bytes, Stamp]) -> bool:
        """Remove an object unless it is another one than ``look`` has shown. (It may have been touched since.)

        Returns:
            Whether it is no longer there, whoever removed it. Of many who try at once, some may get False in that case.
        """

    def discard(self, directory: str, pattern: str, *, min_age_secs: float = 0.0) -> None:
        """Remove what writers have left half-written, or are writing, of the objects whose names match (fnmatch)."""

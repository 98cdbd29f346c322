"""What a repository or a remote folder holds at one pinned state. Knows no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

NUM_THREADS = 16
"""How many requests for files are made at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file at a pinned state."""

    path: str
    """Relative to the repository or folder, with ``/`` between its parts."""
    num_bytes: int
    digest: str
    """Identifies the contents, with the kind in front: ``sha256:...``, ``git:...`` (a small file of a repository)."""


Tree = Mapping[str, RemoteFile]
"""The files by their paths, in the order of the paths."""


class RemoteTree(Protocol):
    """Files that lie elsewhere, at one pinned state. What opens a dataset knows no more of the Hub or of a store."""

    @property
    def name(self) -> str:
        """What messages call it, such as ``org/name``. The names of its files follow after a slash."""

    @property
    def meant(self) -> str:
        """What the user has named in it: a glob. Empty: all of it."""

    @property
    def commit(self) -> str | None:
        """What a later start needs to find the same state. None if the files themselves must show it."""

    @property
    def files(self) -> Tree:
        """Its files."""

    @property
    def is_listed(self) -> bool:
        """Whether ``files`` is what the server has listed. Otherwise it is what there is on this machine."""

    def fetch(self, paths: Sequence[str]) -> list[Path]:
        """Return local paths of files, after fetching those that are not here, several at a time. The names of the
        local files end like those of the remote ones; messages must call their directory ``name`` (``call_place``).

        Raises:
            UsageError, Unavailable: a file cannot be read.
        """

    def path(self, path: str) -> Path:
        """Return where a file lies once it is fetched."""

    def has(self, path: str) -> bool:
        """Whether a file has been fetched."""

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a part of a file, or fewer at its end.

        Raises:
            UsageError, Unavailable: the file cannot be read.
        """

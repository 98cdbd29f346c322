"""What a repository or a remote folder holds at one pinned state. Knows no network."""

from collections.abc import Mapping
from dataclasses import dataclass


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

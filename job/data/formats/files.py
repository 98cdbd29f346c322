"""The files of one split, in the form that the module of their format receives."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from job.config import DataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of one split."""

    config: DataConfig
    split: str
    names: tuple[str, ...]
    """Absolute paths, or URLs. Empty if only ``datasets`` knows where the rows come from."""
    builder: Callable[..., Any]
    """Given reader options, returns the ``datasets`` builder for the files. Imports ``datasets``: about a second."""

    @property
    def are_local(self) -> bool:
        """Whether they are files on this machine."""
        return bool(self.names) and not any("://" in name for name in self.names)

    @property
    def local_names(self) -> tuple[str, ...]:
        """The paths of local files; empty if the files are remote."""
        return self.names if self.are_local else ()

    def are_plain(self, endings: Collection[str]) -> bool:
        """Whether all files are local, uncompressed, and have one of these endings."""
        return self.are_local and all(name.lower().endswith(tuple(endings)) for name in self.names)

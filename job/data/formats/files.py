"""The files of one split, as they are handed to the module of their format."""

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
    """Returns what reads them in ``datasets``, given its options. Loads ``datasets``: about a second."""

    @property
    def are_local(self) -> bool:
        """Whether they are files of this machine."""
        return bool(self.names) and not any("://" in name for name in self.names)

    @property
    def local_names(self) -> tuple[str, ...]:
        """Their paths; none if they are elsewhere."""
        return self.names if self.are_local else ()

    def are_plain(self, endings: Collection[str]) -> bool:
        """Whether they are local, are not compressed, and have some of these endings."""
        return self.are_local and all(name.lower().endswith(tuple(endings)) for name in self.names)

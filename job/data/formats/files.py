"""The files of one split, in the form that the module of their format receives."""

import glob
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from job.config import DataConfig
from job.data.formats import ending_of
from job.data.source import Source
from job.remote.tree import RemoteTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of one split."""

    config: DataConfig
    split: str
    names: tuple[str, ...]
    """Absolute paths, or names in ``tree``."""
    builder: Callable[..., Any]
    """Given reader options, returns the ``datasets`` builder for the files. Imports ``datasets``: about a second."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the dataset's card says about reading the files, such as the separator of csv."""

    tree: RemoteTree | None = None
    """Where the files lie that are not here, but are read in place."""

    is_older: bool = False
    """Whether version 0.2 or older started the run: it goes on with the rows that ``datasets`` gives."""

    def are_named(self, endings: Collection[str]) -> bool:
        """Whether all files have one of these endings, perhaps before that of a compression."""
        return all(ending_of(name) in endings for name in self.names)


def builder_of(reader: str | None, split: str, names: Sequence[str]) -> Callable[..., Any]:
    """Return how to load the builder of a reader in ``datasets`` for files. It takes every name for a glob."""
    return partial(load_builder, reader, data_files={split: [glob.escape(name) for name in names]})


def load_builder(*args: Any, **options: Any) -> Any:
    """Return a builder of ``datasets``."""
    import datasets

    return datasets.load_dataset_builder(*args, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The rows of files."""

    source: Source
    notes: tuple[str, ...] = ()
    """What the user should know about the way the files are read."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """See ``OpenDataset``."""
    infers_types: bool = False
    """See ``OpenDataset``."""

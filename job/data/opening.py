"""From the user's ``--dataset`` to a source: ``finding`` says which files it means, here or elsewhere, and the module
of their format opens them (``formats``). Files that lie elsewhere are fetched first.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from job.config import DataConfig
from job.data.dataset import DataFile, OpenDataset, writable
from job.data.fetching import RemoteDataset
from job.data.finding import Found, explained, find_files, refuse_choosing
from job.data.formats import CONVERTED, check_options, saved
from job.data.formats.files import Files, builder_of
from job.data.heads import check_heads
from job.data.listing import data_beside
from job.data.remote_files import find_in_tree, tree_of
from job.data.source import TableSource
from job.data.splits import choose_split
from job.errors import UsageError
from job.fingerprint import digest_of_ends, fingerprint
from job.remote.addresses import is_address


class Dataset(Protocol):
    """A dataset whose files are known. Nothing of them has been read."""

    def head(self) -> OpenDataset | None:
        """Return the beginning of the dataset, for checks that need no more, if reading all of it means fetching it.

        Raises:
            Unavailable: it cannot be reached.
        """

    def open(self, num_rows: int | None = None) -> OpenDataset:
        """Open it.

        Args:
            num_rows: more rows than these first ones are not needed. None: all that ``--limit`` allows.

        Raises:
            UsageError: a file cannot be read.
            Unavailable: it cannot be reached.
        """


def open_dataset(config: DataConfig, **options: Any) -> OpenDataset:
    """Open the dataset that the user named; see ``find_dataset``."""
    return find_dataset(config, **options).open()


def find_dataset(
    config: DataConfig, *, output: Path | None = None, is_older: bool = False, commit: str | None = None
) -> Dataset:
    """Find out which files the user means.

    Args:
        output: the run directory, which is never its own input.
        is_older: whether version 0.2 or older started the run: it goes on with what ``datasets`` reads.
        commit: the commit at which the run began, with which it goes on.

    Raises:
        UsageError: the dataset, split or file does not exist.
        Unavailable: it lies elsewhere, and cannot be reached.
    """
    path = Path(config.dataset)
    _check_choosing(path, config, is_older)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--dataset {path} is a pipe, a socket or a device, which can be read only once. Copy it to a file."
        )
    with explained(config):
        if (tree := tree_of(config, commit)) is not None:
            return RemoteDataset.of(find_in_tree(tree, config), config, tree)
        if saved.is_saved(path):
            return _LocalDataset(config, partial(_open_saved, path, config))
        return _LocalDataset(config, partial(_open_files, find_files(config, output, is_older), config, is_older))


def _check_choosing(path: Path, config: DataConfig, is_older: bool) -> None:
    """Refuse options that choose among files if there is nothing to choose. Older versions ignored most of them."""
    if is_address(config.dataset):  # known once it is listed
        return
    is_pattern = not path.exists() and bool(set(config.dataset) & set("*?["))
    kinds = {"a file": path.is_file()}
    if not is_older:
        kinds |= {"from save_to_disk": saved.is_saved(path), "a pattern": is_pattern}
    for what in (what for what, is_it in kinds.items() if is_it):
        refuse_choosing(config, what)


@dataclass(frozen=True)
class _LocalDataset:
    """Files of this machine."""

    config: DataConfig
    opener: Callable[[], OpenDataset]

    def head(self) -> None:
        """Return nothing: all of the dataset can be read at once."""

    def open(self, num_rows: int | None = None) -> OpenDataset:
        """Open all files."""
        with explained(self.config):
            return self.opener()


def _open_saved(path: Path, config: DataConfig) -> OpenDataset:
    """Map the files of a directory of ``save_to_disk``."""
    check_options(CONVERTED, config)
    names = saved.split_names(path)
    if names is not None:
        split = choose_split(names, config)
        dataset = saved.load_saved(path / split)
    else:
        dataset = saved.load_saved(path)
        split = choose_split([str(dataset.split or config.split or "train")], config)
    files = [file["filename"] for file in dataset.cache_files]  # not *.arrow: map() also leaves its caches there
    return OpenDataset(
        source=TableSource(dataset),
        fingerprint=fingerprint(files),
        split=split,
        files=_data_files(files, path),
        other_splits=tuple(name for name in names or () if name != split),
        unread=data_beside(path / split if names is not None else path, files),
    )


def _open_files(found: Found, config: DataConfig, is_older: bool) -> OpenDataset:
    split, known = found.chosen(config, is_older=is_older)
    names = found.splits[split]
    files = Files(
        config=config,
        split=split,
        names=names,
        builder=found.builder or builder_of(known.reader, split, names),
        options=found.options,
        is_older=is_older,
    )
    if not is_older:
        check_heads(names, known)
    opened = known.open(files)
    return found.opened(
        split,
        opened,
        fingerprint=fingerprint(names),
        fingerprint_of=lambda num_files: fingerprint(names[:num_files]),
        files=_data_files(names, found.root),
    )


def _data_files(names: Sequence[str], root: Path | None) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(
            name=writable(os.path.relpath(name, root)),
            num_bytes=Path(name).stat().st_size,
            digest=digest_of_ends(Path(name)),
        )
        for name in names
    )

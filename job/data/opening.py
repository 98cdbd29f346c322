"""From the user's ``--dataset`` to a source: ``finding`` says which files it means, here or elsewhere, and the module
of their format opens them (``formats``). Files that lie elsewhere are fetched first.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from job.config import DataConfig
from job.data.dataset import DataFile, OpenDataset, writable
from job.data.finding import Found, find_files
from job.data.formats import CONVERTED, Format, check_options, format_of_reader, saved
from job.data.formats.files import Files, Opened, builder_of
from job.data.heads import check_heads
from job.data.listing import data_beside
from job.data.remote_files import check_numbers, contents_of, find_in_tree, tree_of
from job.data.source import TableSource
from job.data.splits import choose_split
from job.errors import JobError, UsageError, explain, is_foreign
from job.fingerprint import digest_of_ends, fingerprint
from job.remote.tree import RemoteTree
from job.wording import flag


def open_dataset(
    config: DataConfig, *, output: Path | None = None, is_older: bool = False, commit: str | None = None
) -> OpenDataset:
    """Open the dataset that the user named.

    Args:
        output: the run directory, which is never its own input.
        is_older: whether version 0.2 or older started the run: it goes on with what ``datasets`` reads.
        commit: the commit at which the run began. The user may name another revision.

    Raises:
        UsageError: the dataset, split or file does not exist, or cannot be read.
        Unavailable: it lies elsewhere, and cannot be reached.
    """
    path = Path(config.dataset)
    _check_choosing(path, config, is_older)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--dataset {path} is a pipe, a socket or a device, which can be read only once. Copy it to a file."
        )
    try:
        if (tree := tree_of(config, commit)) is not None:
            return _open_remote(find_in_tree(tree, config), config, tree)
        if saved.is_saved(path):
            return _open_saved(path, config)
        return _open_local(find_files(config, output, is_older), config, is_older)
    except StopIteration:  # datasets raises this on an empty JSON file
        raise UsageError(f"--dataset {config.dataset} has no rows.") from None
    except JobError:
        raise
    except Exception as error:
        if not is_foreign(error):
            raise
        raise UsageError(f"--dataset {config.dataset}: {explain(error, config.dataset)}{_cache_hint(error)}") from None


def _cache_hint(error: Exception) -> str:
    """Return what to do if the cache of ``datasets`` cannot be written."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    if not isinstance(error, OSError) or error.filename is None or not Path(error.filename).is_relative_to(home):
        return ""
    return f". Set HF_HOME, now {home}, to a directory that can be written: the data is converted there."


def _check_choosing(path: Path, config: DataConfig, is_older: bool) -> None:
    """Refuse options that choose among files where there is no choice. Older versions ignored most of them."""
    is_pattern = not path.exists() and bool(set(config.dataset) & set("*?["))
    kinds = {"a file": path.is_file()}
    if not is_older:
        kinds |= {"from save_to_disk": saved.is_saved(path), "a pattern": is_pattern}
    for what in (what for what, is_it in kinds.items() if is_it):
        for name in (name for name in ("data_files", "dataset_config") if getattr(config, name)):
            raise UsageError(
                f"{flag(name)} is for directories and Hub datasets, but --dataset {path} is {what}. Leave it out."
            )


def _open_saved(path: Path, config: DataConfig) -> OpenDataset:
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


def _open_local(found: Found, config: DataConfig, is_older: bool) -> OpenDataset:
    split, known = _chosen(found, config, is_older=is_older)
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
        check_heads(files.local_names, known)
    return _opened(
        found,
        split,
        known.open(files),
        fingerprint=fingerprint(names) if names else f"{found.reader}-{found.digest}",
        files=_data_files(names, found.root),
    )


def _open_remote(found: Found, config: DataConfig, tree: RemoteTree) -> OpenDataset:
    """Fetch the files of a split, and open them like any others."""
    split, known = _chosen(found, config)
    paths = found.splits[split]
    if not tree.is_listed:
        check_numbers(tree, paths)
    is_in_place = config.streaming and known.module == "parquet"
    names = paths if is_in_place else tuple(map(str, tree.fetch(paths)))
    builder = partial(builder_of(found.reader or known.reader, split, names), **found.options)
    files = Files(
        config=config,
        split=split,
        names=names,
        builder=builder,
        options=found.options,
        tree=tree if is_in_place else None,
    )
    if not is_in_place:
        check_heads(names, known)
    opened = known.open(files)
    return _opened(
        found,
        split,
        opened,
        fingerprint=contents_of(tree, paths),
        files=tuple(
            DataFile(name=writable(path), num_bytes=tree.files[path].num_bytes, digest=tree.files[path].digest)
            for path in paths
        ),
        commit=tree.commit,
    )


def _chosen(found: Found, config: DataConfig, *, is_older: bool = False) -> tuple[str, Format]:
    """Return the split to read, and the format of its files."""
    split = choose_split(list(found.splits), config, must_choose=found.must_choose)
    if found.format is not None and config.dataset_config and not is_older:
        raise UsageError(
            f"--dataset-config {config.dataset_config} has no effect: no README.md that lists configs chooses the "
            f"files of --dataset {config.dataset}. Leave it out."
        )
    known = found.format or format_of_reader(found.reader, found.splits[split])
    check_options(known, config)
    return split, known


def _opened(found: Found, split: str, opened: Opened, **values: Any) -> OpenDataset:
    return OpenDataset(
        source=opened.source,
        reading=opened.reading,
        split=split,
        other_splits=tuple(name for name in found.splits if name != split),
        unread=found.unread,
        remarks=(*found.remarks, *opened.notes),
        **values,
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

"""Datasets that lie elsewhere, as the trees of ``remote``: which files are read is decided by their names, by the rules
for local directories, before any of them is fetched.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

from job.config import DataConfig
from job.data.finding import Found, check_config, configs_in, find_files, is_local, refuse_choosing
from job.data.formats import READERS, ending_of, format_of_reader, saved
from job.data.listing import CARD, MAX_DESCRIPTION_BYTES
from job.errors import UsageError
from job.remote import hub
from job.remote.addresses import is_address, is_pattern
from job.remote.outline import Outline, outlined
from job.remote.refusals import not_cached
from job.remote.stores import open_addresses
from job.remote.tree import RemoteTree

CARDS = (CARD, "dataset_infos.json", ".huggingface.yaml")
"""Files in which ``datasets`` reads what the others are."""

OF_RUN = "manifest.json"
"""What makes a directory a run."""

COUNTED = re.compile(r"-(\d{5})-of-(\d{5})")

CONVERTED_BRANCH = re.compile(r"([^/]+)/([^/]+)/\d{4}\.parquet")
"""The names of files in the branch ``refs/convert/parquet``, which the Hub makes: configuration, split, number."""


def tree_of(config: DataConfig, commit: str | None) -> RemoteTree | None:
    """Return the repository that the user named, at one commit, or the files at an address; None if they are local.

    Args:
        commit: the one to use, whatever revision the user names; None: look the revision up.

    Raises:
        UsageError: it does not exist, or may not be read.
        Unavailable: the Hub or the store does not answer.
    """
    if is_address(config.dataset):
        return open_addresses([config.dataset])
    if config.dataset in READERS and any(map(is_address, config.data_files)):
        return open_addresses(config.data_files, "data-files")
    if is_local(config):
        return None
    return hub.pin("dataset", config.dataset, commit or config.dataset_revision)


def find_in_tree(tree: RemoteTree, config: DataConfig) -> Found:
    """Return the files that the user named, or all data in the tree. Their names are relative to it.

    Raises:
        UsageError: there is no data, or something that could be data would not be read.
        Unavailable: see ``RemoteTree``.
    """
    if any(map(is_address, config.data_files)):
        paths = tuple(tree.files)
        return Found(splits={"train": paths}, format=format_of_reader(config.dataset, paths))
    if tree.meant:
        refuse_choosing(config, "a pattern" if is_pattern(config.dataset) else "a file")
        config = replace(config, data_files=(tree.meant,))
    for pattern in config.data_files:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute():
            raise UsageError(f"--data-files {pattern} is not inside --dataset {tree.name}. Name files that it has.")
    if not config.data_files and (of_configs := _converted_configs(tree)):
        return _of_config(of_configs, config, tree)
    with outlined(tree) as outline:
        outline.fill([*CARDS, OF_RUN])
        is_described = bool(config.data_files or configs_in(outline.root))
        if not is_described:
            _refuse_script(tree)
            small = [path for path, file in tree.files.items() if file.num_bytes <= MAX_DESCRIPTION_BYTES]
            outline.fill([path for path in small if path.lower().endswith(".json")])
            if saved.is_saved(outline.root):
                raise UsageError(
                    f"--dataset {tree.name} was written by save_to_disk of datasets. Download it, and give the "
                    f"directory: hf download {tree.name} --repo-type dataset --local-dir DIR"
                )
        config = replace(config, dataset=str(outline.root))
        try:
            found = find_files(config, None, is_older=False)
        except BadZipFile:  # datasets looks into archives whose names do not say what they hold
            outline.fill([path for path in tree.files if path.lower().endswith(".zip")])
            found = find_files(config, None, is_older=False)
        return _in_tree(found, outline)


def _in_tree(found: Found, outline: Outline) -> Found:
    """Return what was found in an outline with the names in its tree."""
    tree = outline.tree
    return replace(
        found,
        splits={split: tuple(map(outline.path_of, names)) for split, names in found.splits.items()},
        builder=None,
        unread=tuple(unread for unread in found.unread if unread.name != CARD),
        runs=tuple(replace(run, name=tree.name) for run in found.runs),
        remarks=(*_remarks(tree), *found.remarks),
    )


def _remarks(tree: RemoteTree) -> tuple[str, ...]:
    if tree.is_listed:
        return ()
    return (f"the cache does not say which files {tree.name} has: those that were downloaded are taken for all",)


def _refuse_script(tree: RemoteTree) -> None:
    """Refuse a repository whose files only a program can read.

    Raises:
        UsageError: it is one.
    """
    script = f"{tree.name.rpartition('/')[2]}.py"
    if script in tree.files:
        raise UsageError(
            f"--dataset {tree.name} is read by a script, {script}, which is not run. Use the Parquet files that the "
            "Hub has made of it, with --dataset-revision refs/convert/parquet, or choose files with --data-files."
        )


def _converted_configs(tree: RemoteTree) -> dict[str, dict[str, list[str]]]:
    """Return the configurations and splits of a branch that the Hub has made; empty if the tree is none."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in (path for path in tree.files if not path.startswith(".")):
        if (match := CONVERTED_BRANCH.fullmatch(path)) is None:
            return {}
        found.setdefault(match[1], {}).setdefault(match[2], []).append(path)
    return found


def _of_config(of_configs: dict[str, dict[str, list[str]]], config: DataConfig, tree: RemoteTree) -> Found:
    check_config(tree.name, config.dataset_config, {name: name == "default" for name in of_configs})
    wanted = config.dataset_config or ("default" if "default" in of_configs else next(iter(of_configs)))
    splits = {split: tuple(paths) for split, paths in of_configs[wanted].items()}
    return Found(splits=splits, reader="parquet", remarks=_remarks(tree))


def contents_of(tree: RemoteTree, paths: Sequence[str]) -> str:
    """Hash what the files hold, by their digests. Of their names, only the endings count, since they decide how the
    contents are read; other files of the tree do not count.

    An ETag or a time identifies a state of one file only: servers make both of the time and size, which are often the
    same for all files of a directory. Names count there.
    """
    digest = hashlib.sha256()
    for path in paths:
        known = tree.files[path].digest
        name = path if known.startswith(("etag:", "time:")) else ending_of(path) + Path(path).suffix
        digest.update(f"{name}\0{known}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def check_numbers(tree: RemoteTree, paths: Sequence[str]) -> None:
    """Check that files whose names count them, such as ``train-00000-of-00008.parquet``, are all there.

    Raises:
        UsageError: one is missing.
    """
    for path in paths:
        if (match := COUNTED.search(path)) is None:
            continue
        for idx in range(int(match[2])):
            sibling = f"{path[: match.start(1)]}{idx:0{len(match[1])}}{path[match.end(1) :]}"
            if sibling not in tree.files:
                raise UsageError(not_cached("dataset", tree.name, tree.commit, sibling))

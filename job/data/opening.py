"""From the user's ``--dataset`` to a source: local forms are recognised, and everything else is a Hub id.

This module turns names into files, splits and a format; the format's module opens the files (``formats``). ``datasets``
resolves directories and Hub ids into splits, configurations and data files.
"""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from job.config import DataConfig
from job.data.formats import ENDINGS, READERS, Format, ending_of, format_of, format_of_reader, saved
from job.data.formats.files import Files
from job.data.source import Source, TableSource
from job.errors import JobError, UsageError, explain, is_foreign
from job.fingerprint import fingerprint

PARTS_OF_A_RUN = ("data/part-*.parquet", "part-*.parquet")
"""Where the parts of a run directory lie: today, and in older versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDataset:
    """A source, with a fingerprint of its contents."""

    source: Source
    fingerprint: str
    """Changes when the rows change. (For large local files: when the size or one of the sampled places changes.)"""
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The data that the user's options name."""

    splits: Mapping[str, tuple[str, ...]]
    """Split to its files. Empty if only ``datasets`` knows where the rows come from."""
    builder: Callable[..., Any]
    """See ``Files``."""
    format: Format | None = None
    """None if the reader chosen by ``datasets`` decides."""
    reader: str = ""
    digest: str = ""
    """Identifies the contents if there are no files."""


def open_dataset(config: DataConfig) -> OpenDataset:
    """Open the dataset that the user named.

    Raises:
        UsageError: the dataset, split or file does not exist, or cannot be read.
    """
    path = Path(config.dataset)
    if path.is_file() and (config.data_files or config.dataset_config):
        option = "--data-files" if config.data_files else "--dataset-config"
        raise UsageError(f"{option} is for directories and Hub datasets, but --dataset {path} is a file. Leave it out.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--dataset {path} is a pipe, a socket or a device, which can be read only once. Copy it to a file."
        )
    try:
        return _open_saved(path, config) if saved.is_saved(path) else _open_found(_find(config), config)
    except StopIteration:  # datasets raises this on an empty JSON file
        raise UsageError(f"--dataset {config.dataset} has no rows.") from None
    except JobError:
        raise
    except Exception as error:
        if not is_foreign(error):
            raise
        is_local = path.exists() or set(config.dataset) & set("*?[") or config.dataset in READERS
        hint = "" if is_local else " (and there is no such file or directory)"
        raise UsageError(f"{explain(error, f'--dataset {config.dataset}')}{hint}") from None


def _open_saved(path: Path, config: DataConfig) -> OpenDataset:
    names = saved.split_names(path)
    if names is not None:
        split = _choose_split(names, config)
        dataset = saved.load_saved(path / split)
    else:
        dataset = saved.load_saved(path)
        split = _choose_split([str(dataset.split or config.split or "train")], config)
    files = [file["filename"] for file in dataset.cache_files]  # not *.arrow: map() also leaves its caches there
    return OpenDataset(source=TableSource(dataset), fingerprint=fingerprint(files), split=split)


def _open_found(found: _Found, config: DataConfig) -> OpenDataset:
    split = _choose_split(list(found.splits), config)
    names = found.splits[split]
    files = Files(config=config, split=split, names=names, builder=found.builder)
    contents = fingerprint(names) if names else f"{found.reader}-{found.digest}"
    known = found.format or format_of_reader(found.reader, names)
    return OpenDataset(source=known.open(files), fingerprint=contents, split=split)


def _find(config: DataConfig) -> _Found:
    """Return the files that the user named, or those that ``datasets`` finds.

    Raises:
        UsageError: no file exists, or the files have several formats.
    """
    path, patterns = Path(config.dataset), list(config.data_files)
    if config.dataset in READERS and patterns and not path.exists():
        files = _existing(patterns)
        return _found_files(files, format_of_reader(config.dataset, files))
    if path.is_dir():
        inside = f"{glob.escape(str(path))}/"
        if patterns:
            return _files_of_one_kind([inside + pattern for pattern in patterns])
        found = [pattern for pattern in PARTS_OF_A_RUN if any(path.glob(pattern))]
        is_run = (path / "journal").is_dir() or found
        if is_run and (path / "manifest.json").is_file():  # the output of another run
            return _files_of_one_kind([inside + (found or PARTS_OF_A_RUN)[0]])
        return _find_in_directory(path, config)
    if ending_of(config.dataset) in ENDINGS or path.exists() or any(c in config.dataset for c in "*?["):
        return _files_of_one_kind([config.dataset])
    if config.dataset.count("/") > 1 or config.dataset.startswith((".", "/", "~")):
        raise UsageError(f"--dataset {config.dataset}: there is no such file or directory.")
    return _resolved(config, data_files=patterns or None, revision=config.dataset_revision)


def _found_files(files: Sequence[str], known: Format) -> _Found:
    """Return files as a single split. Names are escaped because ``datasets`` treats every name as a glob."""
    escaped = [glob.escape(file) for file in files]
    builder = partial(_load_builder, known.reader, data_files={"train": escaped})
    return _Found(splits={"train": tuple(files)}, builder=builder, format=known)


def _resolved(config: DataConfig, **options: Any) -> _Found:
    """Let ``datasets`` resolve a directory or a Hub id."""
    load = partial(_load_builder, config.dataset, config.dataset_config, **options)
    builder = load()
    found = {str(split): tuple(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    for files in found.values() if config.data_files else ():
        if twice := [file for idx, file in enumerate(files) if file in files[:idx]]:
            raise UsageError(f"--data-files names {twice[0]} twice. Give patterns that do not overlap.")
    splits = found or {str(split): () for split in builder.info.splits or ()}
    return _Found(splits=splits, builder=load, reader=builder.name, digest=str(builder.hash))


def _load_builder(*args: Any, **options: Any) -> Any:
    import datasets

    return datasets.load_dataset_builder(*args, **options)


def _find_in_directory(directory: Path, config: DataConfig) -> _Found:
    """Let ``datasets`` resolve a directory, unless it would drop files: it reads only the most frequent kind.

    Raises:
        UsageError: there are several kinds, a name that ``datasets`` treats as a glob, or an ending that it overlooks.
    """
    if set(str(directory.resolve())) & set("*?["):
        raise UsageError(f"--dataset {directory}: a directory's name may not contain '*', '?' or '['. Name its files.")
    kinds: dict[str, list[Path]] = {}
    for file, known in _data_files(directory):
        kinds.setdefault(known.reader or known.module, []).append(file)
        if file.suffix != file.suffix.lower() or ending_of(file.name) not in file.suffixes:
            raise UsageError(
                f"--dataset {directory}: {file.name} would be overlooked: its ending is in capitals. Rename "
                "it, or name the files with --data-files, for example --data-files '*'."
            )
    if len(kinds) > 1:
        raise UsageError(
            f"--dataset {directory} holds files of several kinds: "
            f"{', '.join(sorted(files[0].name for files in kinds.values()))}. "
            "Choose with --data-files, for example --data-files '*.jsonl'."
        )
    for kind, files in kinds.items():
        if kind not in READERS:  # datasets would not find these files
            return _files_of_one_kind([glob.escape(str(file)) for file in files])
    return _resolved(config)


def _data_files(directory: Path) -> Iterator[tuple[Path, Format]]:
    """Yield the files of a directory that have one of our formats, except those that ``datasets`` skips."""
    for file in sorted(directory.rglob("*")):
        parts = file.relative_to(directory).parts  # hidden folders above it do not matter
        is_hidden = any(part.startswith(".") for part in parts) or any(part.startswith("__") for part in parts[:-1])
        known = format_of(file.name)
        if known is not None and not is_hidden:
            yield file, known


def _files_of_one_kind(patterns: Sequence[str]) -> _Found:
    files = _existing(patterns)
    endings = sorted({ending_of(file) for file in files})
    known = format_of(files[0])
    if known is None or len(endings) > 1:
        raise UsageError(
            f"--dataset {patterns[0]}: file endings {', '.join(ending or 'none' for ending in endings)}. "
            f"Give files that all have the same ending, one of {', '.join(ENDINGS)}."
        )
    return _found_files(files, known)


def _existing(patterns: Sequence[str]) -> list[str]:
    """Expand globs, each in sorted order. A file that several globs match is listed once, at its first place.

    Raises:
        UsageError: a pattern matches no file.
    """
    files: dict[Path, str] = {}
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        asked = [file for file in found if file.is_file() and _num_hidden(file) <= _num_hidden(path)]
        if not asked:
            raise UsageError(f"--dataset {pattern}: there is no such file{'' if found else ' or directory'}.")
        for file in asked:
            # Do not follow a link to its target: in a Hub cache, two files with equal contents are links to one file.
            files.setdefault(file.parent.resolve() / file.name, str(file.absolute()))
    return list(files.values())


def _num_hidden(path: Path) -> int:
    """Count the hidden parts of a path or pattern: a file that has more of them than the pattern was not asked for."""
    return sum(part.startswith(".") and part != ".." for part in path.parts)


def _choose_split(splits: Sequence[str], config: DataConfig) -> str:
    """Return the split to read: the requested one, else ``train``, else the only one."""
    wanted = config.split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise UsageError(
            f"--dataset {config.dataset} has no split {wanted!r}. Splits: {', '.join(splits) or 'none'}. Set --split."
        )
    return wanted

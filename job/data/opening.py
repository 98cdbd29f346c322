"""From the user's ``--dataset`` to a source: local forms are recognized, and everything else is a Hub id.

This module turns names into files, splits and a format; the format's module opens the files (``formats``). Which local
files are read is decided here and in ``listing``; ``datasets`` decides it for Hub ids, and for directories with a
dataset card that lists ``configs``.
"""

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from job.config import DataConfig
from job.data.dataset import DataFile, OpenDataset, Unread, writable
from job.data.formats import CONVERTED, ENDINGS, READERS, Format, check_options, ending_of, format_of_reader, saved
from job.data.formats.files import Files
from job.data.heads import check_heads
from job.data.listing import CARD, Listing, data_beside, list_directory
from job.data.patterns import list_patterns
from job.data.runs import RunInput, read_run, runs_of
from job.data.source import TableSource
from job.data.splits import choose_split, splits_of
from job.errors import JobError, UsageError, explain, is_foreign
from job.fingerprint import digest_of_ends, fingerprint
from job.wording import flag, unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The data that the user's options name."""

    splits: Mapping[str, tuple[str, ...]]
    """Split to its files. Empty if only ``datasets`` knows where the rows come from."""
    builder: Callable[..., Any]
    """See ``Files``."""
    root: Path | None = None
    """The directory to which the names of local files are relative."""
    format: Format | None = None
    """None if the reader chosen by ``datasets`` decides."""
    reader: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """See ``Files``."""
    digest: str = ""
    """Identifies the contents if there are no files."""
    must_choose: bool = False
    """Whether the user must choose a split, because the names only look like several."""
    unread: tuple[Unread, ...] = ()
    remarks: tuple[str, ...] = ()


def open_dataset(config: DataConfig, *, output: Path | None = None, is_older: bool = False) -> OpenDataset:
    """Open the dataset that the user named.

    Args:
        output: the run directory, which is never its own input.
        is_older: whether version 0.2 or older started the run: it goes on with what ``datasets`` reads.

    Raises:
        UsageError: the dataset, split or file does not exist, or cannot be read.
    """
    path = Path(config.dataset)
    _check_choosing(path, config, is_older)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--dataset {path} is a pipe, a socket or a device, which can be read only once. Copy it to a file."
        )
    try:
        if saved.is_saved(path):
            return _open_saved(path, config)
        return _open_found(_find(config, output, is_older), config, is_older)
    except StopIteration:  # datasets raises this on an empty JSON file
        raise UsageError(f"--dataset {config.dataset} has no rows.") from None
    except JobError:
        raise
    except Exception as error:
        if not is_foreign(error):
            raise
        is_local = path.exists() or set(config.dataset) & set("*?[") or config.dataset in READERS
        if isinstance(error, ConnectionError) and not is_local:
            raise UsageError(unreachable("--dataset", config.dataset, "dataset")) from None
        hint = _cache_hint(error) or ("" if is_local else " (and there is no such file or directory)")
        raise UsageError(f"--dataset {config.dataset}: {explain(error, config.dataset)}{hint}") from None


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


def _open_found(found: _Found, config: DataConfig, is_older: bool) -> OpenDataset:
    split = choose_split(list(found.splits), config, must_choose=found.must_choose)
    names = found.splits[split]
    if found.format is not None and config.dataset_config and not is_older:
        raise UsageError(
            f"--dataset-config {config.dataset_config} has no effect: no README.md that lists configs chooses the "
            f"files of --dataset {config.dataset}. Leave it out."
        )
    known = found.format or format_of_reader(found.reader, names)
    check_options(known, config)
    files = Files(
        config=config, split=split, names=names, builder=found.builder, options=found.options, is_older=is_older
    )
    if not is_older:
        check_heads(files.local_names, known)
    opened = known.open(files)
    return OpenDataset(
        source=opened.source,
        reading=opened.reading,
        fingerprint=fingerprint(names) if names else f"{found.reader}-{found.digest}",
        split=split,
        files=_data_files(names, found.root),
        other_splits=tuple(name for name in found.splits if name != split),
        unread=found.unread,
        remarks=(*found.remarks, *opened.notes),
    )


def _data_files(names: Sequence[str], root: Path | None) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(name=name.partition("@")[2].partition("/")[2] or name)
        if "://" in name
        else DataFile(
            name=writable(os.path.relpath(name, root)),
            num_bytes=Path(name).stat().st_size,
            digest=digest_of_ends(Path(name)),
        )
        for name in names
    )


def _find(config: DataConfig, output: Path | None, is_older: bool) -> _Found:
    """Return the files that the user named, or those that lie in the directory that the user named.

    Raises:
        UsageError: no file exists, or the files have several formats.
    """
    path, patterns = Path(config.dataset), list(config.data_files)
    if config.dataset in READERS and patterns and not path.exists():
        listing = list_patterns(patterns, output, one_format=False)
        return _listed(listing, format_of_reader(config.dataset, list(map(str, listing.files))))
    if path.is_dir() and patterns:
        return _listed(list_patterns([f"{glob.escape(str(path))}/{pattern}" for pattern in patterns], output))
    if path.is_dir() and (run := read_run(path)) is not None:
        return _listed(_list_run(run))
    if path.is_dir():
        return _find_in_directory(path, config, is_older)
    if ending_of(config.dataset) in ENDINGS or path.exists() or any(c in config.dataset for c in "*?["):
        return _listed(list_patterns([config.dataset], output))
    if config.dataset.count("/") > 1 or config.dataset.startswith((".", "/", "~")):
        raise UsageError(f"--dataset {config.dataset}: there is no such file or directory.")
    return _resolved(config, data_files=patterns or None, revision=config.dataset_revision)


def _list_run(run: RunInput) -> Listing:
    """Return the parts of a finished run.

    Raises:
        UsageError: it is not finished.
    """
    if run.num_missing or not run.parts:
        place = run.parts[0].relative_to(run.path).parent if run.parts else None
        advice = "" if place is None else f", or read what is there with --data-files '{place / 'part-*.parquet'}'"
        raise UsageError(f"--dataset {run.path} is an unfinished run: {run.state}. Finish it first{advice}.")
    return Listing(root=run.path, files=tuple(run.parts))


def _find_in_directory(directory: Path, config: DataConfig, is_older: bool) -> _Found:
    configs = _configs(directory)
    if is_older or configs:
        if config.dataset_config is None and len(configs) > 1 and not any(configs.values()):
            names = ", ".join(configs)
            raise UsageError(f"--dataset {directory} has the configurations {names}. Choose with --dataset-config.")
        found = _resolved(config)
        files = [file for files in found.splits.values() for file in files]
        beside = data_beside(directory, files) if files and "://" not in files[0] else ()
        return replace(found, root=directory, unread=beside)
    return _listed(list_directory(directory), by_splits=True)


def _configs(directory: Path) -> dict[str, bool]:
    """Return the configurations in a directory's dataset card, which say what files are which split, and whether each
    is the default.
    """
    from huggingface_hub import metadata_load

    card = directory / CARD
    if not card.is_file():
        return {}
    try:
        configs = (metadata_load(card) or {}).get("configs") or []
    except UnicodeDecodeError:  # a card is UTF-8
        return {}
    except Exception as error:
        if not is_foreign(error):
            raise
        raise UsageError(f"{card} has a header that is not YAML. Correct it, or move the file away.") from None
    names = [(str(each.get("config_name", "default")), each) for each in configs if isinstance(each, dict)]
    return {name: name == "default" or bool(each.get("default")) for name, each in names}


def _listed(listing: Listing, known: Format | None = None, *, by_splits: bool = False) -> _Found:
    """Return the files of a listing, with remarks on unfinished runs among them."""
    paths = {os.path.relpath(file, listing.root): str(file.absolute()) for file in listing.files}
    splits = splits_of(list(paths)) if by_splits else None
    files = {"train": tuple(paths)} if splits is None else splits.files
    absolute = {split: tuple(paths[name] for name in names) for split, names in files.items()}
    known = known or listing.format
    # Names are escaped because datasets treats every name as a glob.
    escaped = {split: [glob.escape(name) for name in names] for split, names in absolute.items()}
    unfinished = [run for run in runs_of(listing.files) if run.num_missing]
    return _Found(
        splits=absolute,
        builder=partial(_load_builder, known.reader, data_files=escaped),
        root=listing.root,
        format=known,
        must_choose=splits is not None and not splits.is_plain,
        unread=listing.unread,
        remarks=tuple(f"{run.path} is an unfinished run: {run.state}" for run in unfinished),
    )


def _resolved(config: DataConfig, **options: Any) -> _Found:
    """Let ``datasets`` resolve a directory or a Hub id."""
    if Path(config.dataset).is_dir() and set(str(Path(config.dataset).resolve())) & set("*?["):
        raise UsageError(
            f"--dataset {config.dataset}: the name of a directory whose README.md lists configs may not contain '*', "
            "'?' or '['. Name its files."
        )
    load = partial(_load_builder, config.dataset, config.dataset_config, **options)
    builder = load()
    found = {str(split): tuple(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    for files in found.values() if config.data_files else ():
        if twice := [file for idx, file in enumerate(files) if file in files[:idx]]:
            raise UsageError(f"--data-files names {twice[0]} twice. Give patterns that do not overlap.")
    splits = found or {str(split): () for split in builder.info.splits or ()}
    return _Found(
        splits=splits, builder=load, reader=builder.name, options=_card_options(builder), digest=str(builder.hash)
    )


def _card_options(builder: Any) -> dict[str, Any]:
    """Return the options for the reader that the dataset's card gives."""
    import datasets

    known = {entry.name for entry in fields(datasets.BuilderConfig)}
    own = [entry for entry in fields(builder.config) if entry.name not in known]
    given = {entry.name: getattr(builder.config, entry.name) for entry in own if entry.default is not MISSING}
    return {entry.name: given[entry.name] for entry in own if given.get(entry.name, entry.default) != entry.default} | (
        {} if builder.info.features is None else {"features": builder.info.features}
    )


def _load_builder(*args: Any, **options: Any) -> Any:
    import datasets

    return datasets.load_dataset_builder(*args, **options)

"""Which files a dataset's name means, and which split each belongs to. They are files of this machine; those of other
places are chosen by their names in a directory that only has the names (``remote_files``).

The rules are in ``listing``; ``datasets`` decides for directories with a dataset card that lists ``configs``.
"""

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from job.config import DataConfig
from job.data.dataset import OpenDataset, Unread, some
from job.data.formats import ENDINGS, READERS, Format, check_options, ending_of, format_of_reader
from job.data.formats.files import Opened, load_builder
from job.data.listing import CARD, Listing, data_beside, list_directory
from job.data.patterns import list_patterns
from job.data.runs import RunInput, read_input, runs_below, runs_of
from job.data.splits import choose_split, splits_of
from job.errors import JobError, UsageError, explain, is_foreign
from job.wording import flag, meant

SHOWN_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The data that the user's options name."""

    splits: Mapping[str, tuple[str, ...]]
    """Split to its files: absolute paths, or names in a tree."""
    builder: Callable[..., Any] | None = None
    """See ``Files``. None if the reader in ``datasets`` needs no more than the files and ``options``."""
    root: Path | None = None
    """The directory to which the names of files are relative."""
    format: Format | None = None
    """None if the reader chosen by ``datasets`` decides."""
    reader: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """See ``Files``."""
    must_choose: bool = False
    """Whether the user must choose a split, because the names only look like several."""
    unread: tuple[Unread, ...] = ()
    runs: tuple[RunInput, ...] = ()
    """The runs whose parts the files are, if they are parts and nothing else."""
    remarks: tuple[str, ...] = ()

    def chosen(self, config: DataConfig, *, is_older: bool = False) -> tuple[str, Format]:
        """Return the split to read, and the format of its files.

        Raises:
            UsageError: there is no such split, or an option is for other data.
        """
        split = choose_split(list(self.splits), config, must_choose=self.must_choose)
        if self.format is not None and config.dataset_config and not is_older:
            raise UsageError(
                f"--dataset-config {config.dataset_config} has no effect: no README.md that lists configs chooses the "
                f"files of --dataset {config.dataset}. Leave it out."
            )
        known = self.format or format_of_reader(self.reader, self.splits[split])
        check_options(known, config)
        return split, known

    def opened(self, split: str, opened: Opened, **values: Any) -> OpenDataset:
        """Return the dataset, with what is to be said about it.

        Args:
            values: its other fields.
        """
        return OpenDataset(
            source=opened.source,
            reading=opened.reading,
            infers_types=opened.infers_types,
            split=split,
            other_splits=tuple(name for name in self.splits if name != split),
            unread=self.unread,
            runs=self.runs,
            remarks=(*self.remarks, *opened.notes),
            **values,
        )


def find_files(config: DataConfig, output: Path | None, is_older: bool) -> Found:
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
    if path.is_dir() and (run := read_input(path)) is not None:
        return _listed(_list_run(run, is_partial=config.partial))
    if path.is_dir():
        return _find_in_directory(path, config, is_older)
    if _names_files(config.dataset):
        return _listed(list_patterns([config.dataset], output))
    raise UsageError(f"--dataset {config.dataset}: there is no such file or directory.{_advice(path)}")


def is_local(config: DataConfig) -> bool:
    """Whether a dataset's name can only mean files of this machine."""
    name = config.dataset
    is_reader = name in READERS and bool(config.data_files)
    is_path = _names_files(name) or name.count("/") > 1 or name.startswith((".", "/", "~"))
    return is_reader or is_path or ("/" in name and bool(runs_below(Path(name).parent)))


def _advice(path: Path) -> str:
    """Return what a path may mean that does not exist: one beside it, or a dataset of the Hub."""
    folder, runs = path.parent, runs_below(path.parent)
    close = meant(path.name, [entry.name for entry in folder.iterdir()] if folder.is_dir() else [])
    question = "" if close is None else f" Did you mean {folder / close}?"
    there = f" Runs in {folder}: {some(runs, SHOWN_RUNS)}." if runs else ""
    of_hub = f" A dataset of the Hub is hf://datasets/{path}." if runs and str(path).count("/") == 1 else ""
    return f"{question}{there}{of_hub}"


def _names_files(name: str) -> bool:
    return Path(name).exists() or ending_of(name) in ENDINGS or any(c in name for c in "*?[")


def refuse_choosing(config: DataConfig, what: str) -> None:
    """Refuse options that choose among files if the dataset is a file, or has been chosen already.

    Args:
        what: what the dataset is.

    Raises:
        UsageError: such an option was given.
    """
    for name in (name for name in ("data_files", "dataset_config") if getattr(config, name)):
        raise UsageError(
            f"{flag(name)} is for directories and Hub datasets, but --dataset {config.dataset} is {what}. Leave it out."
        )


def check_config(dataset: object, wanted: str | None, configs: Mapping[str, bool]) -> None:
    """Check that it is clear which configuration is meant.

    Args:
        configs: each configuration, and whether it is the default.

    Raises:
        UsageError: it does not exist, or the user must choose one.
    """
    names = ", ".join(configs)
    if wanted is None and len(configs) > 1 and not any(configs.values()):
        raise UsageError(f"--dataset {dataset} has the configurations {names}. Choose with --dataset-config.")
    if wanted is not None and wanted not in configs:
        raise UsageError(
            f"--dataset {dataset} has no configuration {wanted!r}. Configurations: {names}. Set --dataset-config."
        )


def _list_run(run: RunInput, *, is_partial: bool) -> Listing:
    """Return the parts of a finished run, or those that are there if that is what the user wants.

    Raises:
        UsageError: it is not finished, or has no part yet.
    """
    if not run.parts or (run.num_missing and not is_partial):
        advice = "Finish it first, or read what is there with --partial."
        if not run.parts:
            advice = "Finish it first: --partial reads whole parts, and there is none yet."
        raise UsageError(f"--dataset {run.path} is an unfinished run: {run.state}. {advice}")
    return Listing(root=run.path, files=tuple(run.parts))


def _find_in_directory(directory: Path, config: DataConfig, is_older: bool) -> Found:
    configs = configs_in(directory)
    if is_older or configs:
        if configs:
            check_config(directory, config.dataset_config, configs)
        found = _resolved(config)
        files = [file for files in found.splits.values() for file in files]
        return replace(found, root=directory, unread=data_beside(directory, files))
    return _listed(list_directory(directory), by_splits=True)


def configs_in(directory: Path) -> dict[str, bool]:
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
        raise UsageError(
            f"{card} has a header that is not YAML. Correct it, or choose files with --data-files."
        ) from None
    names = [(str(each.get("config_name", "default")), each) for each in configs if isinstance(each, dict)]
    return {name: name == "default" or bool(each.get("default")) for name, each in names}


def _listed(listing: Listing, known: Format | None = None, *, by_splits: bool = False) -> Found:
    """Return the files of a listing, with remarks on unfinished runs among them."""
    paths = {os.path.relpath(file, listing.root): str(file.absolute()) for file in listing.files}
    splits = splits_of(list(paths)) if by_splits else None
    files = {"train": tuple(paths)} if splits is None else splits.files
    absolute = {split: tuple(paths[name] for name in names) for split, names in files.items()}
    known = known or listing.format
    runs = runs_of(listing.files)
    unfinished = [run for run in runs if run.num_missing]
    of_runs = {part for run in runs for part in run.parts}
    return Found(
        splits=absolute,
        root=listing.root,
        format=known,
        must_choose=splits is not None and not splits.is_plain,
        unread=listing.unread,
        runs=tuple(runs) if of_runs.issuperset(listing.files) else (),
        remarks=tuple(f"{run.path} is an unfinished run: {run.state}" for run in unfinished),
    )


def _resolved(config: DataConfig) -> Found:
    """Let ``datasets`` resolve a directory."""
    if set(str(Path(config.dataset).resolve())) & set("*?["):
        raise UsageError(
            f"--dataset {config.dataset}: the name of a directory whose README.md lists configs may not contain '*', "
            "'?' or '['. Name its files."
        )
    load = partial(load_builder, config.dataset, config.dataset_config)
    builder = load()
    found = {str(split): tuple(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    for name in (name for files in found.values() for name in files if "://" in name):
        raise UsageError(
            f"--dataset {config.dataset}: its {CARD} lists {name}, which is elsewhere. Choose files with --data-files."
        )
    return Found(splits=found, builder=load, reader=builder.name, options=_card_options(builder))


def _card_options(builder: Any) -> dict[str, Any]:
    """Return the options for the reader that the dataset's card gives."""
    import datasets

    known = {entry.name for entry in fields(datasets.BuilderConfig)}
    own = [entry for entry in fields(builder.config) if entry.name not in known]
    given = {entry.name: getattr(builder.config, entry.name) for entry in own if entry.default is not MISSING}
    return {entry.name: given[entry.name] for entry in own if given.get(entry.name, entry.default) != entry.default} | (
        {} if builder.info.features is None else {"features": builder.info.features}
    )


@contextmanager
def explained(config: DataConfig) -> Iterator[None]:
    """Word what libraries raise while a dataset is opened.

    Raises:
        UsageError: they have raised something.
    """
    try:
        yield
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

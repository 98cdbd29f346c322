"""From what the user typed to a source: local forms are recognised, everything else is a Hub id.

``datasets`` resolves names (splits, configurations, data files); reading is done by the cheapest source that can.
"""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from job.config import DataConfig
from job.data.converting import empty_dataset, open_converted
from job.data.lines import LinesSource
from job.data.parquet import ParquetSource
from job.data.source import Source, TableSource
from job.errors import UsageError, first_line
from job.fingerprint import fingerprint

BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".arrow": "arrow",
}
LINES = (".jsonl", ".ndjson", ".txt")
COMPRESSED = (".gz", ".zst")

CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
"""Only an empty cell is a null: pandas would make one of the texts NA, None, null and a dozen others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDataset:
    """A source and what identifies its contents."""

    source: Source
    fingerprint: str
    """Changes when the rows do (for large local files: when their size or one of some sampled places does)."""
    split: str


def open_dataset(config: DataConfig, kept: Sequence[str] = ()) -> OpenDataset:
    """Open the dataset that the user named.

    Args:
        kept: columns whose types must be known for sure, see ``LinesSource.with_types``.

    Raises:
        UsageError: there is no such dataset, split, file; or it cannot be read.
    """
    import datasets

    path = Path(config.dataset)
    if path.is_file() and (config.data_files or config.dataset_config):
        option = "--data-files" if config.data_files else "--dataset-config"
        raise UsageError(f"{option} chooses within a directory or a Hub dataset, but --dataset {path} is a file.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--dataset {path} is a pipe, a socket or a device, which can be read once. Copy it to a file."
        )
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _open_saved(path, config)
        return _open_built(_builder(config), config, kept)
    except StopIteration:  # what datasets raises on an empty JSON file
        raise UsageError(f"--dataset {config.dataset} has no rows.") from None
    except (OSError, ValueError, KeyError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        is_local = path.exists() or set(config.dataset) & set("*?[") or config.dataset in BUILDERS.values()
        hint = "" if is_local else " (and there is no such file or directory)"
        raise UsageError(f"--dataset {config.dataset}: {_reason(error)}{hint}") from None


def _open_saved(path: Path, config: DataConfig) -> OpenDataset:
    """Open a directory that ``save_to_disk`` wrote."""
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        split = _choose_split(splits, config)
        path /= split
        dataset = _load_saved(path)
    else:
        dataset = _load_saved(path)
        split = _choose_split([str(dataset.split or config.split or "train")], config)
    files = [file["filename"] for file in dataset.cache_files]  # not *.arrow: map() leaves its caches there, too
    return OpenDataset(source=TableSource(dataset), fingerprint=fingerprint(files), split=split)


def _load_saved(path: Path) -> Any:
    """Return a saved split. (``datasets`` saves one without rows, but cannot load it.)"""
    import datasets

    state = json.loads((path / "state.json").read_text())
    if state["_data_files"]:
        return datasets.load_from_disk(str(path))
    return empty_dataset(datasets.DatasetInfo.from_directory(str(path)).features, state["_split"])


def _load_builder(*args: Any, **options: Any) -> Any:
    """Let ``datasets`` find out what there is; csv is read our way, unless the dataset has a way of its own."""
    import datasets

    builder = datasets.load_dataset_builder(*args, **options)
    if builder.name == "csv" and builder.config.keep_default_na and not builder.config.na_values:
        return datasets.load_dataset_builder(*args, **options, **CSV_OPTIONS)
    return builder


def _builder(config: DataConfig, **options: Any) -> Any:
    """Return what reads the dataset.

    Args:
        options: for the builder of ``datasets``.
    """
    path, files = Path(config.dataset), list(config.data_files)
    if config.dataset in set(BUILDERS.values()) and files and not path.exists():
        return _load_builder(config.dataset, data_files=_escaped(_existing(files)), **options)
    if path.is_dir():
        if files:
            return _builder_of_files([f"{glob.escape(str(path))}/{file}" for file in files], **options)
        is_run = (path / "journal").is_dir() or any(path.glob("part-*.parquet"))
        if is_run and (path / "manifest.json").is_file():  # the output of another run
            return _builder_of_files([f"{glob.escape(str(path))}/part-*.parquet"], **options)
        _check_one_kind(path)
        return _load_builder(str(path), config.dataset_config, **options)
    if path.suffix.lower() in BUILDERS or path.exists() or any(c in config.dataset for c in "*?["):
        return _builder_of_files([config.dataset], **options)
    if config.dataset.count("/") > 1 or config.dataset.startswith((".", "/", "~")):
        raise UsageError(f"--dataset {config.dataset}: there is no such file or directory.")
    return _load_builder(
        config.dataset, config.dataset_config, data_files=files or None, revision=config.dataset_revision, **options
    )


def _check_one_kind(directory: Path) -> None:
    """Refuse a directory of several kinds of files: ``datasets`` would read the most frequent kind and drop the rest.

    Raises:
        UsageError: more than one kind, or a name that ``datasets`` takes for a glob, or an ending that it overlooks.
    """
    if set(str(directory)) & set("*?["):
        raise UsageError(f"--dataset {directory}: a directory's name may not hold '*', '?' or '['. Name its files.")
    kinds: dict[str, str] = {}
    for file in directory.rglob("*"):
        if _kind(file) in BUILDERS and not any(part.startswith((".", "__")) for part in file.parts):
            kinds.setdefault(BUILDERS[_kind(file)], file.name)
            if file.suffix != file.suffix.lower() or _kind(file) not in file.suffixes:
                raise UsageError(
                    f"--dataset {directory}: {file.name} would be overlooked: its ending is in capitals. Rename "
                    "it, or name the files with --data-files, for example --data-files '*'."
                )
    if len(kinds) > 1:
        raise UsageError(
            f"--dataset {directory} holds files of several kinds: {', '.join(sorted(kinds.values()))}. "
            "Choose with --data-files, for example --data-files '*.jsonl'."
        )


def _kind(path: Path) -> str:
    """Return the ending that says how to read a file.

    >>> _kind(Path("a.JSONL.gz"))
    '.jsonl'
    """
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


def _builder_of_files(patterns: list[str], **options: Any) -> Any:
    files = _existing(patterns)
    suffixes = {_kind(Path(name)) for name in files}
    if len(suffixes) > 1 or not suffixes <= set(BUILDERS):
        raise UsageError(
            f"--dataset {patterns[0]}: files of kind {', '.join(sorted(suffixes)) or 'none'}. "
            f"Give files of one kind among {', '.join(BUILDERS)}."
        )
    suffix = suffixes.pop()
    if suffix == ".tsv":
        options["sep"] = "\t"
    return _load_builder(BUILDERS[suffix], data_files={"train": _escaped(files)}, **options)


def _existing(patterns: list[str]) -> list[str]:
    """Expand globs, in sorted order.

    Raises:
        UsageError: a pattern matches nothing.
    """
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not any(file.is_file() for file in found):
            raise UsageError(f"--dataset {pattern}: there is no such file{'' if found else ' or directory'}.")
        files += [str(file.absolute()) for file in found if file.is_file()]
    return files


def _escaped(files: list[str]) -> list[str]:
    """Name files to ``datasets``, which takes every name for a glob."""
    return [glob.escape(file) for file in files]


def _open_built(builder: Any, config: DataConfig, kept: Sequence[str]) -> OpenDataset:
    data_files = builder.config.data_files or {}
    split = _choose_split([str(name) for name in data_files] or list(builder.info.splits or []), config)
    files = [str(file) for file in data_files.get(split, [])]
    local = bool(files) and not any("://" in file for file in files)
    contents = fingerprint(files) if files else f"{builder.name}-{builder.hash}"
    source: Source
    if builder.name == "parquet" and (local or config.streaming):
        source = ParquetSource(files)
    elif local and all(file.lower().endswith(LINES) for file in files):
        source = LinesSource(files, is_json=builder.name == "json", limit=config.limit)
        source.with_types(source.schema.names if "*" in config.keep_columns else kept)
    else:
        source = open_converted(builder, split, config, files if local else [], partial(_builder, config))
    return OpenDataset(source=source, fingerprint=contents, split=split)


def _choose_split(splits: Sequence[str], config: DataConfig) -> str:
    """Return the split to read: as asked, else ``train``, else the only one."""
    wanted = config.split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise UsageError(
            f"--dataset {config.dataset} has no split {wanted!r}. Splits: {', '.join(splits) or 'none'}. Set --split."
        )
    return wanted


def _reason(error: BaseException) -> str:
    """Return the cause of a library's error in one line."""
    while error.__cause__ is not None:  # datasets wraps: the last cause names the file and the line
        error = error.__cause__
    return first_line(error)

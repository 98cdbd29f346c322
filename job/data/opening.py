"""From what the user typed to a source: local forms are recognised, everything else is a Hub id.

``datasets`` resolves names (splits, configurations, data files); reading is done by the cheapest source that can.
"""

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from job.config import DataConfig
from job.data.lines import LinesSource
from job.data.source import ParquetSource, Source, StreamSource, TableSource, count_rows
from job.errors import UsageError

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
SAMPLED_BLOCKS, SAMPLED_BYTES = 1024, 64 << 10
"""Of local files, about so many blocks of so many bytes are hashed: 64 MiB, in all files together."""


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
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _open_saved(path, config)
        return _open_built(_builder(config), config, kept)
    except (OSError, ValueError, KeyError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"--dataset {config.dataset}: {_reason(error)}") from None


def _open_saved(path: Path, config: DataConfig) -> OpenDataset:
    """Open a directory that ``save_to_disk`` wrote."""
    import datasets

    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        split = _choose_split(splits, config)
        path /= split
        dataset = datasets.load_from_disk(str(path))
    else:
        dataset = datasets.load_from_disk(str(path))
        split = _choose_split([str(dataset.split or config.split or "train")], config)
    files = [file["filename"] for file in dataset.cache_files]  # not *.arrow: map() leaves its caches there, too
    return OpenDataset(source=TableSource(dataset), fingerprint=_fingerprint(files), split=split)


def _builder(config: DataConfig) -> Any:
    """Let ``datasets`` find out what there is."""
    import datasets

    path, files = Path(config.dataset), list(config.data_files)
    if config.dataset in set(BUILDERS.values()) and files and not path.exists():
        return datasets.load_dataset_builder(config.dataset, data_files=_escaped(_existing(files)))
    if path.is_dir():
        if files:
            return _builder_of_files([str(path / file) for file in files])
        if (path / "manifest.json").is_file() and (path / "journal").is_dir():  # the output of another run
            return _builder_of_files([str(path / "part-*.parquet")])
        return datasets.load_dataset_builder(str(path), config.dataset_config)
    if path.suffix in BUILDERS or path.exists() or any(c in config.dataset for c in "*?["):
        return _builder_of_files([config.dataset])
    if config.dataset.count("/") > 1 or config.dataset.startswith((".", "/", "~")):
        raise UsageError(f"--dataset {config.dataset}: there is no such file or directory.")
    return datasets.load_dataset_builder(config.dataset, config.dataset_config, data_files=files or None)


def _builder_of_files(patterns: list[str]) -> Any:
    import datasets

    files = _existing(patterns)
    suffixes = {Path(name.removesuffix(".gz").removesuffix(".zst")).suffix for name in files}
    if len(suffixes) > 1 or not suffixes <= set(BUILDERS):
        raise UsageError(
            f"--dataset {patterns[0]}: files of kind {', '.join(sorted(suffixes)) or 'none'}. "
            f"Give files of one kind among {', '.join(BUILDERS)}."
        )
    suffix = suffixes.pop()
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return datasets.load_dataset_builder(BUILDERS[suffix], data_files={"train": _escaped(files)}, **options)


def _existing(patterns: list[str]) -> list[str]:
    """Expand globs, in sorted order.

    Raises:
        UsageError: a pattern matches nothing.
    """
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not found:
            raise UsageError(f"--dataset {pattern}: there is no such file or directory.")
        files += [str(file.absolute()) for file in found if file.is_file()]
    return files


def _escaped(files: list[str]) -> list[str]:
    """Name files to ``datasets``, which takes every name for a glob."""
    return [glob.escape(file) for file in files]


def _open_built(builder: Any, config: DataConfig, kept: Sequence[str]) -> OpenDataset:
    import datasets

    data_files = builder.config.data_files or {}
    split = _choose_split([str(name) for name in data_files] or list(builder.info.splits or []), config)
    files = [str(file) for file in data_files.get(split, [])]
    local = bool(files) and not any("://" in file for file in files)
    fingerprint = _fingerprint(files) if files else f"{builder.name}-{builder.hash}"
    source: Source
    if builder.name == "parquet" and (local or config.streaming):
        source = ParquetSource(files)
    elif local and all(file.endswith(LINES) for file in files):
        source = LinesSource(files, is_json=builder.name == "json", limit=config.limit)
        source.with_types(source.schema.names if "*" in config.keep_columns else kept)
    elif config.streaming:
        source = _open_stream(builder, split, config)
    else:
        builder.download_and_prepare()
        source = TableSource(builder.as_dataset(split=datasets.Split(split)))
    return OpenDataset(source=source, fingerprint=fingerprint, split=split)


def _open_stream(builder: Any, split: str, config: DataConfig) -> StreamSource:
    dataset = builder.as_streaming_dataset(split=split)
    known = (builder.info.splits or {}).get(split)
    num_rows = known.num_examples if known and known.num_examples else count_rows(dataset, config.limit)
    if dataset.features is not None:
        return StreamSource(dataset, num_rows, dataset.features.arrow_schema)
    return StreamSource(dataset, num_rows, next(iter(dataset.with_format("arrow").iter(batch_size=1000))).schema)


def _choose_split(splits: Sequence[str], config: DataConfig) -> str:
    """Return the split to read: as asked, else ``train``, else the only one."""
    wanted = config.split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise UsageError(
            f"--dataset {config.dataset} has no split {wanted!r}. Splits: {', '.join(splits) or 'none'}. Set --split."
        )
    return wanted


def _fingerprint(files: Sequence[str]) -> str:
    """Hash the files' contents: all of small ones, some places of large ones, their ends included.

    Of local names, only the ending counts: it decides how the contents are read. Remote names hold their commit.
    """
    digest = hashlib.sha256()
    blocks_per_file = max(2, SAMPLED_BLOCKS // max(1, len(files)))
    for file in files:
        if "://" in file:
            digest.update(file.encode())
            continue
        path = Path(file)
        size = path.stat().st_size
        digest.update(f"{path.suffix}\0{size}\0".encode())
        step = max(SAMPLED_BYTES, -(-(size - SAMPLED_BYTES) // (blocks_per_file - 1)))
        with path.open("rb") as stream:
            for offset in range(0, size, step):
                stream.seek(offset)
                digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]


def _reason(error: BaseException) -> str:
    """Return the cause of a library's error in one line."""
    while error.__cause__ is not None:  # datasets wraps: the last cause names the file and the line
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""Directories written by ``save_to_disk`` of ``datasets``: Arrow files, with their description in JSON."""

import json
from pathlib import Path
from typing import Any

from job.data.formats.converted import empty_dataset
from job.errors import UsageError, reading


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this directory."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def split_names(path: Path) -> list[str] | None:
    """Return the names of the splits in a directory; None if the directory is a single split."""
    names = path / "dataset_dict.json"
    return list(_value(names, "splits")) if names.is_file() else None


def load_saved(path: Path) -> Any:
    """Return a saved split, even one without rows, which ``datasets`` can save but not load."""
    import datasets

    state = path / "state.json"
    with reading(str(path)):
        if _value(state, "_data_files"):
            return datasets.load_from_disk(str(path))
        return empty_dataset(datasets.DatasetInfo.from_directory(str(path)).features, _value(state, "_split"))


def _value(file: Path, name: str) -> Any:
    """Return a value from a file that describes a saved dataset.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))[name]
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"{file} is not a file of save_to_disk: it has no {name!r}. Save the dataset again.") from None

"""Directories written by ``save_to_disk`` of ``datasets``: Arrow files, with their description in JSON."""

import json
from pathlib import Path
from typing import Any

from job.data.formats.converted import empty_dataset


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this directory."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def split_names(path: Path) -> list[str] | None:
    """Return the names of the splits in a directory; None if the directory is a single split."""
    names = path / "dataset_dict.json"
    return list(json.loads(names.read_text(encoding="utf-8"))["splits"]) if names.is_file() else None


def load_saved(path: Path) -> Any:
    """Return a saved split, even one without rows, which ``datasets`` can save but not load."""
    import datasets

    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["_data_files"]:
        return datasets.load_from_disk(str(path))
    return empty_dataset(datasets.DatasetInfo.from_directory(str(path)).features, state["_split"])

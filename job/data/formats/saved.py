"""Directories that ``save_to_disk`` of ``datasets`` wrote: Arrow files, and what they are in JSON."""

import json
from pathlib import Path
from typing import Any

from job.data.formats.converted import empty_dataset


def is_saved(path: Path) -> bool:
    """Whether a directory is one of these."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def split_names(path: Path) -> list[str] | None:
    """Return the splits in a directory; None if it holds one alone."""
    names = path / "dataset_dict.json"
    return list(json.loads(names.read_text(encoding="utf-8"))["splits"]) if names.is_file() else None


def load_saved(path: Path) -> Any:
    """Return a saved split. (``datasets`` saves one without rows, but cannot load it.)"""
    import datasets

    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["_data_files"]:
        return datasets.load_from_disk(str(path))
    return empty_dataset(datasets.DatasetInfo.from_directory(str(path)).features, state["_split"])

"""Run directories of ``job`` among the data: as the input of another run, or below a dataset's directory.

Only the manifest and the names of parts are used, which are public: the README describes them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PART = re.compile(r"part-(\d+)\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """A run directory."""

    path: Path
    num_rows: int
    """The rows of its plan."""
    rows_per_shard: int
    parts: Sequence[Path]

    @property
    def num_missing(self) -> int:
        """How many rows are not in parts yet."""
        there = {int(match[1]) for part in self.parts if (match := PART.fullmatch(part.name))}
        missing = set(range(-(-self.num_rows // self.rows_per_shard))) - there
        return sum(min(self.rows_per_shard, self.num_rows - idx * self.rows_per_shard) for idx in missing)

    @property
    def state(self) -> str:
        """How unfinished the run is, for a message."""
        return f"{self.num_missing:,} of {self.num_rows:,} rows are missing"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, or one that a run has prepared and not claimed yet."""
    return read_run(folder) is not None or all((folder / name).is_dir() for name in ("journal", "leases", "metrics"))


def read_run(folder: Path) -> RunInput | None:
    """Return what a run directory holds; None if the folder is something else."""
    if not (folder / "manifest.json").is_file():
        return None
    parts = sorted(path for place in (folder, folder / "data") for path in place.glob("part-*.parquet"))
    try:
        plan = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["identity"]["plan"]
        num_rows, rows_per_shard = int(plan["num_rows"]), max(1, int(plan["rows_per_shard"]))
    except (OSError, ValueError, LookupError, TypeError):  # a manifest of something else, or a damaged one
        if not (parts or (folder / "journal").is_dir()):
            return None
        num_rows, rows_per_shard = 0, 1
    return RunInput(path=folder, num_rows=num_rows, rows_per_shard=rows_per_shard, parts=parts)


def runs_of(files: Sequence[Path]) -> list[RunInput]:
    """Return the run directories whose parts are among the files."""
    folders = {folder: None for file in files if PART.fullmatch(file.name) for folder in list(file.parents)[:2]}
    return [run for folder in folders if (run := read_run(folder)) is not None]

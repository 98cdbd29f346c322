"""Run directories of ``job`` among the data: as the input of another run, or below a dataset's directory.

Only the manifest and the names of parts are used, which are public: the README describes them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from job.errors import UsageError
from job.fingerprint import digest_of_json

PART = re.compile(r"part-(\d+)\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """A run directory."""

    path: Path
    shards: Sequence[int]
    """The rows of each of its parts."""
    parts: Sequence[Path]
    digest: str = ""
    """What identifies it: see ``Manifest.digest``. Empty if its manifest is damaged."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The circumstances in its manifest."""
    name: str = ""
    """Where it is, for people."""

    @property
    def num_rows(self) -> int:
        """The rows of its plan."""
        return sum(self.shards)

    @property
    def num_missing(self) -> int:
        """How many rows are not in parts yet."""
        there = {int(match[1]) for part in self.parts if (match := PART.fullmatch(part.name))}
        return sum(num_rows for idx, num_rows in enumerate(self.shards) if idx not in there)

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
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        identity, about = manifest["identity"], dict(manifest["about"])
        plan = identity["plan"]
        growth = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("growth/[0-9]*"))]
        totals = [int(each["num_rows"]) for each in (plan, *growth)]
        shards = _shards(totals, max(1, int(plan["rows_per_shard"])))
    except (OSError, ValueError, LookupError, TypeError):  # a manifest of something else, or a damaged one
        if not (parts or (folder / "journal").is_dir()):
            return None
        return RunInput(path=folder, shards=[], parts=parts, name=str(folder))
    digest = digest_of_json(identity)
    return RunInput(path=folder, shards=shards, parts=parts, digest=digest, about=about, name=str(folder))


def read_input(folder: Path) -> RunInput | None:
    """Return what a run directory holds that the user names as a dataset; None if the folder is something else.

    Raises:
        UsageError: its manifest is missing or damaged, so it is not known which rows it should have.
    """
    run = read_run(folder)
    if not is_run(folder) or (run is not None and run.digest):
        return run
    raise UsageError(
        f"--dataset {folder} is the directory of a run, but its manifest.json is {'damaged' if run else 'missing'}, so "
        "it is not known which rows it should have. Put the manifest back from a copy, or read parts as plain files: "
        f"--dataset '{folder}/data/*.parquet'."
    )


def runs_below(folder: Path) -> list[str]:
    """Return the names of the run directories that lie in a folder; none if there is no such folder."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if read_run(entry) is not None)
    except OSError:
        return []


def _shards(totals: Sequence[int], rows_per_shard: int) -> list[int]:
    """Return the rows of each shard of a run that has grown to these numbers of rows, one after the other."""
    added = [max(0, stop - start) for start, stop in pairwise((0, *totals))]
    return [min(rows_per_shard, rows - start) for rows in added for start in range(0, rows, rows_per_shard)]


def lineage_of(runs: Sequence[RunInput]) -> list[dict[str, Any]]:
    """Return what a manifest says of the runs that its dataset comes from: these, and those that they come from."""
    found = []
    for run in runs:
        model = {key: run.about.get(key) for key in ("model", "model_commit", "created")}
        found += [{"output": run.name, "identity": run.digest, **model}, *run.about.get("earlier_runs", ())]
    return found


def runs_of(files: Sequence[Path]) -> list[RunInput]:
    """Return the run directories whose parts are among the files."""
    folders = {folder: None for file in files if PART.fullmatch(file.name) for folder in list(file.parents)[:2]}
    return [run for folder in folders if (run := read_run(folder)) is not None]

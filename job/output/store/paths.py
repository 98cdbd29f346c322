"""The names of all files in a run directory. No path is put together anywhere else."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PART_PATTERN = "part-*.parquet"
"""What readers of a run's table are told to read."""

OLD_SECS = 3600.0
"""No process leaves a file of a moment for so long."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run.

    >>> paths = RunPaths(Path("out"), num_shards=100)
    >>> paths.part(42).name, paths.journal(42, "n1-77").name
    ('part-00042.parquet', '00042.n1-77.arrows')
    """

    root: Path
    num_shards: int
    """Sets the width of the numbers, so that names sort as shards do however many there are."""

    def number(self, shard_idx: int) -> str:
        """Return the shard's number as it stands in file names."""
        return f"{shard_idx:0{max(5, len(str(self.num_shards - 1)))}d}"

    def part(self, shard_idx: int) -> Path:
        """Return the final file of a shard. Its existence is the only mark that the shard is done."""
        return self.root / f"part-{self.number(shard_idx)}.parquet"

    def shard_of(self, name: str) -> int | None:
        """Return the shard whose part has this file name; None if no part of this run has it.

        >>> paths = RunPaths(Path("out"), num_shards=100)
        >>> paths.shard_of("part-00042.parquet"), paths.shard_of("part-42.parquet")
        (42, None)
        """
        number = name.removeprefix("part-").removesuffix(".parquet")
        if not number.isdecimal() or int(number) >= self.num_shards:
            return None
        return int(number) if name == f"part-{self.number(int(number))}.parquet" else None

    def part_tmp(self, shard_idx: int, worker_id: str) -> Path:
        """Return the name under which one worker writes a part. Readers of ``*.parquet`` do not match it."""
        return self.root / f".part-{self.number(shard_idx)}.{worker_id}.tmp"

    def part_tmps(self, shard_idx: int) -> list[Path]:
        """List the part files that workers left half-written."""
        return sorted(self.root.glob(f".part-{self.number(shard_idx)}.*.tmp"))

    @property
    def card(self) -> Path:
        """Return the dataset card, for people and for HuggingFace. Written when the run is done."""
        return self.root / "README.md"

    def card_tmp(self, worker_id: str) -> Path:
        """Return the name under which one worker writes the card."""
        return self.root / f".README.md.{worker_id}.tmp"

    @property
    def journal_dir(self) -> Path:
        """Finished rows of unfinished shards."""
        return self.root / "journal"

    def journal(self, shard_idx: int, worker_id: str) -> Path:
        """Return the journal that one worker appends to for one shard."""
        return self.journal_dir / f"{self.number(shard_idx)}.{worker_id}.arrows"

    def journals(self, shard_idx: int) -> list[Path]:
        """List the journals that any worker left for a shard."""
        return sorted(self.journal_dir.glob(f"{self.number(shard_idx)}.*.arrows"))

    @property
    def lease_dir(self) -> Path:
        """Who works on which shard."""
        return self.root / "leases"

    def lease(self, shard_idx: int, slice_idx: int | None = None) -> Path:
        """Return the file whose exclusive creation claims a shard, or the work on a slice of it."""
        return self.lease_dir / (self.number(shard_idx) + ("" if slice_idx is None else f".{slice_idx:04d}"))

    def lease_aside(self, lease: Path, worker_id: str) -> Path:
        """Return the name to which a worker renames a lease that it takes over."""
        return lease.with_name(f".{lease.name}.taken-by-{worker_id}")

    def clock(self, worker_id: str) -> Path:
        """Return the file that a worker touches to learn the file system's time."""
        return self.lease_dir / f".clock-{worker_id}"

    @property
    def retry_dir(self) -> Path:
        """Which shards are to be done again in part though they are final. Made by ``job retry``."""
        return self.root / "retry"

    def retry(self, shard_idx: int) -> Path:
        """Return the file that says which error rows of a final shard are to be done again."""
        return self.retry_dir / self.number(shard_idx)

    def retry_tmp(self, shard_idx: int, worker_id: str) -> Path:
        """Return the name under which a process writes such a file."""
        return self.root / f".retry-{self.number(shard_idx)}.{worker_id}.tmp"

    @property
    def metrics_dir(self) -> Path:
        """Figures over time, one file per worker."""
        return self.root / "metrics"

    def metrics(self, worker_id: str) -> Path:
        """Return the file that one worker appends its figures to."""
        return self.metrics_dir / f"{worker_id}.jsonl"

    def make_directories(self) -> None:
        """Create the run directory and what lies in it.

        Raises:
            OSError: it cannot be written.
        """
        for directory in (self.root, self.journal_dir, self.lease_dir, self.metrics_dir):
            directory.mkdir(parents=True, exist_ok=True)

    def check_writable(self, worker_id: str) -> None:
        """Try to create a file in each directory.

        Raises:
            OSError: it cannot be written, or the disk is full.
        """
        for directory in (self.root, self.journal_dir, self.lease_dir, self.metrics_dir):
            probe = directory / f".probe-{worker_id}"
            probe.write_bytes(b"probe")
            probe.unlink(missing_ok=True)  # who concludes the run meanwhile sweeps the journals' directory

    def leftovers(self) -> Iterator[Path]:
        """List what killed workers have left in a run of which every shard is done, and living ones can do without.

        What a living process may be about to link or rename is not among it before it is old.
        """
        yield from self.journal_dir.iterdir()
        for path in self.lease_dir.iterdir():  # a clock is made anew by whoever looks at it again
            if not path.name.startswith(".") or path.name.startswith(".clock-") or _is_old(path):
                yield path
        yield from self.root.glob(".part-*.tmp")
        yield from self.root.glob(".README.md.*.tmp")
        for pattern in (".manifest.json.*.tmp", ".retry-*.tmp", ".probe-*"):
            yield from filter(_is_old, self.root.glob(pattern))
        yield from filter(_is_old, self.metrics_dir.glob(".probe-*"))

    def is_done(self, shard_idx: int) -> bool:
        """Whether a shard's final file exists and none of its rows is to be done again."""
        return self.part(shard_idx).exists() and not self.retry(shard_idx).exists()

    def done_shards(self) -> set[int]:
        """Return the shards that are done, from one listing of each directory."""
        again: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            again = {entry.name for entry in os.scandir(self.retry_dir)}
        return {idx for idx in self.written_shards() if self.number(idx) not in again}

    def written_shards(self) -> set[int]:
        """Return the shards that have a part, marked or not."""
        with os.scandir(self.root) as entries:
            found = {self.shard_of(entry.name) for entry in entries}
        return {shard_idx for shard_idx in found if shard_idx is not None}


def manifest_path(root: Path) -> Path:
    """Return the manifest's name, which must be known before the number of shards is."""
    return root / "manifest.json"


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > OLD_SECS
    except FileNotFoundError:
        return False

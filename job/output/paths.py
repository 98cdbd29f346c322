"""The names of all files in a run directory. No path is put together anywhere else."""

from dataclasses import dataclass
from pathlib import Path


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

    def part_tmp(self, shard_idx: int, worker_id: str) -> Path:
        """Return the name under which one worker writes a part. Readers of ``*.parquet`` do not match it."""
        return self.root / f".part-{self.number(shard_idx)}.{worker_id}.tmp"

    def part_tmps(self, shard_idx: int) -> list[Path]:
        """List the part files that workers left half-written."""
        return sorted(self.root.glob(f".part-{self.number(shard_idx)}.*.tmp"))

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

    def lease(self, shard_idx: int) -> Path:
        """Return the file whose exclusive creation claims a shard."""
        return self.lease_dir / self.number(shard_idx)

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
            probe.unlink()

    def done_shards(self) -> set[int]:
        """Return the shards whose final file exists, from one listing of the directory."""
        names = {path.name for path in self.root.iterdir()}
        return {shard_idx for shard_idx in range(self.num_shards) if self.part(shard_idx).name in names}


def manifest_path(root: Path) -> Path:
    """Return the manifest's name, which must be known before the number of shards is."""
    return root / "manifest.json"

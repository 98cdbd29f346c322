"""The files of a run directory, by paths: tests look at them and damage them past the store."""

from dataclasses import dataclass
from pathlib import Path

from job.output.looking.found import find_run
from job.output.store.directory import RunDirectory
from job.output.store.local import LocalStore
from job.output.store.names import CARD, JOURNALS, LEASES, METRICS, PARTS, RETRIES, RunNames


@dataclass(frozen=True)
class RunFiles:
    """The files below one directory."""

    root: Path
    num_shards: int
    part_dir: str = PARTS

    @property
    def names(self) -> RunNames:
        return RunNames(self.num_shards, self.part_dir)

    @property
    def store(self) -> LocalStore:
        """A store of its own for each call, as if of another process."""
        return LocalStore(self.root)

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.store, self.names)

    @property
    def card(self) -> Path:
        return self.root / CARD

    @property
    def journal_dir(self) -> Path:
        return self.root / JOURNALS

    @property
    def lease_dir(self) -> Path:
        return self.root / LEASES

    @property
    def metrics_dir(self) -> Path:
        return self.root / METRICS

    @property
    def retry_dir(self) -> Path:
        return self.root / RETRIES

    def part(self, shard_idx: int) -> Path:
        return self.root / self.names.part(shard_idx)

    def journal(self, shard_idx: int, worker_id: str) -> Path:
        return self.root / self.names.journal(shard_idx, worker_id)

    def lease(self, shard_idx: int, slice_idx: int | None = None) -> Path:
        return self.root / self.names.lease(shard_idx, slice_idx)

    def clock(self, worker_id: str) -> Path:
        return self.root / self.names.clock(worker_id)

    def retry(self, shard_idx: int) -> Path:
        return self.root / self.names.retry(shard_idx)

    def metrics(self, worker_id: str) -> Path:
        return self.root / self.names.metrics(worker_id)


def files_of(output: Path) -> RunFiles:
    """Return the files of a run that exists."""
    names = find_run(output).directory.names
    return RunFiles(output, names.num_shards, names.part_dir)

"""The combined progress of all workers of a run, from the figures that each one writes."""

import time

from job.observe.progress import RunProgress
from job.output.parts.plan import Plan
from job.output.sharing.metrics import MetricsReader, WorkerStats
from job.output.store.directory import RunDirectory

OTHERS_SECS = 10.0
"""How often the others' figures are read."""


class Workers:
    """One worker's view of all workers."""

    def __init__(self, directory: RunDirectory, plan: Plan, worker_id: str, num_replicas: int) -> None:
        """Read the other workers' figures in ``directory``. ``num_replicas`` is that of this launch."""
        self._directory, self._plan, self._num_replicas = directory, plan, num_replicas
        self._metrics, self._own = MetricsReader(directory.store), directory.names.metrics(worker_id)
        self._read_at = -OTHERS_SECS
        self._num_done_rows = 0
        self._others: list[WorkerStats] = []

    @property
    def num_workers(self) -> int:
        """Number of workers that share what is left: those of this launch, or more if other launches are active."""
        return max(self._num_replicas, 1 + len(self._others))

    def others(self, *, refresh: bool = False) -> list[WorkerStats]:
        """Return the other workers' latest figures, cached for ``OTHERS_SECS``."""
        if refresh or time.monotonic() - self._read_at >= OTHERS_SECS:
            self._num_done_rows = self._plan.count(self._directory.done_shards())
            self._others = self._metrics.read_others(self._own)
            self._read_at = time.monotonic()
        return self._others

    def progress(self, own: WorkerStats, *, refresh: bool = False) -> RunProgress:
        """Add up this worker's current figures and the others' latest."""
        # A worker that has just died may have held shards that are ours by now; count no row twice.
        others = [stats for stats in self.others(refresh=refresh) if not set(own.open_shards) & set(stats.open_shards)]
        workers = [*others, own]
        # A worker of another launch that holds nothing has left, and job retry may have marked its errors.
        counted = [s for s in workers if s.launch_id == own.launch_id or s.num_at_work or s.open_shards]
        num_rows = self._num_done_rows + sum(stats.num_open_rows for stats in workers)
        return RunProgress(
            num_rows=min(num_rows, self._plan.num_completions),
            total_rows=self._plan.num_completions,
            num_errors=sum(stats.num_errors for stats in counted),
            num_new_rows=sum(stats.num_rows for stats in workers),
            num_tokens=sum(stats.num_tokens for stats in workers),
            num_at_work=sum(stats.num_at_work for stats in workers),
            tokens_per_sec=sum(stats.num_tokens / max(stats.elapsed_secs, 1e-9) for stats in workers),
        )

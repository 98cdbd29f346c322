"""What all workers of a run have done together, from what each writes about itself."""

import time

from job.observe.progress import Position
from job.output.parts.plan import Plan
from job.output.sharing.metrics import Figures, MetricsReader
from job.output.store.paths import RunPaths

OTHERS_SECS = 10.0
"""How often the others' figures are read."""


class Crew:
    """One worker's view of all."""

    def __init__(self, paths: RunPaths, plan: Plan, worker_id: str, num_replicas: int) -> None:
        """Know of nobody yet but the replicas of this launch."""
        self._paths, self._plan, self._num_replicas = paths, plan, num_replicas
        self._metrics = MetricsReader(paths.metrics_dir, paths.metrics(worker_id))
        self._read_at = -OTHERS_SECS
        self._num_done_rows = 0
        self._others: list[Figures] = []

    @property
    def num_workers(self) -> int:
        """Workers that share what is left: this launch's, or more if others are at work."""
        return max(self._num_replicas, 1 + len(self._others))

    def others(self, *, refresh: bool = False) -> list[Figures]:
        """Return the other workers' latest figures, which are remembered for some seconds."""
        if refresh or time.monotonic() - self._read_at >= OTHERS_SECS:
            self._num_done_rows = self._plan.count(self._paths.done_shards())
            self._others = self._metrics.read()
            self._read_at = time.monotonic()
        return self._others

    def position(self, own: Figures, *, refresh: bool = False) -> Position:
        """Add up this worker's figures of now and the others' latest."""
        # Of a worker that has just died, its shards may be ours by now: count no row twice.
        others = [f for f in self.others(refresh=refresh) if not set(own.open_shards) & set(f.open_shards)]
        workers = [*others, own]
        # One of another launch that holds nothing has left, and job retry may have marked its errors to be done again.
        counted = [f for f in workers if f.launch_id == own.launch_id or f.num_at_work or f.open_shards]
        num_rows = self._num_done_rows + sum(figures.num_open_rows for figures in workers)
        return Position(
            num_rows=min(num_rows, self._plan.num_completions),
            total_rows=self._plan.num_completions,
            num_errors=sum(figures.num_errors for figures in counted),
            num_new_rows=sum(figures.num_rows for figures in workers),
            num_tokens=sum(figures.num_tokens for figures in workers),
            num_at_work=sum(figures.num_at_work for figures in workers),
            tokens_per_sec=sum(figures.num_tokens / max(figures.elapsed_secs, 1e-9) for figures in workers),
        )

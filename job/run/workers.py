"""The combined progress of all workers of a run: rows as counted on disk, speed from each one's figures."""

import time
from collections.abc import Mapping

from job.observe.progress import RunProgress
from job.output.looking.finished import FinishedRows
from job.output.parts.counts import Counts
from job.output.parts.plan import Plan
from job.output.sharing.metrics import MetricsReader, WorkerStats
from job.output.store.directory import RunDirectory
from job.records import CUT_REASONS

OTHERS_SECS = 10.0
"""How often the others' figures are read, and finished rows are counted; less often if the store asks for it."""

LOOK_SECS = 0.2
"""How long such a count may take, since the model waits meanwhile. What is left is read the next time."""


class Workers:
    """One worker's view of all workers."""

    def __init__(self, finished: FinishedRows, directory: RunDirectory, plan: Plan, worker_id: str, num_replicas: int):
        """Read the other workers' figures in ``directory``, and count rows with ``finished``.

        Args:
            num_replicas: that of this launch.
        """
        self._finished, self._directory, self._plan, self._num_replicas = finished, directory, plan, num_replicas
        self._metrics, self._own = MetricsReader(directory.store), directory.names.metrics(worker_id)
        self._others_secs = max(OTHERS_SECS, directory.store.pause_secs)
        self._read_at = self._looked_at = -self._others_secs
        self._considered_at = self._read_at
        """When the figures were read that ``num_idle`` has told last."""
        self._num_done_rows = 0
        self._others: list[WorkerStats] = []

    @property
    def num_workers(self) -> int:
        """Number of workers that share what is left: those of this launch, or more if other launches are active."""
        return max(self._num_replicas, 1 + sum(not stats.left for stats in self._others))

    def others(self, *, refresh: bool = False) -> list[WorkerStats]:
        """Return the other workers' latest figures, cached for a while."""
        if refresh or time.monotonic() - self._read_at >= self._others_secs:
            self._num_done_rows = self._plan.count(self._directory.done_shards())
            self._others = self._metrics.read_others(self._own)
            self._read_at = time.monotonic()
        return self._others

    def num_idle(self) -> int:
        """Return how many other workers have no rows, by figures that are new; 0 until there are newer ones."""
        others = self.others()
        if self._considered_at == self._read_at:
            return 0
        self._considered_at = self._read_at
        return sum(not stats.num_at_work and not stats.left for stats in others)

    @property
    def latest(self) -> list[WorkerStats]:
        """The other workers' figures as they were read last."""
        return self._others

    def are_busy(self, launch_id: str) -> bool:
        """Whether another worker of a launch is computing rows, by its latest figures."""
        others = (stats for stats in self.others(refresh=True) if stats.launch_id == launch_id)
        return any(stats.num_at_work and not stats.left for stats in others)

    def num_left(self, own: WorkerStats) -> int:
        """Return about how many rows are left. It is cheap, since it relies on what workers report."""
        workers = [*self.others(), own]
        return max(0, self._plan.num_completions - self._num_done_rows - sum(each.num_open_rows for each in workers))

    def share(self, own: WorkerStats, least: int, most: int) -> int:
        """Return the number of pending requests at which this worker stops claiming.

        Guided self-scheduling (Polychronopoulos and Kuck 1987): claim many rows at once while many are left, and near
        the end no more than the other workers have.

        Args:
            least: keeps its engine busy.
            most: more would not be faster.
        """
        num_left = self.num_left(own)
        if self.num_workers == 1:
            return most
        fair = -(-num_left // self.num_workers)
        return max(1, min(least, fair), min(most, fair // 2))

    @property
    def is_look_due(self) -> bool:
        """Whether the last look is so old that ``progress`` needs another."""
        return time.monotonic() - self._looked_at >= self._others_secs

    def look(self) -> None:
        """Count again what is finished of the run."""
        self._finished.look(budget_secs=LOOK_SECS)
        self._looked_at = time.monotonic()

    def progress(self, own: WorkerStats, own_counts: Mapping[int, Counts]) -> RunProgress:
        """Combine the last look, this worker's current figures, and the latest of the others.

        Args:
            own_counts: what is finished of the shards that this worker holds, or has finished since the last look.
        """
        workers = [*self.others(), own]
        counts = Counts.total([self._finished.counts(without=own_counts), *own_counts.values()])
        num_rows = self._finished.num_rows(without=own_counts) + sum(each.num_rows for each in own_counts.values())
        return RunProgress(
            num_rows=num_rows,
            total_rows=self._plan.num_completions,
            unit=self._plan.unit,
            num_errors=counts.num_errors,
            num_cut=sum(counts.finish_reasons[reason] for reason in CUT_REASONS),
            is_partial=self._finished.is_partial,
            num_new_rows=sum(stats.num_rows for stats in workers),
            num_tokens=sum(stats.num_tokens for stats in workers),
            num_at_work=sum(stats.num_at_work for stats in workers),
            tokens_per_sec=sum(stats.num_tokens / max(stats.elapsed_secs, 1e-9) for stats in workers),
            completion_tokens_per_sec=sum(s.num_completion_tokens / max(s.elapsed_secs, 1e-9) for s in workers),
            first_errors=counts.first_errors,
        )

"""A look at a run from outside, during or after it: combines the files on disk with what workers report.

Needs no model, no dataset and no GPU, and imports none of their libraries.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from job.errors import JobError
from job.observe.progress import RunProgress
from job.observe.status_report import StaleLease, Status, Worker
from job.output.looking.footers import FooterCounts
from job.output.looking.found import FoundRun, find_run
from job.output.looking.survey import WAITING_SECS, SeenLease, Survey, survey
from job.output.sharing.metrics import LatestStats, MetricsReader, OpenCounts, WorkerStats
from job.output.sharing.worker import WorkerId

FOOTERS_SECS = 5.0
"""Time limit for reading the footers of parts. The next look continues where this one stopped."""

UNKNOWN = "unknown"
"""The holder of a lease that cannot be read."""


class Inspection:
    """Looks at one run, once or repeatedly."""

    def __init__(self, output: Path) -> None:
        """Find the run in the directory ``output``.

        Raises:
            UsageError: there is none.
        """
        self._output = str(output)
        self._run = find_run(output)
        self._metrics = MetricsReader(self._run.directory.store)
        self._footers = FooterCounts()

    def look(self) -> Status:
        """Return the current status of the run.

        Raises:
            JobError: the directory cannot be read.
        """
        try:
            latest = self._metrics.read()  # first: a shard that is open according to them may be a part by now
            seen = survey(self._run)
            self._footers.look(self._run.directory, seen.parts, budget_secs=FOOTERS_SECS)
        except OSError as error:
            path = error.filename or self._run.directory.store.describe()
            raise JobError(f"{path} cannot be read: {error.strerror or error}.") from None
        return _status(self._output, self._run, seen, latest, self._footers)


def _status(output: str, run: FoundRun, seen: Survey, latest: Sequence[LatestStats], footers: FooterCounts) -> Status:
    plan = run.plan
    workers = _workers(seen, latest)
    living = {worker.worker_id for worker in workers}
    part_rows = plan.count(seen.parts)
    in_journals = _open_counts(run, seen, [found.stats for found in latest], living)
    num_rows = min(plan.num_completions, part_rows + in_journals.num_rows)
    num_done = sum(map(seen.is_done, seen.parts))
    held = {False: set[int](), True: set[int]()}
    for lease in seen.leases:
        if lease.slice_idx is None and lease.shard_idx < plan.num_shards and not seen.is_done(lease.shard_idx):
            held[lease.is_stale].add(lease.shard_idx)
    speed = sum(worker.tokens_per_sec for worker in workers)
    progress = _progress(
        num_rows, plan.num_completions, speed, [found.stats for found in latest if found.stats.worker_id in living]
    )
    part_errors = {kind: number for kind, number in footers.counts.errors.items() if number}
    return Status(
        output=output,
        num_shards=plan.num_shards,
        num_done=num_done,
        num_in_work=len(held[False]),
        num_stale=len(held[True]),
        num_free=plan.num_shards - num_done - len(held[False]) - len(held[True]),
        num_to_retry=len(seen.to_retry),
        total_rows=plan.num_completions,
        num_rows=num_rows,
        num_part_rows=part_rows,
        errors=dict(Counter(part_errors) + Counter(in_journals.errors)),
        num_part_errors=sum(part_errors.values()),
        num_prompt_tokens=footers.counts.num_prompt_tokens,
        num_completion_tokens=footers.counts.num_completion_tokens,
        num_parts=len(seen.parts),
        num_parts_read=footers.num_read,
        num_parts_unreadable=footers.num_unreadable,
        workers=workers,
        stale_leases=[_stale(lease) for lease in seen.leases if lease.is_stale and not seen.is_done(lease.shard_idx)],
        tokens_per_sec=speed,
        eta_secs=progress.eta_secs if num_rows < plan.num_completions else None,
        is_store_time=seen.is_store_time,
    )


def _workers(seen: Survey, latest: Sequence[LatestStats]) -> list[Worker]:
    """Return the live workers: those with a fresh lease, and those waiting for one."""
    latest_of = {found.stats.worker_id: found for found in latest}
    leases_of: defaultdict[WorkerId | None, list[SeenLease]] = defaultdict(list)
    for lease in seen.leases:
        leases_of[lease.holder].append(lease)
    workers = []
    for holder, leases in leases_of.items():
        beating = [lease for lease in leases if not lease.is_stale]
        if beating:
            workers.append(_holder(holder, beating, latest_of.get(str(holder)), seen.now))
    holders = set(map(str, leases_of))
    is_worth_waiting = any(not seen.is_done(lease.shard_idx) for lease in seen.leases)
    for worker_id, age in seen.clocks.items():
        if is_worth_waiting and age < WAITING_SECS and worker_id not in holders:
            workers.append(_waiting(worker_id, age, latest_of.get(worker_id), seen.now))
    return sorted(workers, key=lambda worker: (worker.state == "waiting", worker.state == "helping", worker.worker_id))


def _holder(holder: WorkerId | None, leases: Sequence[SeenLease], latest: LatestStats | None, now: float) -> Worker:
    shards = sorted({lease.shard_idx for lease in leases if lease.slice_idx is None})
    return _worker(
        str(holder or UNKNOWN),
        str(holder.host) if holder else UNKNOWN,
        holder.pid if holder else 0,
        state="working" if shards else "helping",
        shards=shards,
        helps_with=sorted({lease.shard_idx for lease in leases} - set(shards)),
        age=min(lease.silent_secs for lease in leases),
        latest=latest,
        now=now,
    )


def _waiting(worker_id: str, age: float, latest: LatestStats | None, now: float) -> Worker:
    match = re.fullmatch(r"(.+)-(\d+)-\w+", worker_id)
    host, pid = (match[1], int(match[2])) if match else (UNKNOWN, 0)
    return _worker(worker_id, host, pid, state="waiting", shards=[], helps_with=[], age=age, latest=latest, now=now)


def _worker(
    worker_id: str,
    host: str,
    pid: int,
    *,
    state: str,
    shards: Sequence[int],
    helps_with: Sequence[int],
    age: float,
    latest: LatestStats | None,
    now: float,
) -> Worker:
    return Worker(
        worker_id=worker_id,
        host=host,
        pid=pid,
        state=state,
        shards=shards,
        helps_with=helps_with,
        heartbeat_age_secs=age,
        figures_age_secs=None if latest is None else max(0.0, now - latest.written),
        num_rows=0 if latest is None else latest.stats.num_rows,
        tokens_per_sec=0.0 if latest is None else latest.tokens_per_sec,
    )


def _stale(lease: SeenLease) -> StaleLease:
    return StaleLease(
        shard_idx=lease.shard_idx,
        slice_idx=lease.slice_idx,
        worker_id=str(lease.holder or UNKNOWN),
        host=str(lease.holder.host) if lease.holder else UNKNOWN,
        silent_secs=lease.silent_secs,
        is_dead=lease.is_dead,
    )


def _open_counts(run: FoundRun, seen: Survey, latest: Sequence[WorkerStats], living: set[str]) -> OpenCounts:
    """Return what is finished but not in a part yet, as last reported by the workers.

    A shard that several workers have held counts once, for the worker that holds it now or held it last. What a dead
    worker reported about a shard counts only if that shard has a journal; otherwise the rows are lost.
    """
    num_rows, errors = 0, Counter[str]()
    counted: set[int] = set()
    # Live workers first: clocks differ, but a lease shows which worker holds a shard now.
    for stats in sorted(latest, key=lambda stats: (stats.worker_id in living, stats.time), reverse=True):
        is_alive = stats.worker_id in living
        open_shards = {idx for idx in stats.open_shards if idx not in seen.parts and (is_alive or idx in seen.journals)}
        if stats.open_counts is None:
            num_rows += _undivided(run, seen, stats) if open_shards and not open_shards & counted else 0
        else:
            for counts in (stats.open_counts.get(idx, OpenCounts()) for idx in open_shards - counted):
                num_rows += counts.num_rows
                errors.update(counts.errors)
        counted |= open_shards
    return OpenCounts(num_rows=num_rows, errors=errors)


def _undivided(run: FoundRun, seen: Survey, stats: WorkerStats) -> int:
    """Return the finished rows not in a part yet, from a version that did not report them per shard."""
    return max(0, stats.num_open_rows - run.plan.count(idx for idx in stats.open_shards if idx in seen.parts))


def _progress(num_rows: int, total_rows: int, speed: float, living: Sequence[WorkerStats]) -> RunProgress:
    return RunProgress(
        num_rows=num_rows,
        total_rows=total_rows,
        num_errors=sum(stats.num_errors for stats in living),
        num_new_rows=sum(stats.num_rows for stats in living),
        num_tokens=sum(stats.num_tokens for stats in living),
        num_at_work=sum(stats.num_at_work for stats in living),
        tokens_per_sec=speed,
    )

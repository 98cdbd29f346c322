"""A look at a run from outside, during or after it. Rows are counted from parts and journals; only the speed and the
state of each worker come from what it reports.

Needs no model, no dataset and no GPU, and imports none of their libraries.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from job.errors import JobError
from job.observe.progress import time_left
from job.observe.status import Published, StaleLease, Status, Worker
from job.output.looking.finished import FinishedRows
from job.output.looking.found import FoundRun, find_run
from job.output.looking.kept_tokens import KeptTokens
from job.output.looking.survey import SeenLease, Survey, survey
from job.output.parts.growth import read_growth
from job.output.parts.manifest import Manifest
from job.output.parts.plan import Plan
from job.output.publishing.publication import read_publication
from job.output.sharing.metrics import LatestStats, MetricsReader, WorkerStats
from job.output.sharing.worker import WorkerId
from job.output.store.directory import RunDirectory
from job.output.store.names import SCATTERED

READ_SECS = 5.0
"""Time limit for reading journals, and for reading the footers of parts. The next look continues where this one
stopped."""

UNKNOWN = "unknown"
"""The holder of a lease that cannot be read."""


class Inspection:
    """Looks at one run, once or repeatedly."""

    def __init__(self, output: str | Path) -> None:
        """Find the run in the directory ``output``.

        Raises:
            UsageError: there is none.
        """
        self._output = str(output)
        self._find()

    def _find(self) -> None:
        self._run = find_run(self._output)
        self._metrics = MetricsReader(self._run.directory.store)
        self._finished = FinishedRows(self._run.directory, self._run.plan, self._run.manifest.modes)
        self._kept = KeptTokens(self._run.directory, self._run.plan)

    def look(self) -> Status:
        """Return the current status of the run.

        Raises:
            JobError: the directory cannot be read.
        """
        try:
            if read_growth(self._run.directory.store) != self._run.manifest.growth:
                self._find()
            latest = self._metrics.read()
            self._finished.read_journals(budget_secs=READ_SECS)
            seen = survey(self._run)
            self._finished.read_parts(seen.parts, seen.to_retry, budget_secs=READ_SECS)
            kept = self._kept.look(
                lambda shard_idx, key: seen.is_done(shard_idx) or self._finished.journals.has(shard_idx, key),
                budget_secs=READ_SECS,
            )
        except OSError as error:
            path = error.filename or self._run.directory.store.describe()
            raise JobError(f"{path} cannot be read: {error.strerror or error}.") from None
        return _status(self._output, self._run, seen, latest, self._finished, kept)


def _status(
    output: str,
    run: FoundRun,
    seen: Survey,
    latest: Sequence[LatestStats],
    finished: FinishedRows,
    kept: tuple[int, int],
) -> Status:
    plan, manifest = run.plan, run.manifest
    workers = _workers(seen, latest)
    living = {worker.worker_id for worker in workers}
    is_scattered = any(lease.shard_idx == SCATTERED and not lease.is_stale for lease in seen.leases)
    num_done, held = sum(map(seen.is_done, seen.parts)), _held(seen, plan, is_scattered=is_scattered)
    counts, num_rows = finished.counts(), finished.num_rows()
    speed = sum(worker.tokens_per_sec for worker in workers)
    of_living = [found.stats for found in latest if found.stats.worker_id in living]
    return Status(
        output=output,
        model=manifest.about["model"],
        adapters=manifest.about.get("adapter", []),
        dataset=manifest.about["dataset"],
        created=manifest.about["created"],
        elapsed_secs=_elapsed_secs(
            manifest, seen.now if workers else max((each.written for each in latest), default=0)
        ),
        num_shards=plan.num_shards,
        num_done=num_done,
        num_in_work=len(held[False]),
        num_stale=len(held[True]),
        num_free=plan.num_shards - num_done - len(held[False]) - len(held[True]),
        is_scattered=is_scattered,
        num_to_retry=len(seen.to_retry),
        num_samples=plan.num_samples,
        total_rows=plan.num_completions,
        num_rows=num_rows,
        num_part_rows=finished.num_part_rows(),
        num_kept_rows=kept[0],
        num_kept_tokens=kept[1],
        errors={kind: number for kind, number in counts.errors.items() if number},
        num_part_errors=finished.in_parts().num_errors,
        first_errors=counts.first_errors,
        finish_reasons=counts.finish_reasons,
        tallies=counts.tallies,
        outcome=counts.lines(manifest),
        num_prompt_tokens=counts.num_prompt_tokens,
        num_completion_tokens=counts.num_completion_tokens,
        num_parts=len(seen.parts),
        num_parts_read=finished.footers.num_read,
        unreadable_parts=[run.directory.names.part(shard_idx) for shard_idx in finished.footers.unreadable],
        num_journals=finished.journals.num_journals,
        num_journals_read=finished.journals.num_read,
        damaged_journals=finished.journals.damages,
        workers=workers,
        stale_leases=[_stale(lease) for lease in seen.leases if lease.is_stale and not seen.is_done(lease.shard_idx)],
        tokens_per_sec=speed,
        eta_secs=_eta_secs(num_rows, plan.num_completions, speed, of_living),
        published=published_of(run.directory, seen.parts),
        left="" if workers else max(latest, key=lambda each: each.written).stats.left if latest else "",
        is_store_time=seen.is_store_time,
    )


def _held(seen: Survey, plan: Plan, *, is_scattered: bool) -> Mapping[bool, set[int]]:
    """Return the shards that are leased: those with a stale lease under True.

    Args:
        is_scattered: rows of all shards are computed, whoever holds one.
    """
    held = {False: set[int](), True: set[int]()}
    for lease in seen.leases:
        if lease.slice_idx is None and lease.shard_idx < plan.num_shards and not seen.is_done(lease.shard_idx):
            held[lease.is_stale].add(lease.shard_idx)
    if is_scattered:
        held[False].update(idx for idx in range(plan.num_shards) if not seen.is_done(idx) and idx not in held[True])
    return held


def published_of(directory: RunDirectory, parts: Mapping[int, str] | None = None) -> Published | None:
    """Return where a run was published last, and how many of its parts are there as they are now.

    Args:
        parts: shard to identity. None: list them, if the run was published at all.
    """
    publication = read_publication(directory.store)
    if publication is None:
        return None
    if parts is None:
        parts = {shard_idx: part.identity for shard_idx, part in directory.parts()}
    current = ((directory.names.part(shard_idx), identity) for shard_idx, identity in parts.items())
    return Published(
        repository=publication.repository, commit=publication.commit, parts=publication.num_current(current)
    )


def _elapsed_secs(manifest: Manifest, end: float) -> float | None:
    """Return the seconds from the start of a run to a Unix time; None if one of them is unknown."""
    with contextlib.suppress(ValueError):
        start = datetime.fromisoformat(manifest.about["created"]).timestamp()
        return max(0.0, end - start) if end else None
    return None


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
        if is_worth_waiting and age < seen.waiting_secs and worker_id not in holders:
            workers.append(_waiting(worker_id, age, latest_of.get(worker_id), seen.now))
    return sorted(workers, key=lambda worker: (worker.state == "waiting", worker.state == "helping", worker.worker_id))


def _holder(holder: WorkerId | None, leases: Sequence[SeenLease], latest: LatestStats | None, now: float) -> Worker:
    shards = sorted({lease.shard_idx for lease in leases if lease.slice_idx is None})
    return _worker(
        str(holder or UNKNOWN),
        str(holder.host) if holder else UNKNOWN,
        holder.pid if holder else 0,
        state="working" if shards or any(lease.shard_idx == SCATTERED for lease in leases) else "helping",
        shards=shards,
        helps_with=sorted({lease.shard_idx for lease in leases} - {SCATTERED, *shards}),
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


def _eta_secs(num_rows: int, total_rows: int, speed: float, living: Sequence[WorkerStats]) -> float | None:
    """Return the time left; None if that is unknown, or nothing is left."""
    if num_rows == total_rows:
        return None
    return time_left(
        num_left=total_rows - num_rows,
        num_new_rows=sum(stats.num_rows for stats in living),
        num_tokens=sum(stats.num_tokens for stats in living),
        num_at_work=sum(stats.num_at_work for stats in living),
        tokens_per_sec=speed,
    )

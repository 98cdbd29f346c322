"""A run looked at from outside, while it goes or after: what lies on disk and what workers say, put together.

Needs no model, no dataset and no GPU, and imports none of their libraries.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from job.errors import JobError
from job.observe.progress import Position
from job.observe.status_report import StaleLease, Status, Worker
from job.output.looking.footers import FooterCounts
from job.output.looking.found import FoundRun, find_run
from job.output.looking.survey import WAITING_SECS, SeenLease, Survey, survey
from job.output.sharing.leases import WorkerId
from job.output.sharing.metrics import Figures
from job.output.sharing.pace import Pace, read_paces

FOOTERS_SECS = 5.0
"""Time for reading what parts contain. A further look continues where this one ended."""

UNKNOWN = "unknown"
"""The holder of a lease that cannot be read."""


class Inspection:
    """Looks at one run, once or again and again."""

    def __init__(self, root: Path) -> None:
        """Find the run.

        Raises:
            UsageError: there is none.
        """
        self._root = root
        self._run = find_run(root)
        self._footers = FooterCounts()

    def look(self) -> Status:
        """Return where the run stands.

        Raises:
            JobError: the directory cannot be read.
        """
        try:
            paces = read_paces(self._run.paths.metrics_dir)  # first: what they call open may be a part by now
            seen = survey(self._run)
            self._footers.look(self._run.paths, seen.parts, budget_secs=FOOTERS_SECS)
        except OSError as error:
            raise JobError(f"{error.filename or self._root} cannot be read: {error.strerror or error}.") from None
        return _status(self._root, self._run, seen, paces, self._footers)


def _status(root: Path, run: FoundRun, seen: Survey, paces: Sequence[Pace], footers: FooterCounts) -> Status:
    plan = run.plan
    workers = _workers(seen, paces)
    living = {worker.worker_id for worker in workers}
    part_rows = plan.count(seen.parts)
    num_rows = min(plan.num_completions, part_rows + _num_open_rows(run, seen, paces, living))
    num_done = sum(map(seen.is_done, seen.parts))
    held = {False: set[int](), True: set[int]()}
    for lease in seen.leases:
        if lease.slice_idx is None and lease.shard_idx < plan.num_shards and not seen.is_done(lease.shard_idx):
            held[lease.is_stale].add(lease.shard_idx)
    speed = sum(worker.tokens_per_sec for worker in workers)
    position = _position(
        num_rows, plan.num_completions, speed, [p.figures for p in paces if p.figures.worker_id in living]
    )
    return Status(
        output=str(root),
        num_shards=plan.num_shards,
        num_done=num_done,
        num_in_work=len(held[False]),
        num_stale=len(held[True]),
        num_free=plan.num_shards - num_done - len(held[False]) - len(held[True]),
        num_to_retry=len(seen.to_retry),
        total_rows=plan.num_completions,
        num_rows=num_rows,
        num_part_rows=part_rows,
        errors={kind: number for kind, number in footers.counts.errors.items() if number},
        num_prompt_tokens=footers.counts.num_prompt_tokens,
        num_completion_tokens=footers.counts.num_completion_tokens,
        num_parts=len(seen.parts),
        num_parts_read=footers.num_read,
        num_parts_unreadable=footers.num_unreadable,
        workers=workers,
        stale_leases=[_stale(lease) for lease in seen.leases if lease.is_stale and not seen.is_done(lease.shard_idx)],
        tokens_per_sec=speed,
        eta_secs=position.eta_secs if num_rows < plan.num_completions else None,
        is_file_system_time=seen.is_file_system_time,
    )


def _workers(seen: Survey, paces: Sequence[Pace]) -> list[Worker]:
    """Return the workers that live: those with a lease that beats, and those who wait for one."""
    pace_of = {pace.figures.worker_id: pace for pace in paces}
    leases_of: defaultdict[WorkerId | None, list[SeenLease]] = defaultdict(list)
    for lease in seen.leases:
        leases_of[lease.holder].append(lease)
    workers = []
    for holder, leases in leases_of.items():
        beating = [lease for lease in leases if not lease.is_stale]
        if beating:
            workers.append(_holder(holder, beating, pace_of.get(str(holder)), seen.now))
    holders = set(map(str, leases_of))
    is_worth_waiting = any(not seen.is_done(lease.shard_idx) for lease in seen.leases)
    for worker_id, age in seen.clocks.items():
        if is_worth_waiting and age < WAITING_SECS and worker_id not in holders:
            workers.append(_waiting(worker_id, age, pace_of.get(worker_id), seen.now))
    return sorted(workers, key=lambda worker: (worker.state == "waiting", worker.state == "helping", worker.worker_id))


def _holder(holder: WorkerId | None, leases: Sequence[SeenLease], pace: Pace | None, now: float) -> Worker:
    shards = sorted({lease.shard_idx for lease in leases if lease.slice_idx is None})
    return _worker(
        str(holder or UNKNOWN),
        str(holder.host) if holder else UNKNOWN,
        holder.pid if holder else 0,
        state="working" if shards else "helping",
        shards=shards,
        helps_with=sorted({lease.shard_idx for lease in leases} - set(shards)),
        age=min(lease.silent_secs for lease in leases),
        pace=pace,
        now=now,
    )


def _waiting(worker_id: str, age: float, pace: Pace | None, now: float) -> Worker:
    match = re.fullmatch(r"(.+)-(\d+)-\w+", worker_id)
    host, pid = (match[1], int(match[2])) if match else (UNKNOWN, 0)
    return _worker(worker_id, host, pid, state="waiting", shards=[], helps_with=[], age=age, pace=pace, now=now)


def _worker(
    worker_id: str,
    host: str,
    pid: int,
    *,
    state: str,
    shards: Sequence[int],
    helps_with: Sequence[int],
    age: float,
    pace: Pace | None,
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
        figures_age_secs=None if pace is None else max(0.0, now - pace.written),
        num_rows=0 if pace is None else pace.figures.num_rows,
        tokens_per_sec=0.0 if pace is None else pace.tokens_per_sec,
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


def _num_open_rows(run: FoundRun, seen: Survey, paces: Sequence[Pace], living: set[str]) -> int:
    """Return the finished rows outside of parts, as workers have told them last.

    A shard that has gone through several hands counts once, with whoever has it now or had it last. What a worker that
    is gone has told counts only where its journal is still there.
    """
    counted: set[int] = set()
    total = 0
    for pace in sorted(paces, key=lambda p: (p.figures.worker_id in living, p.figures.time), reverse=True):
        figures = pace.figures
        missing = set(figures.open_shards) - seen.parts.keys()
        is_there = figures.worker_id in living or missing <= seen.journals
        if missing and is_there and not missing & counted:
            finished_rows = run.plan.count(idx for idx in figures.open_shards if idx in seen.parts)
            total += max(0, figures.num_open_rows - finished_rows)
            counted |= missing
    return total


def _position(num_rows: int, total_rows: int, speed: float, living: Sequence[Figures]) -> Position:
    return Position(
        num_rows=num_rows,
        total_rows=total_rows,
        num_errors=sum(figures.num_errors for figures in living),
        num_new_rows=sum(figures.num_rows for figures in living),
        num_tokens=sum(figures.num_tokens for figures in living),
        num_at_work=sum(figures.num_at_work for figures in living),
        tokens_per_sec=speed,
    )

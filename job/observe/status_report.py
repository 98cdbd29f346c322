"""The status of a run as seen from outside: as text for people, as JSON values for programs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from job.observe.text import describe_errors, format_secs, list_kinds, number, visible

MAX_LINES = 20
"""At most this many workers are listed."""

MAX_SHARDS = 5
"""At most this many shards are named in one line."""

BAR_CHARS = 20
"""The width of the bar."""

LATE_SECS = 60.0
"""A live worker that has not reported figures for this long is in a long step, or stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker whose heartbeat is recent."""

    worker_id: str
    host: str
    pid: int
    state: str
    """``working`` on its own shards, ``helping`` with those of other workers, or ``waiting`` for work."""
    shards: Sequence[int]
    """Shards whose leases it holds."""
    helps_with: Sequence[int]
    """Shards of other workers of which it holds slices."""
    heartbeat_age_secs: float
    figures_age_secs: float | None
    """Seconds since it last reported figures; None if it has not yet."""
    num_rows: int
    """Rows finished since it started."""
    tokens_per_sec: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleLease:
    """A lease whose worker is dead or has been silent for too long."""

    shard_idx: int
    slice_idx: int | None
    worker_id: str
    host: str
    silent_secs: float
    is_dead: bool
    """Whether its process is known to have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment. ``num_done + num_in_work + num_stale + num_free`` is ``num_shards``."""

    output: str
    model: str
    dataset: str
    created: str
    """When the run was started for the first time."""
    elapsed_secs: float | None
    """Seconds from then to now if a worker is active, else to the last figures of a worker. None if unknown."""
    num_shards: int
    num_done: int
    num_in_work: int
    num_stale: int
    """Shards whose holder is dead or silent: the next worker that looks takes them over."""
    num_free: int
    num_to_retry: int
    """Shards that have a part, but are not done because some of its error rows will be retried."""
    num_samples: int
    """Output rows of each row of the dataset."""
    total_rows: int
    """Output rows, as all numbers of rows here."""
    num_rows: int
    """Finished rows: those in parts, without those to be retried, and those in the journals that were read."""
    num_part_rows: int
    errors: Mapping[str, int]
    """Error kind to number of finished rows, in the parts and journals that were read."""
    num_part_errors: int
    """How many of these errors are in parts."""
    first_errors: Mapping[str, tuple[int, str]]
    """Error kind to the lowest row index that has it, and its detail."""
    finish_reasons: Mapping[str, int]
    tallies: Mapping[str, Mapping[str, int]]
    """What the run's modes count, by name."""
    outcome: Sequence[tuple[str, str]]
    """What came out, as the run's modes describe it: titles and lines."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_parts: int
    num_parts_read: int
    unreadable_parts: Sequence[str]
    num_journals: int
    num_journals_read: int
    damaged_journals: Sequence[str]
    """Why the rest of some journals cannot be used."""
    workers: Sequence[Worker]
    stale_leases: Sequence[StaleLease]
    tokens_per_sec: float
    eta_secs: float | None
    is_store_time: bool
    """False if ages are measured by this machine's clock, because the run directory is not writable."""

    @property
    def is_done(self) -> bool:
        """Whether every shard is done."""
        return self.num_done == self.num_shards

    @property
    def is_partial(self) -> bool:
        """Whether some parts or journals have not been read yet, for lack of time."""
        num_parts_seen = self.num_parts_read + len(self.unreadable_parts)
        return num_parts_seen < self.num_parts or self.num_journals_read < self.num_journals

    @property
    def advice(self) -> str:
        """What to do next, in one line."""
        if self.unreadable_parts:
            return f"Some parts cannot be read: job verify {self.output} lists them, with reasons."
        if self.is_done:
            return f"Done: every row is in a part. job verify {self.output} checks them all."
        if self.workers:
            takeover = " Live workers take over from dead ones." if self.stale_leases else ""
            return f"Running. Nothing for you to do.{takeover}"
        return (
            "No worker is active: run the same command to continue. "
            "(A launch that is still loading its model is not shown.)"
        )

    def to_dict(self) -> dict[str, object]:
        """Return JSON values. The names are stable: programs rely on them."""
        return {
            "output": self.output,
            "model": self.model,
            "dataset": self.dataset,
            "started": self.created,
            "elapsed_secs": self.elapsed_secs,
            "done": self.is_done,
            "shards": {
                "total": self.num_shards,
                "done": self.num_done,
                "in_work": self.num_in_work,
                "stale": self.num_stale,
                "free": self.num_free,
                "to_retry": self.num_to_retry,
            },
            "rows": {
                "total": self.total_rows,
                "done": self.num_rows,
                "in_parts": self.num_part_rows,
                "samples_per_row": self.num_samples,
            },
            "errors": {
                "total": sum(self.errors.values()),
                "in_parts": self.num_part_errors,
                "by_kind": dict(self.errors),
                "first": {kind: {"row_idx": idx, "detail": text} for kind, (idx, text) in self.first_errors.items()},
            },
            "finish_reasons": dict(self.finish_reasons),
            "tallies": {name: dict(values) for name, values in self.tallies.items()},
            "tokens": {"prompt": self.num_prompt_tokens, "completion": self.num_completion_tokens},
            "parts": {
                "total": self.num_parts,
                "read": self.num_parts_read,
                "unreadable": len(self.unreadable_parts),
                "partial": self.is_partial,
            },
            "journals": {"total": self.num_journals, "read": self.num_journals_read},
            "tokens_per_sec": self.tokens_per_sec,
            "eta_secs": self.eta_secs,
            "workers": [asdict(worker) for worker in self.workers],
            "stale_leases": [asdict(lease) for lease in self.stale_leases],
            "clock": "file_system" if self.is_store_time else "this_machine",
            "advice": self.advice,
        }


def describe_status(status: Status) -> str:
    """Return a status as text. The last line is the advice."""
    unit = "rows" if status.num_samples == 1 else "samples"
    facts = [
        ("model", visible(status.model)),
        ("dataset", visible(status.dataset)),
        ("started", _started(status)),
        ("shards", _shards(status)),
        (unit, _rows(status)),
        ("errors", _errors(status)),
        *((None, line) for line in describe_errors(status.errors, status.first_errors)),
        *status.outcome,
        *([] if status.is_done else [("speed", _speed(status))]),
    ]
    return "\n".join(
        [
            status.output,
            *(f"    {line}" if title is None else f"  {title:<8} {visible(line)}" for title, line in facts),
            *_limited("workers", [_describe_worker(worker) for worker in status.workers]),
            *_limited(
                "dead or silent workers", [_describe_stale(leases) for leases in _by_worker(status.stale_leases)]
            ),
            *_remarks(status),
            status.advice,
        ]
    )


def _started(status: Status) -> str:
    if status.elapsed_secs is None:
        return status.created
    secs = format_secs(status.elapsed_secs)
    return f"{status.created}, {f'{secs} ago' if status.workers else f'last active {secs} later'}"


def _shards(status: Status) -> str:
    stale = f", {status.num_stale:,} stale" if status.num_stale else ""
    retry = f"; {status.num_to_retry:,} with error rows to retry" if status.num_to_retry else ""
    done = f"{status.num_done:,} of {status.num_shards:,} done"
    return f"{done}, {status.num_in_work:,} in progress{stale}, {status.num_free:,} free{retry}"


def _rows(status: Status) -> str:
    share = status.num_rows / status.total_rows if status.total_rows else 1.0
    full = int(share * BAR_CHARS)
    open_rows = status.num_rows - status.num_part_rows
    journals = f", {open_rows:,} of them in journals" if open_rows else ""
    unread = status.num_journals - status.num_journals_read
    partial = f", without {number(unread, 'journal')} not read yet; --watch reads on" if unread else ""
    samples = "" if status.num_samples == 1 else f", {status.num_samples:,} for each row"
    return (
        f"[{'#' * full}{'.' * (BAR_CHARS - full)}] {status.num_rows:,} of {status.total_rows:,} "
        f"({100 * share:.1f}%){samples}{journals}{partial}"
    )


def _errors(status: Status) -> str:
    total = sum(status.errors.values())
    in_journals = total - status.num_part_errors
    journals = f", {in_journals:,} of them in journals" if in_journals else ""
    is_partial = status.num_parts_read + len(status.unreadable_parts) < status.num_parts
    partial = f", in {status.num_parts_read:,} of {status.num_parts:,} parts; --watch reads on"
    return f"{total:,}{journals}{list_kinds(status.errors)}{partial if is_partial else ''}"


def _speed(status: Status) -> str:
    left = "unknown" if status.eta_secs is None else format_secs(status.eta_secs)
    return f"{status.tokens_per_sec:,.0f} tokens/s, time left {left}"


def _limited(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    and {len(lines) - MAX_LINES:,} more"] if len(lines) > MAX_LINES else []
    return [f"  {title}: {len(lines):,}", *(f"    {line}" for line in lines[:MAX_LINES]), *more]


def _describe_worker(worker: Worker) -> str:
    does = [_name_shards(worker.shards)] if worker.shards else []
    if worker.helps_with:
        does.append(f"helps with {_name_shards(worker.helps_with)}")
    age = worker.figures_age_secs
    figures = f"  no figures for {format_secs(age)}" if age is not None and age >= LATE_SECS else ""
    return (
        f"{worker.worker_id}  {', '.join(does) or 'waits for work'}  {worker.num_rows:,} rows  "
        f"{worker.tokens_per_sec:,.0f} tokens/s  heartbeat {format_secs(worker.heartbeat_age_secs)} ago{figures}"
    )


def _describe_stale(leases: Sequence[StaleLease]) -> str:
    """Describe the leases that one dead or silent worker has left behind."""
    first = leases[0]
    shards = [lease.shard_idx for lease in leases if lease.slice_idx is None]
    slices = sorted({lease.shard_idx for lease in leases} - set(shards))
    held = [_name_shards(shards)] if shards else []
    if slices:
        held.append(f"slices of {_name_shards(slices)}")
    silent = f"silent for {format_secs(min(lease.silent_secs for lease in leases))}"
    dead = "dead, " if first.is_dead else ""
    return f"{first.worker_id} on {first.host}: {dead}{silent}, held {', '.join(held)}"


def _by_worker(leases: Iterable[StaleLease]) -> list[list[StaleLease]]:
    groups: dict[str, list[StaleLease]] = {}
    for lease in leases:
        groups.setdefault(lease.worker_id, []).append(lease)
    return list(groups.values())


def _name_shards(shards: Sequence[int]) -> str:
    """Return a short list of shard indices.

    >>> _name_shards([7]), _name_shards(range(9))
    ('shard 7', 'shards 0, 1, 2, 3, 4 and 4 more')
    """
    named = ", ".join(map(str, shards[:MAX_SHARDS]))
    more = f" and {len(shards) - MAX_SHARDS:,} more" if len(shards) > MAX_SHARDS else ""
    return f"shard{'s' if len(shards) > 1 else ''} {named}{more}"


def _remarks(status: Status) -> list[str]:
    remarks = []
    if status.unreadable_parts:
        names = ", ".join(status.unreadable_parts[:MAX_SHARDS])
        more = ", ..." if len(status.unreadable_parts) > MAX_SHARDS else ""
        remarks.append(f"  parts that cannot be read: {len(status.unreadable_parts):,} ({names}{more})")
    remarks += [f"  {text}" for text in status.damaged_journals[:MAX_SHARDS]]
    if (status.workers or status.stale_leases) and not status.is_store_time:
        remarks.append("  Ages are by this machine's clock, because the run directory is not writable.")
    return remarks

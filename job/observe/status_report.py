"""The status of a run as text for people."""

from collections.abc import Iterable, Sequence

from job.observe.status import StaleLease, Status, Worker
from job.observe.text import describe_errors, format_secs, list_kinds, number, visible, with_adapters

MAX_LINES = 20
"""At most this many workers are listed."""

MAX_SHARDS = 5
"""At most this many shards are named in one line."""

SCATTERED_ROWS = "rows in random order"
"""What a worker holds that has rows of all shards."""

BAR_CHARS = 20
"""The width of the bar."""

LATE_SECS = 60.0
"""A live worker that has not reported figures for this long is in a long step, or stuck."""


def describe_status(status: Status) -> str:
    """Return a status as text. The last line is the advice."""
    unit = "rows" if status.num_samples == 1 else "samples"
    facts = [
        ("model", visible(with_adapters(status.model, status.adapters))),
        ("dataset", visible(status.dataset)),
        ("started", _started(status)),
        ("shards", _shards(status)),
        (unit, _rows(status)),
        *([("kept", _kept(status))] if status.num_kept_rows else []),
        ("errors", _errors(status)),
        *((None, line) for line in describe_errors(status.errors, status.first_errors)),
        *status.outcome,
        *([] if status.is_done else [("speed", _speed(status))]),
        *([] if status.published is None else [("published", status.published.describe(status.num_shards))]),
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
    retry = f"; {status.num_to_retry:,} with rows to retry" if status.num_to_retry else ""
    done = f"{status.num_done:,} of {status.num_shards:,} done"
    at_once = " at once, in random order" if status.is_scattered else ""
    return f"{done}, {status.num_in_work:,} in progress{at_once}{stale}, {status.num_free:,} free{retry}"


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


def _kept(status: Status) -> str:
    unit = "row" if status.num_samples == 1 else "sample"
    return f"{number(status.num_kept_tokens, 'token')} of {number(status.num_kept_rows, unit)} in flight"


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
    if worker.state == "working" and not worker.shards:
        does.append(SCATTERED_ROWS)
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
    slices = sorted({lease.shard_idx for lease in leases if lease.shard_idx >= 0} - set(shards))
    held = [_name_shards(shards)] if shards else []
    if slices:
        held.append(f"slices of {_name_shards(slices)}")
    if any(lease.shard_idx < 0 for lease in leases):
        held.append(SCATTERED_ROWS)
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

"""What workers did over time, from the figures that each of them appends: speeds, restarts, stops and stalls.

Times are Unix seconds by the clocks of the workers, which may differ by what the clocks of their hosts do.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from job.output.sharing.metrics import FRESH_SECS, WRITE_SECS, WorkerStats
from job.output.store.names import METRICS
from job.output.store.store import Store

MAX_BINS = 240
"""Points of a speed over time: about one for three pixels of a page."""

MIN_BIN_SECS = 1.0

MAX_LINES = 20_000
"""Of the figures of one worker, about this many lines are read: two days of them. Of more, every second, third, ..."""

STALL_SECS = 2 * FRESH_SECS
"""A worker that reports nothing, or computes nothing with rows at work, for this long has stalled. Figures are written
between two steps, so that one long step is a stall, too."""


WAIT_SECS = 2 * WRITE_SECS
"""A worker without rows for this long waits for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpan:
    """One worker, from when it began to compute to its last figures."""

    worker_id: str
    launch_id: str
    start: float
    end: float
    num_rows: int
    """Rows that it finished, errors included."""
    num_errors: int
    num_tokens: int
    """Prompt and completion tokens that it computed."""
    num_completion_tokens: int
    num_devices: int
    device: str
    """What it computed on; empty if it did not say."""
    joules: float | None
    """What its devices took while it computed, where they measure that."""
    is_active: bool
    left: str
    """Why it ended, in its own words; empty: it is active, or was killed, or an earlier version."""
    has_open_rows: bool
    """Whether it had rows in flight, or shards without a part, when it last reported."""
    waits: tuple[tuple[float, float], ...]
    """When it had nothing to compute for ``WAIT_SECS`` or longer: start and end of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a worker."""

    time: float
    kind: str
    """``start`` of the first launch; ``join``, a launch beside others; ``restart``, a launch after one that ended
    early, or when no other computes; ``stop`` before the run was done; ``stall``."""
    worker_id: str
    text: str
    secs: float = 0.0
    """How long a stall took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A run over time."""

    start: float
    bin_secs: float
    workers: tuple[WorkerSpan, ...]
    tokens_per_sec: npt.NDArray[np.float64]
    """[workers, bins]"""
    rows_per_sec: npt.NDArray[np.float64]
    """[bins], of all workers."""
    events: tuple[Event, ...]

    @property
    def worker_secs(self) -> float:
        """Seconds of all workers together."""
        return sum(worker.end - worker.start for worker in self.workers)


def read_timeline(store: Store, active: Collection[str]) -> Timeline | None:
    """Read the figures of all workers. Lines that cannot be read are left out.

    Args:
        active: the workers that hold something now, or wait for it.

    Returns:
        None if no worker has written figures.
    """
    histories = [history for name in _names(store) if (history := _history(store, name))]
    return make_timeline(histories, active, time.time()) if histories else None


def make_timeline(
    histories: Sequence[Sequence[WorkerStats]], active: Collection[str] = (), now: float = math.inf
) -> Timeline:
    """Return the time line of workers, each of which has one line of figures or more, in order.

    Args:
        now: Unix time. A worker that is not active, but reported a moment ago, may be about to hold something.
    """
    histories = sorted(histories, key=lambda history: (_start(history), history[0].worker_id))
    spans = tuple(_span(history, active) for history in histories)
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    num_bins = int(np.clip((end - start) // MIN_BIN_SECS, 1, MAX_BINS))
    bin_secs = max(MIN_BIN_SECS, end - start) / num_bins
    edges: npt.NDArray[np.float64] = start + bin_secs * np.arange(num_bins + 1, dtype=np.float64)
    tokens = np.stack([_per_sec(history, [each.num_tokens for each in history], edges) for history in histories])
    rows = np.stack([_per_sec(history, [each.num_rows for each in history], edges) for history in histories])
    stops = list(_stops(spans, now))
    events = [*_launches(spans, stops), *stops, *(stall for history in histories for stall in _stalls(history))]
    return Timeline(
        start=start,
        bin_secs=bin_secs,
        workers=spans,
        tokens_per_sec=tokens,
        rows_per_sec=rows.sum(axis=0),
        events=tuple(sorted(events, key=lambda event: event.time)),
    )


def _names(store: Store) -> Iterator[str]:
    for entry in store.list(METRICS) if store.exists(METRICS) else ():
        if entry.name.endswith(".jsonl"):
            yield f"{METRICS}/{entry.name}"


def _history(store: Store, name: str) -> list[WorkerStats]:
    try:
        lines = store.read(name).splitlines()
    except OSError:
        return []
    step = max(1, len(lines) // MAX_LINES)
    kept = lines[::step] if (len(lines) - 1) % step == 0 else [*lines[::step], lines[-1]]
    found = [stats for line in kept if (stats := WorkerStats.from_json(line)) is not None]
    return [stats for idx, stats in enumerate(found) if idx == 0 or stats.time >= found[idx - 1].time]


def _start(history: Sequence[WorkerStats]) -> float:
    return history[0].time - history[0].elapsed_secs


def _span(history: Sequence[WorkerStats], active: Collection[str]) -> WorkerSpan:
    last = history[-1]
    return WorkerSpan(
        worker_id=last.worker_id,
        launch_id=last.launch_id,
        start=_start(history),
        end=last.time,
        num_rows=last.num_rows,
        num_errors=last.num_errors,
        num_tokens=last.num_tokens,
        num_completion_tokens=last.num_completion_tokens,
        num_devices=max(1, last.num_devices),
        device=last.device,
        joules=last.joules,
        is_active=last.worker_id in active,
        left=last.left,
        has_open_rows=bool(last.num_at_work or last.open_shards),
        waits=tuple(_waits(history)),
    )


def _waits(history: Sequence[WorkerStats]) -> Iterator[tuple[float, float]]:
    since: WorkerStats | None = None
    for before, after in pairwise([*history, history[-1]]):
        is_idle = before.num_at_work == after.num_at_work == 0 and before.num_tokens == after.num_tokens
        if is_idle and after is not before:
            since = since or before
        elif since is not None:
            if before.time - since.time >= WAIT_SECS:
                yield since.time, before.time
            since = None


def _per_sec(
    history: Sequence[WorkerStats], counts: Sequence[int], edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the speed between each two edges, from counts that only grow: [edges - 1] float64."""
    times = np.array([_start(history), *(each.time for each in history)])
    grown = np.interp(edges, times, np.maximum.accumulate([0, *counts]))
    speed: npt.NDArray[np.float64] = np.diff(grown) / np.diff(edges)
    return speed


def _launches(spans: Sequence[WorkerSpan], stops: Sequence[Event]) -> Iterator[Event]:
    """Yield when launches began: workers of one launch that start together are one event."""
    first: dict[str, WorkerSpan] = {}
    for span in spans:
        first.setdefault(span.launch_id or span.worker_id, span)
    num_restarts = 0
    for idx, (launch_id, span) in enumerate(first.items()):
        num_workers = sum((each.launch_id or each.worker_id) == launch_id for each in spans)
        text = f"{num_workers:,} worker{'s' if num_workers > 1 else ''} began"
        num_stops = sum(stop.time < span.start for stop in stops)
        is_alone = not any(other.start <= span.start <= other.end for other in spans if other is not span)
        kind = "start" if idx == 0 else "restart" if is_alone or num_stops > num_restarts else "join"
        num_restarts = num_stops if kind == "restart" and is_alone else num_restarts + (kind == "restart")
        yield Event(time=span.start, kind=kind, worker_id=span.worker_id, text=text)


def _stops(spans: Sequence[WorkerSpan], now: float) -> Iterator[Event]:
    """Yield which workers ended before there was nothing left to do."""
    for span in spans:
        if span.is_active or span.left == "done":
            continue
        if span.left:
            yield Event(time=span.end, kind="stop", worker_id=span.worker_id, text=f"stopped: {span.left}")
        elif span.has_open_rows or (span.device and now - span.end >= FRESH_SECS):
            # A worker that names its device also says why it ends, if it can.
            rows = ", with rows in flight" if span.has_open_rows else ""
            text = f"ended without saying why{rows}: killed, or its machine was lost"
            yield Event(time=span.end, kind="stop", worker_id=span.worker_id, text=text)


def _stalls(history: Sequence[WorkerStats]) -> Iterator[Event]:
    """Yield the times without a figure, or with rows at work and no token computed."""
    begun: WorkerStats | None = None
    for before, after in pairwise([*history, history[-1]]):
        is_still = after is not before and after.num_tokens == before.num_tokens and before.num_at_work > 0
        is_silent = after.time - before.time >= STALL_SECS and before.num_at_work > 0
        if is_still or is_silent:
            begun = begun or before
            continue
        if begun is not None and before.time - begun.time >= STALL_SECS:
            secs = before.time - begun.time
            yield Event(
                time=begun.time, kind="stall", worker_id=before.worker_id, secs=secs, text=_describe_stall(begun, secs)
            )
        begun = None


def _describe_stall(begun: WorkerStats, secs: float) -> str:
    return f"nothing computed for {secs:,.0f} s, with {begun.num_at_work:,} rows in flight"

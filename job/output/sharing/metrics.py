"""Workers' figures over time, one JSON object per line: writing a worker's own, and reading the latest of all.

Workers of different versions read each other's figures: unknown fields are ignored, missing ones have their default.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from job.output.store.names import METRICS
from job.output.store.store import Store

WRITE_SECS = 10.0
"""The interval of a worker's figures, unless its store asks for a longer one."""

FRESH_SECS = 3 * WRITE_SECS
"""A worker that has written nothing for this long, or for three intervals, is not counted as working."""

SILENT_SECS = 3600.0
"""One that has written nothing for this long is not read again: a run that was started often has many files."""

TAIL_BYTES = 16 * 1024
"""More than the lines of ``WINDOW_SECS`` take, unless a worker has very many open shards."""

WINDOW_SECS = 60.0
"""A rate is measured over this time, so that it is current and yet steady."""

MAX_NUMBER = 2**62
"""What no figure reaches: a line with more is damaged."""

YOUNG_SECS = 1.0
"""The rate of a younger worker is 0, since it would depend on a single step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """What one worker has done since it started, and what it holds now."""

    worker_id: str
    launch_id: str = ""
    """The same for all workers that one command started."""
    time: float = 0.0
    """Unix time, by the worker's clock."""
    elapsed_secs: float = 0.0
    """Since it began to compute, without the time for loading."""
    num_rows: int = 0
    """Rows finished by this worker, errors included."""
    num_open_rows: int = 0
    """Finished rows of the shards that it holds, which are not in a part yet."""
    num_errors: int = 0
    num_tokens: int = 0
    """Prompt and completion tokens computed, unfinished rows included."""
    num_completion_tokens: int = 0
    """Completion tokens of the rows that it has finished."""
    num_at_work: int = 0
    """Rows that it is computing now."""
    open_shards: tuple[int, ...] = ()
    num_devices: int = 1
    """Devices that compute together as this worker."""
    device: str = ""
    """What they are, such as ``cpu`` or the name of a GPU."""
    joules: float | None = None
    """What its devices took since it began to compute; None where they do not measure it."""
    left: str = ""
    """Why it ended: ``done``, a signal, or what failed. Empty before."""

    @classmethod
    def from_json(cls, line: bytes) -> "WorkerStats | None":
        """Read a line; None if it is torn, cut off, or not from a worker."""
        try:
            values = json.loads(line)
            if not {"worker_id", "time", "num_rows"} <= values.keys():
                return None
            known = {name: read(values[name]) for name, read in _READERS.items() if values.get(name) is not None}
            return cls(**known)
        except (LookupError, ValueError, TypeError, AttributeError):
            return None

    def to_json(self) -> str:
        """Return a line."""
        return json.dumps(asdict(self)) + "\n"


def _number(value: Any) -> Any:
    if not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:  # also NaN, which Python's JSON has
        raise TypeError
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    if not all(isinstance(number, int) for number in value):
        raise TypeError
    return tuple(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys((field.name for field in fields(WorkerStats)), _number),
    "worker_id": str,
    "launch_id": str,
    "device": str,
    "left": str,
    "open_shards": _numbers,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestStats:
    """One worker's latest figures."""

    stats: WorkerStats
    tokens_per_sec: float
    """Over the last minute of its figures."""
    written: float
    """Unix time by the store's clock."""


class MetricsFile:
    """Appends a worker's figures every few seconds."""

    def __init__(self, store: Store, name: str, *, every_secs: float | None = None) -> None:
        """Use this object, which is created with the first line."""
        self._store, self._name = store, name
        self._every_secs = max(WRITE_SECS, store.pause_secs) if every_secs is None else every_secs
        self._last: float | None = None
        self._num_rows = -1

    def write_if_due(self, stats: WorkerStats) -> None:
        """Append a line if the last is old enough."""
        if self._last is None or time.monotonic() - self._last >= self._every_secs:
            self.write(stats)

    def write_if_changed(self, stats: WorkerStats) -> None:
        """Append a line if rows were finished since the last."""
        if stats.num_rows != self._num_rows:
            self.write(stats)

    def write(self, stats: WorkerStats) -> None:
        """Append a line, and close the object each time: over NFS, others see the line only then."""
        self._last, self._num_rows = time.monotonic(), stats.num_rows
        with self._store.append(self._name) as end:
            end.append(stats.to_json().encode(), durable=False)


class MetricsReader:
    """Reads the latest figures of workers, as often as needed."""

    def __init__(self, store: Store) -> None:
        """Read from the store of one run."""
        self._store = store
        self._silent: set[str] = set()

    def read(self) -> list[LatestStats]:
        """Return the latest figures of every worker that ever wrote any. Unreadable ones are left out."""
        return [found for name in self._names() if (found := self._latest(name)) is not None]

    def read_others(self, own: str) -> list[WorkerStats]:
        """Return the latest figures of other workers that wrote recently; none before this worker has written.

        Args:
            own: name of this worker's figures. Their stamp is the present time, since the clocks of nodes differ.
        """
        try:
            now = self._store.stamp(own).written
        except OSError:
            return []
        ages: dict[str, tuple[float, WorkerStats]] = {}
        for name in self._names():
            if name != own and name not in self._silent and (found := self._latest(name)) is not None:
                ages[name] = now - found.written, found.stats
        self._silent |= {name for name, (age, _) in ages.items() if age > SILENT_SECS}
        fresh_secs = max(FRESH_SECS, 3 * self._store.pause_secs)
        return [stats for age, stats in ages.values() if age <= fresh_secs]

    def _names(self) -> list[str]:
        return [f"{METRICS}/{entry.name}" for entry in self._store.list(METRICS) if entry.name.endswith(".jsonl")]

    def _latest(self, name: str) -> LatestStats | None:
        num_bytes = TAIL_BYTES
        try:
            while True:
                tail, stamp = self._store.look(name, -num_bytes)
                history = _history(reversed(tail.splitlines()))
                if history:
                    return LatestStats(stats=history[0], tokens_per_sec=_rate(history), written=stamp.written)
                if num_bytes >= stamp.num_bytes:
                    return None
                num_bytes *= 4  # a worker with many open shards writes long lines
        except OSError:
            return None


def _history(lines: Iterable[bytes]) -> list[WorkerStats]:
    """Return the figures of the last minute, the latest first."""
    history: list[WorkerStats] = []
    for line in lines:
        stats = WorkerStats.from_json(line)
        if stats is None:
            continue  # half-written, or cut off at the start of the tail
        if history and history[0].elapsed_secs - stats.elapsed_secs > WINDOW_SECS:
            break
        history.append(stats)
    return history


def _rate(history: Sequence[WorkerStats]) -> float:
    """Return tokens per second, over the worker's whole life if there are too few figures; 0 if it is too young."""
    last, first = history[0], history[-1]
    secs = last.elapsed_secs - first.elapsed_secs
    if secs >= WINDOW_SECS / 6:
        return max(0.0, (last.num_tokens - first.num_tokens) / secs)
    return last.num_tokens / last.elapsed_secs if last.elapsed_secs >= YOUNG_SECS else 0.0

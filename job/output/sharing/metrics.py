"""A worker's figures over time, one JSON object a line, and what the latest of all workers say together."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FRESH_SECS = 30.0
"""A worker that has written nothing for so long is not counted as working."""

GONE_SECS = 3600.0
"""One that has written nothing for so long is not looked at again: a run that was started often has many files."""

TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one worker has done since it started, and now holds."""

    worker_id: str
    launch_id: str
    """The same for all workers that one command started."""
    time: float
    """Unix time, by the worker's clock."""
    elapsed_secs: float
    """Since it began to compute, loading not included."""
    num_rows: int
    """Rows finished by this worker, errors included."""
    num_open_rows: int
    """Finished rows of the shards that it holds: not in a part yet."""
    num_errors: int
    num_tokens: int
    """Prompt and completion tokens computed, unfinished rows included."""
    num_at_work: int
    """Rows that it is computing now."""
    open_shards: tuple[int, ...]


class MetricsFile:
    """Appends figures every few seconds. Its modification time is the worker's heartbeat."""

    def __init__(self, path: Path, *, every_secs: float = 10.0) -> None:
        """Write nothing yet."""
        self._path, self._every_secs = path, every_secs
        self._last: float | None = None
        self._num_rows = -1

    def write_if_due(self, figures: Figures) -> None:
        """Append a line if the last is old enough."""
        if self._last is None or time.monotonic() - self._last >= self._every_secs:
            self.write(figures)

    def write_if_changed(self, figures: Figures) -> None:
        """Append a line if rows were finished since the last."""
        if figures.num_rows != self._num_rows:
            self.write(figures)

    def write(self, figures: Figures) -> None:
        """Append a line."""
        self._last, self._num_rows = time.monotonic(), figures.num_rows
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(figures)) + "\n")


class MetricsReader:
    """Reads the latest figures of other workers, again and again."""

    def __init__(self, directory: Path, own: Path) -> None:
        """Read nothing yet.

        Args:
            own: the file of this worker. It tells the time, since the clocks of nodes and of the file server differ.
        """
        self._directory, self._own = directory, own
        self._gone: set[Path] = set()

    def read(self) -> list[Figures]:
        """Return the last line of each file that was written lately, of others than this worker.

        Nobody's before this worker has written.
        """
        if (now := _written(self._own)) is None:
            return []
        ages = {
            path: now - written
            for path in self._directory.glob("*.jsonl")
            if path != self._own and path not in self._gone and (written := _written(path)) is not None
        }
        self._gone |= {path for path, age in ages.items() if age > GONE_SECS}
        latest = [_read_last(path) for path, age in ages.items() if age <= FRESH_SECS]
        return [figures for figures in latest if figures is not None]


def _written(path: Path) -> float | None:
    """Return when a file was written last; None if it is not there."""
    try:
        with path.open("rb") as file:  # over NFS, that makes the client ask for the time anew
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _read_last(path: Path) -> Figures | None:
    """Return the last line that is whole. There may be none: it says more next time."""
    num_bytes = TAIL_BYTES
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while True:
                file.seek(max(0, size - num_bytes))
                for line in reversed(file.read(num_bytes).splitlines()):
                    if (figures := _parse(line)) is not None:
                        return figures
                if num_bytes >= size:
                    return None
                num_bytes *= 4  # a worker with many open shards writes long lines
    except OSError:
        return None


def _parse(line: bytes) -> Figures | None:
    try:
        values = json.loads(line)
        return Figures(**{**values, "open_shards": tuple(values["open_shards"])})
    except (LookupError, ValueError, TypeError):
        return None  # torn, or cut off at the start of the tail

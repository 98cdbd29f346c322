"""A worker's figures over time, one JSON object a line, and what the latest of all workers say together."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FRESH_SECS = 30.0
"""A worker that has written nothing for so long is not counted as working."""


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
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(figures)) + "\n")


def read_latest(paths: Iterable[Path]) -> list[Figures]:
    """Return the last line of each file that was written lately."""
    latest = []
    for path in paths:
        try:
            if time.time() - path.stat().st_mtime > FRESH_SECS:
                continue
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 4096))
                lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
            values = json.loads(lines[-1])
            latest.append(Figures(**{**values, "open_shards": tuple(values["open_shards"])}))
        except (FileNotFoundError, LookupError, ValueError, TypeError):
            continue  # another worker's file, half-written: it says more next time
    return latest

"""How fast a worker is now, from the end of its figures. Unlike ``metrics``, it takes workers that are gone, too."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from job.output.sharing.metrics import Figures

TAIL_BYTES = 16 * 1024
WINDOW_SECS = 60.0
"""A rate is taken over so long, so that it is that of now and yet steady."""

YOUNG_SECS = 1.0
"""Before that, one step makes the rate."""

_NUMBERS = [field.name for field in fields(Figures) if field.name not in ("worker_id", "launch_id", "open_shards")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """One worker's latest figures."""

    figures: Figures
    tokens_per_sec: float
    """Over the last minute of the figures."""
    written: float
    """Unix time by the clock that stamps the files."""


def read_paces(directory: Path) -> list[Pace]:
    """Return the pace of every worker that ever wrote figures. A file that cannot be read is left out."""
    paces = (_read_pace(path) for path in directory.glob("*.jsonl"))
    return [pace for pace in paces if pace is not None]


def _read_pace(path: Path) -> Pace | None:
    try:
        with path.open("rb") as file:
            written, size = path.stat().st_mtime, path.stat().st_size
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    history = _history(reversed(lines))
    if not history:
        return None
    return Pace(figures=history[0], tokens_per_sec=_rate(history), written=written)


def _history(lines: Iterable[bytes]) -> list[Figures]:
    """Return the figures of the last minute, the latest first."""
    history: list[Figures] = []
    for line in lines:
        figures = _parse(line)
        if figures is None:
            continue  # half-written, or cut off at the start of the tail
        if history and history[0].elapsed_secs - figures.elapsed_secs > WINDOW_SECS:
            break
        history.append(figures)
    return history


def _rate(history: Sequence[Figures]) -> float:
    """Return tokens per second, over the worker's whole life if there are too few figures; 0 if it is too young."""
    last, first = history[0], history[-1]
    secs = last.elapsed_secs - first.elapsed_secs
    if secs >= WINDOW_SECS / 6:
        return max(0.0, (last.num_tokens - first.num_tokens) / secs)
    return last.num_tokens / last.elapsed_secs if last.elapsed_secs >= YOUNG_SECS else 0.0


def _parse(line: bytes) -> Figures | None:
    """Read a line, also that of another version which says more."""
    try:
        values = json.loads(line)
        shards = tuple(values["open_shards"])
        numbers = {name: values[name] for name in _NUMBERS}
        if not all(isinstance(number, int | float) for number in numbers.values()):
            return None
        if not all(isinstance(shard_idx, int) for shard_idx in shards):
            return None
        return Figures(
            worker_id=str(values["worker_id"]), launch_id=str(values["launch_id"]), open_shards=shards, **numbers
        )
    except (ValueError, LookupError, TypeError):
        return None

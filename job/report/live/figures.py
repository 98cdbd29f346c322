"""The figures of one worker at one moment, as values: nothing of a row's text is in them."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STATES = ("preparing", "loading", "computing", "ended")
"""What a worker does, one after the other; in a chain again and again."""

TOKEN_BOUNDS = tuple(float(2**power) for power in range(3, 18))
"""8 to 131,072."""

SECS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How many values were at most as large as each bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Values up to each bound that are above the one before it; the last are those above all bounds."""
    total: float
    """Sum of the values."""


class Tally:
    """Counts values, one after the other.

    >>> tally = Tally((1.0, 10.0))
    >>> tally.add(1), tally.add(3), tally.add(30)
    (None, None, None)
    >>> tally.seen
    Distribution(bounds=(1.0, 10.0), counts=(1, 1, 1), total=34.0)
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin without values. The bounds ascend."""
        self._bounds, self._counts, self._total = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def seen(self) -> Distribution:
        """What was counted so far."""
        return Distribution(bounds=self._bounds, counts=tuple(self._counts), total=self._total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a worker has done for a run since it began to compute, and what it holds now."""

    run: str
    """The run directory, without secrets."""
    worker: str
    about: Mapping[str, str]
    """What does not change: version, model, engine, device, launch."""
    start_time: float
    """When it began to compute, as Unix time."""
    time: float
    """When these figures were made, as Unix time: after the latest step."""
    finish_reasons: Mapping[str, int]
    """Finish reason to the completions that it has finished."""
    errors: Mapping[str, int]
    """Error kind to the error rows that it has finished."""
    num_prompt_tokens: int
    """Of finished rows, as all that have no other words."""
    num_completion_tokens: int
    num_computed_tokens: int
    """Prompt and completion tokens computed, unfinished rows included."""
    num_running: int
    """Rows that are being computed."""
    num_waiting: int
    """Rows that wait in the engine."""
    num_cache_tokens: int
    num_used_cache_tokens: int
    num_preemptions: int
    num_open_shards: int
    num_devices: int
    joules: float | None
    """None: not measured."""
    secs: Mapping[str, float]
    """Activity to seconds, since this process began."""
    num_run_rows: int
    """Output rows of the whole run."""
    num_run_rows_pending: int
    """About how many of them are not finished, by whatever worker."""
    prompt_tokens: Distribution
    """Of the rows that it has finished."""
    completion_tokens: Distribution
    step_secs: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a scrape sees: the state of a worker, and its latest figures, which a new run begins without."""

    state: str = STATES[0]
    figures: Figures | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Run and worker, as soon as they are known."""

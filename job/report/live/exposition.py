"""What Prometheus is given: the names of all metrics, and how each is read from a worker's figures.

The names follow Prometheus' conventions: base units, ``_total`` for what only grows. Labels are few: the run, the
worker, and where a metric has parts, one more, whose values are a small fixed set. No text of a row is ever a label.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from job.report.live.figures import STATES, Distribution, Figures, Seen

COMMON = ("run", "worker")
"""Labels of all metrics."""

Value = float | None | Mapping[str, float] | Distribution


@dataclass(frozen=True, slots=True)
class Family:
    """One metric."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily]
    name: str
    """Without ``_total``, which Prometheus' library adds to counters."""
    help: str
    read: Callable[[Figures], Value]
    """Returns its value, None if there is none, or label value to value."""
    label: str | None = None
    """What its parts are told apart by."""

    @property
    def full_name(self) -> str:
        """The name as it is scraped."""
        return f"{self.name}_total" if self.kind is CounterMetricFamily else self.name

    def metric(self, figures: Figures, labels: Mapping[str, str]) -> Metric:
        """Return it with its values."""
        own = [labels[name] for name in COMMON]
        metric = self.kind(self.name, self.help, labels=[*COMMON, *([] if self.label is None else [self.label])])
        value = self.read(figures)
        if isinstance(metric, HistogramMetricFamily):
            assert isinstance(value, Distribution)
            bounds = [*map(str, value.bounds), "+Inf"]
            metric.add_metric(own, list(zip(bounds, accumulate(value.counts), strict=True)), sum_value=value.total)
        elif isinstance(value, Mapping):
            for part, number in value.items():
                metric.add_metric([*own, part], number)
        elif isinstance(value, int | float):
            metric.add_metric(own, value)
        return metric


COUNTER, GAUGE, HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

FAMILIES = (
    Family(COUNTER, "job_rows_completed", "Rows with a completion.", lambda f: f.finish_reasons, "finish_reason"),
    Family(COUNTER, "job_rows_failed", "Error rows.", lambda f: f.errors, "kind"),
    Family(COUNTER, "job_prompt_tokens", "Prompt tokens of finished rows.", lambda f: f.num_prompt_tokens),
    Family(COUNTER, "job_completion_tokens", "Completion tokens of finished rows.", lambda f: f.num_completion_tokens),
    Family(
        COUNTER,
        "job_computed_tokens",
        "Prompt and completion tokens computed, unfinished rows included.",
        lambda f: f.num_computed_tokens,
    ),
    Family(COUNTER, "job_preemptions", "Rows that lost their place in the KV cache.", lambda f: f.num_preemptions),
    Family(COUNTER, "job_stage_seconds", "Where the time of this process goes.", lambda f: _stages(f.secs), "stage"),
    Family(COUNTER, "job_energy_joules", "What the devices took, where NVML counts it.", lambda f: f.joules),
    Family(HISTOGRAM, "job_row_prompt_tokens", "Prompt tokens of a row.", lambda f: f.prompt_tokens),
    Family(HISTOGRAM, "job_row_completion_tokens", "Completion tokens of a row.", lambda f: f.completion_tokens),
    Family(HISTOGRAM, "job_step_seconds", "Duration of a step of the engine.", lambda f: f.step_secs),
    Family(GAUGE, "job_rows_running", "Rows that are being computed.", lambda f: f.num_running),
    Family(GAUGE, "job_rows_waiting", "Rows that wait in the engine.", lambda f: f.num_waiting),
    Family(GAUGE, "job_kv_cache_tokens", "Room of the KV cache, in tokens.", lambda f: f.num_cache_tokens or None),
    Family(GAUGE, "job_kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1.", lambda f: _usage(f)),
    Family(GAUGE, "job_open_shards", "Shards that this worker holds.", lambda f: f.num_open_shards),
    Family(GAUGE, "job_devices", "Devices that compute together as this worker.", lambda f: f.num_devices),
    Family(GAUGE, "job_run_rows", "Rows of the whole run.", lambda f: f.num_run_rows),
    Family(
        GAUGE,
        "job_run_rows_pending",
        "Rows of the whole run that are not finished, as this worker knows it.",
        lambda f: f.num_run_rows_pending,
    ),
    Family(GAUGE, "job_start_time_seconds", "When this worker began to compute (Unix time).", lambda f: f.start_time),
    Family(GAUGE, "job_last_step_time_seconds", "When its latest step ended (Unix time).", lambda f: f.time),
)
"""All metrics but ``INFO`` and ``STATE``."""

INFO = "job_info"
STATE = "job_state"

NAMES = (*(family.full_name for family in FAMILIES), INFO, STATE)


def _usage(figures: Figures) -> float | None:
    return figures.num_used_cache_tokens / figures.num_cache_tokens if figures.num_cache_tokens else None


def _stages(secs: Mapping[str, float]) -> dict[str, float]:
    return {name.replace(" ", "_"): value for name, value in secs.items()}


class Exposition(Collector):
    """Reads what a worker shows, whenever Prometheus asks."""

    def __init__(self, see: Callable[[], Seen]) -> None:
        """Read what ``see`` returns. It is called in other threads."""
        self._see = see

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that there are."""
        seen = self._see()
        labels = {name: seen.labels.get(name, "") for name in COMMON}
        own = list(labels.values())
        state = GaugeMetricFamily(STATE, "What this worker does: 1 for one of the states.", labels=[*COMMON, "state"])
        for name in STATES:
            state.add_metric([*own, name], float(name == seen.state))
        yield state
        if seen.figures is None:
            return
        about = dict(seen.figures.about)
        info = GaugeMetricFamily(INFO, "What this worker is.", labels=[*COMMON, *about])
        info.add_metric([*own, *about.values()], 1.0)
        yield info
        yield from (family.metric(seen.figures, labels) for family in FAMILIES)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not checked against those of others when this is registered."""
        return ()

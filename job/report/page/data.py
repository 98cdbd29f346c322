"""What the page of a run shows, as one value of JSON: made from the status, the time line, the labels and some rows."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import job
from job.errors import JobError
from job.observe.status import Status
from job.output.looking.found import FoundRun
from job.output.parts.order import shuffled
from job.report.cost import Cost, cost_of
from job.report.coverage import Coverage, coverage_of
from job.report.label_next import LabelNext
from job.report.label_report import LabelReport
from job.report.lengths import lengths_of
from job.report.row_sample import RowSample, sample_rows
from job.report.timeline import Timeline, WorkerSpan, read_timeline

MAX_LINES = 9
"""Workers with a line of their own in the chart of speeds; the others are added up."""

MAX_SPANS = 60
"""Workers with a bar of their own in the chart of times."""

MAX_EVENTS = 500

MAX_LABELS = 50
"""Labels with a number of their own; the others are added up."""

MAX_TO_LABEL = 200
"""Rows to label next that are shown."""

SECTIONS = ("model", "prompt", "sampling", "modes")
"""Of the manifest, those that are shown."""

MAX_SETTING = 2_000
"""Characters of one setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """Whether every row that went in came out: ``total`` is ``done + errors + pending``."""

    total: int
    done: int
    """Finished without an error."""
    errors: int
    pending: int

    @classmethod
    def of(cls, status: Status) -> "Reconciliation":
        """Return the numbers of a status."""
        errors = sum(status.errors.values())
        return cls(
            total=status.total_rows,
            done=status.num_rows - errors,
            errors=errors,
            pending=status.total_rows - status.num_rows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageData:
    """Everything that a page shows."""

    run: FoundRun
    status: Status
    timeline: Timeline | None
    cost: Cost | None
    labels: LabelReport | None
    labels_note: str | None
    """Why there are no labels, if some were to be expected."""
    label_next: LabelNext | None
    """Rows to label next, if they were asked for."""
    sample: RowSample
    live_secs: float | None
    """How often a page that follows the run asks for new numbers; None: a file."""

    @property
    def coverage(self) -> Coverage | None:
        """Which rows an unfinished run has finished; None if it is finished, has nothing yet, or is damaged.

        While it runs, rows are in flight, so only that it computes a random sample is worth a word.
        """
        plan, seed = self.run.plan, self.run.manifest.section("sampling")["seed"]
        if self.status.is_done or self.damages or not len(self.sample.finished):
            return None
        found = coverage_of(self.sample.finished, plan.num_rows, shuffled(plan.num_rows, seed))
        return None if found is None or (self.status.workers and not found.is_random) else found

    @property
    def damages(self) -> tuple[str, ...]:
        """What cannot be read, and why; and whether rows are missing."""
        status, sample = self.status, self.sample
        found = [*sample.unreadable, *status.damaged_journals]
        if status.is_done and not sample.unreadable and sample.num_rows != status.num_rows:
            found.append(f"The parts hold {sample.num_rows:,} rows, where there should be {status.num_rows:,}.")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without NaN and infinities."""
        status, sample = self.status, self.sample
        texts = {"prompt": sample.prompt_tokens, "completion": sample.completion_tokens}
        found = {name: lengths_of(numbers) for name, numbers in texts.items()}
        values = {
            "version": job.__version__,
            "made": time.time(),
            "live_secs": self.live_secs,
            "status": status.to_dict(),
            "outcome": [list(pair) for pair in status.outcome],
            "reconciliation": asdict(Reconciliation.of(status)),
            "settings": [["run", status.output], *(list(pair) for pair in _settings(self.run))],
            "defaults": [list(pair) for pair in _defaults(self.run)],
            "timeline": None if self.timeline is None else _timeline(self.timeline),
            "cost": None if self.cost is None else self.cost.to_dict(),
            "lengths": {name: None if each is None else each.to_dict() for name, each in found.items()},
            "labels": None if self.labels is None else _labels(self.labels),
            "labels_note": self.labels_note,
            "label_next": self._label_next(),
            "rows": list(sample.rows),
            "coverage": None if self.coverage is None else self.coverage.describe(),
            "sample": {"of": sample.num_rows, "random": sample.num_random},
            "notes": list(self.damages),
        }
        return _finite(values)  # type: ignore[no-any-return]

    def _label_next(self) -> dict[str, Any] | None:
        id_column = self.run.manifest.about["id_column"]
        return None if self.label_next is None else self.label_next.to_page(id_column, MAX_TO_LABEL)


def page_data(
    run: FoundRun,
    status: Status,
    labels: LabelReport | None,
    *,
    labels_note: str | None = None,
    label_next: LabelNext | None = None,
    price_per_hour: float | None = None,
    live_secs: float | None = None,
) -> PageData:
    """Read what the page of a run needs. Damaged parts are left out and named in it.

    Args:
        price_per_hour: of one device.

    Raises:
        JobError: the directory cannot be read.
    """
    try:
        timeline = read_timeline(run.directory.store, {worker.worker_id for worker in status.workers})
        sample = sample_rows(run)
    except OSError as error:
        path = error.filename or run.directory.store.describe()
        raise JobError(f"{path} cannot be read: {error.strerror or error}.") from None
    return PageData(
        run=run,
        status=status,
        timeline=timeline,
        cost=None if timeline is None else cost_of(timeline, price_per_hour),
        labels=labels,
        labels_note=labels_note,
        label_next=label_next,
        sample=sample,
        live_secs=live_secs,
    )


def _labels(labels: LabelReport) -> dict[str, Any]:
    """Return a report with the most frequent labels: free texts may be as many as rows."""
    values = labels.to_dict()
    sorted_labels = sorted(values["labels"].items(), key=lambda pair: -pair[1])
    rest = sorted_labels[MAX_LABELS:]
    others = {"labels": len(rest), "rows": sum(count for _, count in rest)}
    votes = labels.column.confidence == "majority_share" or (labels.num_samples > 1 and not labels.column.probs)
    return {
        **values,
        "labels": dict(sorted_labels[:MAX_LABELS]),
        "others": others,
        "is_of_row": labels.column.is_of_row,
        "is_vote": votes,
    }


def _settings(run: FoundRun) -> Iterator[tuple[str, str]]:
    """Yield what the manifest says of a run, for people: names and texts."""
    about = run.manifest.about
    for name in ("model", "model_commit", "adapter", "dataset", "dataset_config", "dataset_commit", "created", "host"):
        if about.get(name):
            yield name.replace("_", " "), _text(about[name])
    for section in SECTIONS:
        yield from _named(run.manifest.meaning.get(section, {}))
    yield "rows per shard", f"{run.plan.rows_per_shard:,}"
    versions = about.get("versions") or {}
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _defaults(run: FoundRun) -> Iterator[tuple[str, str]]:
    """Yield the settings that have their default."""
    for section in SECTIONS:
        given = run.manifest.meaning.get(section, {})
        yield from _named({name: value for name, value in run.manifest.section(section).items() if name not in given})


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if value not in (None, [], {}, "") and name not in ("fingerprint", "tokenizer"):
            yield name.replace("_", " "), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ", ".join(map(str.strip, value))
    text = str(value)
    return text if len(text) <= MAX_SETTING else f"{text[:MAX_SETTING]} ..."


def _timeline(timeline: Timeline) -> dict[str, Any]:
    order = np.argsort([-worker.num_tokens for worker in timeline.workers], kind="stable")
    own, others = order[:MAX_LINES], order[MAX_LINES:]
    lines = [(timeline.workers[idx].worker_id, timeline.tokens_per_sec[idx]) for idx in sorted(own)]
    if len(others):
        lines.append((f"{len(others):,} others", timeline.tokens_per_sec[others].sum(axis=0)))
    return {
        "start": timeline.start,
        "bin_secs": timeline.bin_secs,
        "lines": [{"name": name, "tokens_per_sec": _short(values)} for name, values in lines],
        "rows_per_sec": _short(timeline.rows_per_sec),
        "workers": [_worker(worker) for worker in timeline.workers[:MAX_SPANS]],
        "num_workers": len(timeline.workers),
        "events": [asdict(event) for event in timeline.events[:MAX_EVENTS]],
        "num_events": len(timeline.events),
    }


def _worker(worker: WorkerSpan) -> dict[str, Any]:
    values = asdict(worker)
    secs = worker.end - worker.start
    return {**values, "tokens_per_sec": worker.num_tokens / secs if secs > 0 else None}


def _short(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def _finite(value: Any) -> Any:
    """Replace what JSON does not have with null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value

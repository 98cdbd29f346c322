"""The main numbers of a run as text for a terminal."""

from typing import Any

from job.observe.text import format_secs, list_kinds, number, visible
from job.report.page.data import PageData, Reconciliation


def describe_run(data: PageData) -> str:
    """Return what a page shows first, as text."""
    status, rows = data.status, Reconciliation.of(data.status)
    unit = "rows" if status.num_samples == 1 else "samples"
    terms = f"{rows.done:,} done + {number(rows.errors, 'error')} + {rows.pending:,} pending"
    facts = [
        (unit, f"{rows.total:,} = {terms}"),
        *([] if data.coverage is None else [("sample", data.coverage.describe())]),
        ("errors", f"{rows.errors:,}{list_kinds(status.errors)}"),
        *((title, line) for title, line in status.outcome if title != "labels" or data.labels is None),
        ("tokens", f"{status.num_prompt_tokens:,} prompt, {status.num_completion_tokens:,} completion"),
        *([] if data.timeline is None else [("time", _time(data))]),
        *([] if data.cost is None else [("cost", _cost(data))]),
        *([] if data.labels_note is None else [("labels", f"none: {data.labels_note}")]),
        *(("damaged", note) for note in data.damages),
    ]
    return "\n".join([status.output, *(f"  {title:<10}{visible(line)}" for title, line in facts)])


def main_numbers(data: PageData) -> dict[str, Any]:
    """Return the same as JSON values."""
    status, rows = data.status, Reconciliation.of(data.status)
    return {
        "rows": {"total": rows.total, "done": rows.done, "errors": rows.errors, "pending": rows.pending},
        "errors": dict(status.errors),
        "tokens": {"prompt": status.num_prompt_tokens, "completion": status.num_completion_tokens},
        "sample": None if data.coverage is None else data.coverage.describe(),
        "cost": None if data.cost is None else data.cost.to_dict(),
    }


def _time(data: PageData) -> str:
    assert data.timeline is not None
    kinds = [event.kind for event in data.timeline.events]
    counted = [number(kinds.count(kind), kind) for kind in ("restart", "stop", "stall")]
    workers = number(len(data.timeline.workers), "worker")
    return f"{format_secs(data.timeline.worker_secs)} of {workers}; {', '.join(counted)}"


def _cost(data: PageData) -> str:
    cost = data.cost
    assert cost is not None
    parts = [f"{cost.device_hours:,.3g} {cost.unit} hours"]
    if cost.tokens_per_device_sec is not None:
        parts.append(f"{cost.tokens_per_device_sec:,.0f} tokens/s per {cost.unit}")
    if cost.kwh is not None:
        parts.append(f"{cost.kwh:,.3g} kWh")
    if cost.price is not None:
        parts.append(f"price {cost.price:,.4g}")
    if cost.price_per_1000_rows is not None:
        parts.append(f"{cost.price_per_1000_rows:,.4g} per 1,000 rows")
    return ", ".join(parts)

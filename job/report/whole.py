"""The report of one run: everything that ``job report`` prints, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from job.errors import UsageError
from job.output.looking.found import FoundRun
from job.report.gold import Gold, GoldOptions, find_gold
from job.report.label_next import LabelNext, choose_next
from job.report.label_report import LabelReport, report_labels
from job.report.label_source import has_labels
from job.report.rows import LabeledRows, RunColumns, kept_columns, read_labels

DEFAULT_GOLD = "gold"
"""The name of the column to be filled in, if no gold is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What is asked of a report."""

    gold: GoldOptions | None = None
    label: str | None = None
    """The column with the labels; None: the run's own."""
    confidence: float = 0.95
    label_next: int = 0
    """How many rows to choose."""
    seed: int = 0
    """Of the rows that are chosen at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report of a run."""

    labels: LabelReport | None
    """None: the run has no labels, and none are asked for."""
    label_next: LabelNext | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        chosen = None if self.label_next is None else self.label_next.table.to_pylist()
        return {"labels": None if self.labels is None else self.labels.to_dict(), "label_next": chosen}


def make_report(run: FoundRun, options: ReportOptions) -> Report:
    """Read a run and compute its report.

    Raises:
        UsageError: the run has no part yet, or lacks what is asked for.
        JobError: a part cannot be read.
    """
    is_asked = options.gold is not None or options.label is not None or options.label_next
    if not is_asked and not has_labels(run.manifest):
        return Report(labels=None)
    columns = RunColumns(run)
    rows = read_labels(columns, options.label, _others(columns, options))
    if not len(rows.row_idx):
        raise UsageError(f"{run.directory.store.describe()} has no row without an error: there is nothing to report.")
    gold = None if options.gold is None else find_gold(run, columns, rows, options.gold)
    name = DEFAULT_GOLD if options.gold is None else options.gold.column
    chosen = _choose(rows, gold, name, options) if options.label_next else None
    return Report(labels=report_labels(rows, gold, name, options.confidence), label_next=chosen)


def _choose(rows: LabeledRows, gold: Gold | None, name: str, options: ReportOptions) -> LabelNext:
    has_gold = np.zeros(len(rows.row_idx), np.bool_)
    if gold is not None:
        has_gold = np.asarray(pc.is_valid(gold.texts))
    if has_gold.all():
        raise UsageError("--label-next: every row has gold already.")
    return choose_next(rows, has_gold, options.label_next, name, seed=options.seed)


def _others(columns: RunColumns, options: ReportOptions) -> list[str]:
    """Return the columns to read beside the labels: what names a row, gold, and what a person needs to label one."""
    names: Sequence[str] = columns.schema.names
    is_matched = options.gold is not None or options.label_next  # rows of journals have no such column
    found = [columns.run.manifest.about["id_column"]] if is_matched else []
    if options.gold is not None and not options.gold.files:
        found.append(options.gold.column)
    if options.label_next:
        found += [*kept_columns(columns.schema), "prompt"]
    return [name for name in dict.fromkeys(found) if name in names]

"""What is to be said of the labels of a run: alone, and against gold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.modes.mode import LabelColumn
from job.report.accuracy import MAX_CLASSES, NONE, Accuracy, score
from job.report.calibration import Calibration, calibration
from job.report.gold import Gold
from job.report.intervals import Floats
from job.report.label_next import UNCERTAIN
from job.report.rows import LabeledRows, classes_of, indices_of
from job.report.shares import MIN_GOLD, Shares, corrected_shares

NUM_BINS = 20
"""Of the distribution of probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldReport:
    """Labels against gold."""

    column: str
    place: str
    """Where the gold is from, for people."""
    num_rows: int
    """Rows with a label and gold; the rest of the report is about these."""
    num_without_gold: int
    """Rows with a label and without gold."""
    num_chosen: int
    """Rows with gold that are left out, because they were chosen as uncertain: they are not like the others."""
    accuracy: Accuracy
    calibration: Calibration | None
    """None: the run has no probabilities."""
    shares: Shares | None
    """None: too few rows have gold, or the labels are free text."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "column": self.column,
            "place": self.place,
            "rows": self.num_rows,
            "rows_without_gold": self.num_without_gold,
            "rows_chosen_as_uncertain": self.num_chosen,
            **self.accuracy.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "shares": None if self.shares is None else self.shares.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """The labels of a run."""

    column: LabelColumn
    confidence_level: float
    """Of all intervals."""
    classes: tuple[str, ...]
    num_rows: int
    """Rows that are finished and not errors."""
    num_errors: int
    num_missing: int
    """Rows that are not in a part yet."""
    num_without_label: int
    """Of ``num_rows``."""
    num_samples: int
    counts: tuple[int, ...]
    """[classes]: how many rows have each label."""
    probabilities: tuple[int, ...] | None
    """[bins]: how many labels have a probability from 0 to 1/bins, up to 2/bins, ...; None if there are none."""
    gold: GoldReport | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "label": self.column.name,
            "confidence_level": self.confidence_level,
            "rows": self.num_rows,
            "errors": self.num_errors,
            "missing": self.num_missing,
            "without_label": self.num_without_label,
            "samples": self.num_samples,
            "labels": dict(zip(self.classes, self.counts, strict=True)),
            "probabilities": None if self.probabilities is None else list(self.probabilities),
            "gold": None if self.gold is None else self.gold.to_dict(),
        }


def report_labels(rows: LabeledRows, gold: Gold | None, gold_column: str, confidence: float) -> LabelReport:
    """Return what is to be said of the labels.

    Args:
        gold: None: there is none.
        gold_column: its name.
        confidence: of all intervals, such as 0.95.
    """
    columns = [rows.labels] if gold is None else [rows.labels, gold.texts]
    classes = classes_of(rows.source, *columns)
    if gold is not None:  # a gold label that the run cannot give is a class of its own, which is never right
        classes = (*classes, *sorted({*gold.texts.drop_null().to_pylist()} - {*classes}))
    labels = indices_of(rows.labels, classes)
    counts = np.bincount(labels[labels != NONE], minlength=len(classes))
    return LabelReport(
        column=rows.source,
        confidence_level=confidence,
        classes=classes,
        num_rows=len(labels),
        num_errors=rows.num_errors,
        num_missing=rows.num_missing,
        num_without_label=int((labels == NONE).sum()),
        num_samples=rows.num_samples,
        counts=tuple(counts.tolist()),
        probabilities=None if rows.confidence is None else _binned(rows.confidence),
        gold=None if gold is None else _against(rows, labels, gold, gold_column, classes, confidence),
    )


def _binned(confidence: Floats) -> tuple[int, ...]:
    known = confidence[~np.isnan(confidence)]
    return tuple(np.histogram(known, bins=NUM_BINS, range=(0, 1))[0].tolist())


def _against(
    rows: LabeledRows,
    labels: npt.NDArray[np.int64],
    gold: Gold,
    column: str,
    classes: Sequence[str],
    confidence: float,
) -> GoldReport:
    truth = indices_of(gold.texts, tuple(classes))
    is_chosen = np.zeros(len(truth), np.bool_)
    if gold.strata is not None:
        is_chosen = np.array([stratum == UNCERTAIN for stratum in gold.strata.to_pylist()]) & (truth != NONE)
    if (truth[~is_chosen] == NONE).all():
        is_chosen[:] = False  # there are no others: better than nothing, and said in a note
    used = (truth != NONE) & ~is_chosen
    accuracy = score(labels[used], truth[used], classes, confidence)
    has_probs = rows.confidence is not None and ~np.isnan(rows.confidence) & used & (labels != NONE)
    reliability = None
    if rows.confidence is not None and np.any(has_probs):
        is_right = (labels == truth)[has_probs].astype(np.float64)
        reliability = calibration(rows.confidence[has_probs], is_right, confidence)
    return GoldReport(
        column=column,
        place=gold.place,
        num_rows=int(used.sum()),
        num_without_gold=int((truth == NONE).sum()),
        num_chosen=int(is_chosen.sum()),
        accuracy=accuracy,
        calibration=reliability,
        shares=_shares(rows, labels, truth, used, is_chosen, classes, confidence),
        notes=gold.notes,
    )


def _shares(
    rows: LabeledRows,
    labels: npt.NDArray[np.int64],
    truth: npt.NDArray[np.int64],
    used: npt.NDArray[np.bool_],
    is_chosen: npt.NDArray[np.bool_],
    classes: Sequence[str],
    confidence: float,
) -> Shares | None:
    if used.sum() < MIN_GOLD or len(classes) > MAX_CLASSES:
        return None
    probs: Floats = (labels[:, None] == np.arange(len(classes))).astype(np.float64)
    if rows.probs is not None:
        known = np.nan_to_num(rows.probs)
        probs = np.pad(known, ((0, 0), (0, len(classes) - known.shape[1])))
    return corrected_shares(labels, probs, np.where(used, truth, NONE), classes, confidence)

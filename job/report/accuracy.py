"""Labels against gold: accuracy, Cohen's kappa, the confusion of classes, precision and recall of each.

A label may be missing (a row without an answer): it is wrong, and counts as a label of its own in the confusion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.report.intervals import Estimate, Floats, resampled, wilson

Ints = npt.NDArray[np.int64]

MAX_CLASSES = 100
"""Of more classes, only the accuracy is computed."""

NONE = -1
"""Stands for a label that is missing, in arrays of class indices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """How well one class is found."""

    name: str
    num_gold: int
    """Rows whose gold it is."""
    num_labels: int
    """Rows with gold that were given this label."""
    num_right: int
    precision: Estimate
    """Of the rows with this label, the share whose gold it is. NaN: no row has it."""
    recall: Estimate
    """Of the rows with this gold, the share that has the label. NaN: no row has it."""
    f1: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Labels compared with gold."""

    classes: tuple[str, ...]
    num_rows: int
    num_right: int
    accuracy: Estimate
    kappa: Estimate
    """Cohen's: agreement beyond what the shares of the labels alone would give. NaN if all rows have one label."""
    macro_f1: Estimate
    """The mean over the classes that occur."""
    confusion: tuple[tuple[int, ...], ...]
    """[gold, label] counts; the last column is of rows without a label. Empty, like ``of_classes``, if there are more
    than ``MAX_CLASSES``: then the labels are free text, and there is no kappa and no F1."""
    of_classes: tuple[ClassScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "rows": self.num_rows,
            "right": self.num_right,
            "accuracy": self.accuracy.to_dict(),
            "kappa": self.kappa.to_dict(),
            "macro_f1": self.macro_f1.to_dict(),
            "confusion": {
                "gold": list(self.classes),
                "labels": [*self.classes, None],
                "counts": [list(row) for row in self.confusion],
            },
            "classes": [
                {
                    "name": each.name,
                    "gold": each.num_gold,
                    "labels": each.num_labels,
                    "right": each.num_right,
                    "precision": each.precision.to_dict(),
                    "recall": each.recall.to_dict(),
                    "f1": each.f1.to_dict(),
                }
                for each in self.of_classes
            ],
        }


def score(labels: Ints, gold: Ints, classes: Sequence[str], confidence: float) -> Accuracy:
    """Compare labels with gold.

    Intervals are bootstrapped over rows; shares of 0 and 1, which every resample would repeat, have Wilson's.

    Args:
        labels: [rows] int64, class indices; ``NONE`` where one is missing.
        gold: [rows] int64, class indices. At least one row.
    """
    num_classes, num_right = len(classes), int((labels == gold).sum())
    if num_classes > MAX_CLASSES:
        [accuracy] = resampled(np.array([num_right, len(gold) - num_right]), _share_of_first, confidence)
        unknown = Estimate(value=math.nan, low=math.nan, high=math.nan)
        return Accuracy(
            classes=tuple(classes),
            num_rows=len(gold),
            num_right=num_right,
            accuracy=_proper(accuracy, num_right, len(gold), confidence),
            kappa=unknown,
            macro_f1=unknown,
            confusion=(),
            of_classes=(),
        )
    column = np.where(labels == NONE, num_classes, labels)
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    np.add.at(confusion, (gold, column), 1)
    accuracy, kappa, macro, *rest = resampled(confusion, _statistics, confidence)
    right, of_gold, of_labels = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    per_class = zip(*(iter(rest),) * 3, strict=True)
    return Accuracy(
        classes=tuple(classes),
        num_rows=len(gold),
        num_right=num_right,
        accuracy=_proper(accuracy, num_right, len(gold), confidence),
        kappa=kappa,
        macro_f1=macro,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        of_classes=tuple(
            ClassScores(
                name=name,
                num_gold=int(of_gold[idx]),
                num_labels=int(of_labels[idx]),
                num_right=int(right[idx]),
                precision=_proper(precision, int(right[idx]), int(of_labels[idx]), confidence),
                recall=_proper(recall, int(right[idx]), int(of_gold[idx]), confidence),
                f1=f1,
            )
            for idx, (name, (precision, recall, f1)) in enumerate(zip(classes, per_class, strict=True))
        ),
    )


def _share_of_first(tables: Floats) -> Floats:
    shares: Floats = tables[:, :1] / tables.sum(1, keepdims=True)
    return shares


def _proper(share: Estimate, count: int, total: int, confidence: float) -> Estimate:
    return wilson(count, total, confidence) if total and count in (0, total) else share


def _statistics(tables: Floats) -> Floats:
    """Return accuracy, kappa, macro F1, and precision, recall and F1 of each class: [B, 3 + 3 * classes].

    Args:
        tables: [B, gold, labels] float64, with a last column for rows without a label.
    """
    num_classes = tables.shape[1]
    right = np.diagonal(tables[:, :, :num_classes], axis1=1, axis2=2)
    of_gold, of_labels = tables.sum(2), tables.sum(1)[:, :num_classes]
    total = tables.sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = right.sum(1) / total
        by_chance = (of_gold * of_labels).sum(1) / total**2
        kappa = (accuracy - by_chance) / (1 - by_chance)
        kappa[by_chance >= 1] = np.nan
        precision, recall = right / of_labels, right / of_gold
        f1 = 2 * right / (of_labels + of_gold)
        macro = np.nansum(f1, axis=1) / (~np.isnan(f1)).sum(1)
    each = np.stack([precision, recall, f1], axis=2).reshape(len(tables), -1)
    return np.concatenate([accuracy[:, None], kappa[:, None], macro[:, None], each], axis=1)


def kappa_of(tables: Floats) -> Floats:
    """Return the agreement and Cohen's kappa of two raters: [B, 2].

    Args:
        tables: [B, classes, classes] float64.
    """
    total = tables.sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        agreement = np.trace(tables, axis1=1, axis2=2) / total
        by_chance = (tables.sum(2) * tables.sum(1)).sum(1) / total**2
        kappa = np.where(by_chance < 1, (agreement - by_chance) / (1 - by_chance), np.nan)
    return np.stack([agreement, kappa], axis=1)

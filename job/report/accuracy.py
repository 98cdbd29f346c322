"""Labels against gold: accuracy, Cohen's kappa, the confusion of classes, precision and recall of each.

A label may be missing (a row without an answer): it is wrong, and counts as a label of its own in the confusion.

Accuracy, precision and recall are shares of rows, and have Wilson's interval. So has F1, which is a function of such a
share: of the rows that are a class or are labeled so, those that are both. Kappa and macro F1 depend on the whole
table, whose probabilities are drawn given the counts. A bootstrap of few rows repeats what they happen to lack, such as
a rare class or any error; a prior does not, and leaves nothing without an interval. ``scripts/bench intervals``
measures all of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.report.intervals import Estimate, Floats, posterior, wilson

Ints = npt.NDArray[np.int64]

MAX_CLASSES = 100
"""Of more classes, only the accuracy is computed."""

MAX_PRIOR = 2.25
"""Rows that are added to a table of labels before its probabilities are drawn, at most; less of two classes."""

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

    Args:
        labels: [rows] int64, class indices; ``NONE`` where one is missing.
        gold: [rows] int64, class indices. At least one row.
    """
    num_classes, num_right = len(classes), int((labels == gold).sum())
    accuracy = wilson(num_right, len(gold), confidence)
    if num_classes > MAX_CLASSES:
        unknown = Estimate(value=math.nan, low=math.nan, high=math.nan)
        return Accuracy(
            classes=tuple(classes),
            num_rows=len(gold),
            num_right=num_right,
            accuracy=accuracy,
            kappa=unknown,
            macro_f1=unknown,
            confusion=(),
            of_classes=(),
        )
    column = np.where(labels == NONE, num_classes, labels)
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    np.add.at(confusion, (gold, column), 1)
    kappa, macro = of_table(confusion, _kappa_and_macro_f1, confidence)
    right, of_gold, of_labels = (each.tolist() for each in (np.diag(confusion), confusion.sum(1), confusion.sum(0)))
    return Accuracy(
        classes=tuple(classes),
        num_rows=len(gold),
        num_right=num_right,
        accuracy=accuracy,
        kappa=kappa,
        macro_f1=macro,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        of_classes=tuple(
            ClassScores(
                name=name,
                num_gold=of_gold[idx],
                num_labels=of_labels[idx],
                num_right=right[idx],
                precision=wilson(right[idx], of_labels[idx], confidence),
                recall=wilson(right[idx], of_gold[idx], confidence),
                f1=_f1(right[idx], of_gold[idx] + of_labels[idx] - right[idx], confidence),
            )
            for idx, name in enumerate(classes)
        ),
    )


def _f1(num_right: int, num_either: int, confidence: float) -> Estimate:
    """Return F1 of the rows that are both, of those that are a class or are labeled so: 2 * share / (1 + share)."""
    share = wilson(num_right, num_either, confidence)
    value, low, high = (2 * each / (1 + each) for each in (share.value, share.low, share.high))
    return Estimate(value=value, low=low, high=high)


def of_table(table: npt.NDArray[np.int64], statistic: Callable[[Floats], Floats], confidence: float) -> list[Estimate]:
    """Return numbers that depend on the table of two labels, with intervals.

    What is added to the counts is Jeffreys' prior of each class: 1/2 for rows that are it in both, and 1/2 in all for
    those that are it in one, each of which belongs to two classes. Of many classes, it is scaled down to ``MAX_PRIOR``
    rows in all. Classes that do not occur are left out.

    Args:
        table: [classes, classes] int64; a column more if only the second label may be missing.
        statistic: from tables [B, ...] float64 to [B, results] float64.
    """
    num_rows = len(table)
    occurs = table.sum(0) > 0
    occurs[:num_rows] |= table.sum(1) > 0
    used = table[np.ix_(occurs[:num_rows], occurs)]
    prior = np.full(used.shape, 1 / 4 / max(1, len(occurs[occurs]) - 1))
    np.fill_diagonal(prior, 1 / 2)
    return posterior(used, prior * min(1.0, MAX_PRIOR / prior.sum()), statistic, confidence)


def _kappa_and_macro_f1(tables: Floats) -> Floats:
    """Return both of [B, gold, labels] tables, where labels may have a last column of rows without one: [B, 2]."""
    num_classes = tables.shape[1]
    right = np.diagonal(tables[:, :, :num_classes], axis1=1, axis2=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * right / (tables.sum(2) + tables.sum(1)[:, :num_classes])
        macro = np.nansum(f1, axis=1) / (~np.isnan(f1)).sum(1)
    return np.stack([kappa_of(tables)[:, 0], macro], axis=1)


def kappa_of(tables: Floats) -> Floats:
    """Return Cohen's kappa of two labels, which is NaN if all rows have the same in both: [B, 1].

    Args:
        tables: [B, classes, classes] float64; a column more if only the second label may be missing.
    """
    total, num_classes = tables.sum((1, 2)), tables.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        agreement = np.trace(tables, axis1=1, axis2=2) / total
        by_chance = (tables.sum(2) * tables.sum(1)[:, :num_classes]).sum(1) / total**2
        kappa = np.where(by_chance < 1, (agreement - by_chance) / (1 - by_chance), np.nan)
    return kappa[:, None]

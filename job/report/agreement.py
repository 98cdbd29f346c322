"""The labels of two runs over the same rows: how often they agree, and which of the two is right.

McNemar's test asks whether one of two paired outcomes is more frequent: it looks only at the rows where they differ,
which a fair coin would split in halves (McNemar 1947; exact, by the binomial distribution).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.report.accuracy import MAX_CLASSES, NONE, kappa_of, of_table
from job.report.intervals import Estimate, Floats, posterior, wilson

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two yes-or-no outcomes of the same rows, compared."""

    a: float
    b: float
    """The shares."""
    difference: Estimate
    """b - a; its interval is by Jeffreys' prior of rows where only a, only b, and neither or both are true."""
    only_a: int
    only_b: int
    """Rows where one alone is true."""
    p_value: float
    """Of McNemar's test, two-sided: how often chance alone would split these rows as unevenly."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        counts = {"only_a": self.only_a, "only_b": self.only_b, "mcnemar_p": self.p_value}
        return {"a": self.a, "b": self.b, "difference": self.difference.to_dict(), **counts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The labels of two runs, compared."""

    classes: tuple[str, ...]
    num_rows: int
    num_equal: int
    agreement: Estimate
    kappa: Estimate
    """Cohen's; NaN if both give one label to all rows, or if there are more than ``MAX_CLASSES``."""
    table: tuple[tuple[int, ...], ...]
    """[label of a, label of b] counts; the last row and column are of rows without a label. Empty if there are more
    than ``MAX_CLASSES`` classes."""
    of_classes: tuple[tuple[str, Paired], ...]
    """For each class, the share of the rows that have it."""
    right: Paired | None
    """How often each is right; None without gold."""
    num_gold: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        names = [*self.classes, None]
        return {
            "rows": self.num_rows,
            "equal": self.num_equal,
            "agreement": self.agreement.to_dict(),
            "kappa": self.kappa.to_dict(),
            "table": {"a": names, "b": names, "counts": [list(row) for row in self.table]},
            "classes": [{"name": name, **paired.to_dict()} for name, paired in self.of_classes],
            "gold": None if self.right is None else {"rows": self.num_gold, "accuracy": self.right.to_dict()},
        }


def agree(a: Ints, b: Ints, gold: Ints | None, classes: Sequence[str], confidence: float) -> Agreement:
    """Compare two labels of the same rows.

    Args:
        a, b: [rows] int64, class indices; ``NONE`` where a run has no label, which is a label of its own here. At least
            one row.
        gold: the same; ``NONE`` in rows without gold. None: there is none.
    """
    num_equal, num_classes = int((a == b).sum()), len(classes)
    is_few = num_classes <= MAX_CLASSES
    has_gold = np.zeros(len(a), np.bool_) if gold is None else gold != NONE
    table = np.zeros((num_classes + 1, num_classes + 1) if is_few else (0, 0), np.int64)
    kappa = Estimate(value=math.nan, low=math.nan, high=math.nan)
    if is_few:
        np.add.at(table, (np.where(a == NONE, num_classes, a), np.where(b == NONE, num_classes, b)), 1)
        [kappa] = of_table(table, kappa_of, confidence)
    of_classes = [(name, pair(a == idx, b == idx, confidence)) for idx, name in enumerate(classes) if is_few]
    right = None
    if gold is not None and has_gold.any():
        right = pair((a == gold)[has_gold], (b == gold)[has_gold], confidence)
    return Agreement(
        classes=tuple(classes),
        num_rows=len(a),
        num_equal=num_equal,
        agreement=wilson(num_equal, len(a), confidence),
        kappa=kappa,
        table=tuple(tuple(row) for row in table.tolist()),
        of_classes=tuple(of_classes),
        right=right,
        num_gold=int(has_gold.sum()),
    )


def pair(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], confidence: float) -> Paired:
    """Compare two outcomes of the same rows: [rows] bool each, at least one row."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    counts = np.array([only_a, only_b, len(a) - only_a - only_b])
    [difference] = posterior(counts, np.full(3, 1 / 2), _difference, confidence)
    return Paired(
        a=float(a.mean()),
        b=float(b.mean()),
        difference=difference,
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p value of McNemar's exact test: twice the smaller tail of the binomial distribution, at most 1.

    >>> mcnemar(1, 5), mcnemar(0, 0)
    (0.21875, 1.0)
    """
    total = only_a + only_b
    logs = [
        math.lgamma(total + 1) - math.lgamma(idx + 1) - math.lgamma(total - idx + 1) - total * math.log(2)
        for idx in range(min(only_a, only_b) + 1)
    ]
    return min(1.0, round(2 * math.fsum(map(math.exp, logs)), 12))


def _difference(tables: Floats) -> Floats:
    difference: Floats = (tables[:, 1:2] - tables[:, :1]) / tables.sum(1, keepdims=True)
    return difference

"""The share of a class by prediction-powered inference, and its interval: the formulas, without names and notes.

Everything is computed over leading dimensions ``...``, such as none in a report, and the draws of a simulation in
``scripts/bench intervals``. ``[..., gold rows, classes]`` is written ``[..., n, C]``. What the interval is, and why, is
said in ``job.report.shares``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from job.report.intervals import Floats, skewed, t_quantile

ADDED_WEIGHT = 0.35
"""Of each of the four rows that are added to the gold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """The probabilities of the rows without gold."""

    num_rows: int
    mean: Floats
    """[..., C] float64; anything if there are no rows."""
    variance: Floats
    """[..., C] float64, divided by the number of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """Shares from 0 to 1: [..., C] float64 each."""

    value: Floats
    low: Floats
    high: Floats


def others_of(probs: Floats) -> Others:
    """Summarize the rows without gold: [rows, C] float64, or none."""
    rows = probs if len(probs) else np.zeros((1, probs.shape[1]))
    return Others(num_rows=len(probs), mean=rows.mean(0), variance=rows.var(0))


def ends_of(probs: Floats, is_labeled: npt.NDArray[np.bool_]) -> Floats:
    """Return the mean probability of each class among rows that are labeled so, and among the others: [2, C] float64;
    1 and 0 where there are no such rows.

    Args:
        probs, is_labeled: [rows, C].
    """
    total, num_labeled = probs.sum(0), is_labeled.sum(0)
    labeled, num_others = np.where(is_labeled, probs, 0).sum(0), len(probs) - num_labeled
    means = labeled / np.maximum(num_labeled, 1), (total - labeled) / np.maximum(num_others, 1)
    return np.stack([np.where(num_labeled, means[0], 1.0), means[1]])


def tuned_power(truth: Floats, predicted: Floats, others: Others) -> Floats:
    """Return the power that makes the sum of the variances of all shares least (PPI++, section 6), from 0 to 1, as
    ppi_py 0.2.3 does by default.

    Args:
        truth: [..., n, C] float64: 1 where the gold is the class, else 0.
        predicted: [..., n, C] float64: the probabilities of the same rows.

    Returns:
        [...] float64; 0 without other rows, and if all probabilities are equal.
    """
    num_gold, num_others = truth.shape[-2], others.num_rows
    mean = predicted.mean(-2)
    covariance = ((truth - truth.mean(-2, keepdims=True)) * (predicted - mean[..., None, :])).mean(-2).sum(-1)
    squares = num_gold * predicted.var(-2) + num_others * others.variance
    between = (mean - others.mean) ** 2 * (num_gold * num_others / (num_gold + num_others))
    variance = ((squares + between) / (num_gold + num_others - 1)).sum(-1)
    tunable = (variance > 0) & (num_others > 0)
    power = covariance / np.where(tunable, variance, 1) / (1 + num_gold / max(num_others, 1))
    return np.where(tunable, np.clip(power, 0, 1), 0.0)


def corrected(
    truth: Floats, predicted: Floats, others: Others, ends: Floats, power: Floats, confidence: float
) -> Corrected:
    """Return the shares: for the interval, the gold's weights are drawn, and the mean of the other rows is normal.

    Args:
        truth, predicted: [..., n, C] float64.
        ends: [2, C] float64: the mean probability of each class among rows that are labeled so, and among the others:
            those of the rows that are added.
        power: [...] float64.
    """
    num_gold, factor = truth.shape[-2], power[..., None, None]
    rest = truth - factor * predicted
    added = np.concatenate([is_class - factor * ends for is_class in (1.0, 0.0)], axis=-2)
    rows = np.concatenate([rest, added], axis=-2)
    weights = np.append(np.ones(num_gold), np.full(added.shape[-2], ADDED_WEIGHT))[:, None]
    total = float(weights.sum())
    mean = (weights * rows).sum(-2) / total
    apart = rows - mean[..., None, :]
    second, third = weights * apart**2, weights * apart**3
    variance = second.sum(-2) / total / (total + 1)
    cubed = 2 * third.sum(-2) / total / (total + 1) / (total + 2)
    moved = np.zeros_like(mean)
    if others.num_rows:
        moved = power[..., None] * others.mean
        variance = variance + power[..., None] ** 2 * others.variance / others.num_rows
    reach, error, skewness = t_quantile(confidence, num_gold - 2), np.sqrt(variance), cubed / variance**1.5
    low, high = (mean + moved + error * skewed(side, skewness) for side in (-reach, reach))
    value = np.clip(rest.mean(-2) + moved, 0, 1)
    return Corrected(
        value=value, low=np.minimum(np.clip(low, 0, 1), value), high=np.maximum(np.clip(high, 0, 1), value)
    )

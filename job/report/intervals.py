"""Intervals around shares and other numbers. Everything is computed at one confidence, such as 0.95."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_RESAMPLES, DRAWN_AT_ONCE = 2000, 200

SEED = 20231109
"""Of all random draws, so that the same run gives the same report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and its interval; NaN where they are unknown."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return it as JSON values; NaN becomes null."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(number) else number for name, number in found.items()}


def quantile(confidence: float) -> float:
    """Return how many standard errors a normal interval reaches to each side.

    >>> round(quantile(0.95), 3)
    1.96
    """
    return NormalDist().inv_cdf((1 + confidence) / 2)


def t_quantile(confidence: float, degrees: int) -> float:
    """Return the same for Student's distribution, by an expansion that is right to 0.01 for five degrees or more at
    confidences up to 0.99 (Abramowitz and Stegun 1964, 26.7.5).

    >>> round(t_quantile(0.95, 8), 2)
    2.31
    """
    z = quantile(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def skewed(z: float, skewness: Floats) -> Floats:
    """Return how many standard errors from the mean a skewed distribution has the quantile that a normal one has at
    ``z``: that of a shifted gamma distribution (Wilson and Hilferty 1931).

    >>> skewed(1.645, np.array([0.0, 1.0, -1.0])).round(3).tolist()
    [1.645, 1.872, 1.32]
    """
    known = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    found: Floats = 2 / known * (np.maximum(0.0, 1 + known * z / 6 - known**2 / 36) ** 3 - 1)
    return found


def wilson(count: float, total: float, confidence: float) -> Estimate:
    """Return a share with Wilson's interval (Wilson 1927), which is sensible for any count; NaN of nothing.

    >>> round(wilson(10, 10, 0.95).low, 3)
    0.722
    """
    if total <= 0:
        return Estimate(value=math.nan, low=math.nan, high=math.nan)
    z, share = quantile(confidence), count / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Estimate(value=share, low=max(0.0, center - reach), high=min(1.0, center + reach))


def posterior(
    table: npt.NDArray[Any], prior: Floats, statistic: Callable[[Floats], Floats], confidence: float
) -> list[Estimate]:
    """Return numbers that depend on a table of counts, with intervals by drawing what the table may be of: given the
    counts, the probabilities of its cells are a Dirichlet distribution.

    Args:
        table: counts, of any shape S; rows are counted once each.
        prior: S, what is added to the counts: in how many rows the interval believes before it has seen any.
        statistic: from tables [B, *S] float64 to [B, number of results] float64; NaN where one is undefined.
    """
    counts = np.asarray(table, np.float64)
    random, weights = np.random.default_rng(SEED), counts + prior
    values, drawn = statistic(counts[None])[0], []
    for start in range(0, NUM_RESAMPLES, DRAWN_AT_ONCE):
        num_draws = min(DRAWN_AT_ONCE, NUM_RESAMPLES - start)
        drawn.append(statistic(random.standard_gamma(weights, size=(num_draws, *weights.shape))))
    found = spread(values, np.concatenate(drawn), confidence)
    return [
        Estimate(value=each.value, low=min(each.low, each.value), high=max(each.high, each.value)) for each in found
    ]


def spread(values: Floats, draws: Floats, confidence: float) -> list[Estimate]:
    """Return numbers with the percentiles of their draws. NaN among the draws is left out. If all draws are the number
    itself, they do not say how certain it is: then there is no interval (NaN).

    Args:
        values: [results] float64.
        draws: [B, results] float64.
    """
    found = []
    for value, drawn in zip(values.tolist(), draws.T, strict=True):
        known = drawn[~np.isnan(drawn)]
        if math.isnan(value) or not len(known) or np.ptp(known) == 0:
            low = high = math.nan
        else:
            low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
        found.append(Estimate(value=value, low=low, high=high))
    return found

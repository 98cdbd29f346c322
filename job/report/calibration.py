"""Whether probabilities mean what they say: of the labels with a probability near 0.8, are 80 % right?

The expected calibration error weighs the gap of each bin by its rows (Naeini et al. 2015; Guo et al. 2017), over bins
of equal width. It is above 0 even for perfect probabilities, because each bin has few rows, so what perfect ones would
give is drawn beside it (Vaicenavicius et al. 2019, "Evaluating model calibration in classification"). A resample is
above the rows that it is drawn from as much as these are above the truth, so the lower end of the bootstrapped interval
is moved down by twice as much; and that of an error which perfect probabilities could have given is 0.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from job.report.intervals import NUM_RESAMPLES, SEED, Estimate, Floats, spread, wilson

NUM_BINS = 10

MIN_RESAMPLES, MAX_DRAWN, DRAWN_AT_ONCE = 200, 20_000_000, 500_000
"""The least number of resamples, and how many rows are drawn at most: in all, and at once. With many rows, there are
fewer resamples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The rows whose label has a probability between two bounds."""

    low: float
    high: float
    num_rows: int
    confidence: float
    """The mean probability."""
    accuracy: Estimate
    """The share that is right, with Wilson's interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The reliability of probabilities."""

    num_rows: int
    confidence: float
    """The mean probability of the label."""
    accuracy: float
    ece: Estimate
    """Expected calibration error, bootstrapped over rows; from 0 on, if it is at most ``ece_if_calibrated``."""
    ece_if_calibrated: float
    """What the error would stay below with perfect probabilities, at the report's confidence: less is noise."""
    brier: float
    """The mean squared difference between the probability of the label and whether it is right."""
    bins: tuple[Bin, ...]
    """Without those that have no rows."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "rows": self.num_rows,
            "confidence": self.confidence,
            "accuracy": self.accuracy,
            "ece": self.ece.to_dict(),
            "ece_if_calibrated": self.ece_if_calibrated,
            "brier": self.brier,
            "bins": [{**asdict(each), "accuracy": each.accuracy.to_dict()} for each in self.bins],
        }


def calibration(probs: Floats, is_right: Floats, confidence: float) -> Calibration:
    """Compare the probabilities of labels with how often they are right.

    Args:
        probs: [rows] float64, the probability of each row's label. At least one row.
        is_right: [rows], 1 or 0.
    """
    probs, is_right = np.clip(np.asarray(probs, np.float64), 0, 1), np.asarray(is_right, np.float64)
    bin_of = np.clip(np.ceil(probs * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)  # a bound belongs to the left
    gaps, num_rows = is_right - probs, len(probs)
    random = np.random.default_rng(SEED)
    num_draws = min(NUM_RESAMPLES, max(MIN_RESAMPLES, MAX_DRAWN // num_rows))
    at_once = max(1, min(num_draws, DRAWN_AT_ONCE // num_rows))
    sizes = [min(at_once, num_draws - start) for start in range(0, num_draws, at_once)]
    resamples = (random.integers(0, num_rows, (size, num_rows)) for size in sizes)
    draws = np.concatenate([_ece(gaps[rows], bin_of[rows]) for rows in resamples])
    [ece] = spread(_ece(gaps[None], bin_of), draws[:, None], confidence)
    perfect = [_ece((random.random((size, num_rows)) < probs) - probs, bin_of) for size in sizes]
    noise = float(np.quantile(np.concatenate(perfect), confidence))
    if not math.isnan(ece.low):
        excess = max(0.0, float(draws.mean()) - ece.value)
        ece = replace(ece, low=0.0 if ece.value <= noise else max(0.0, ece.low - 2 * excess))
    return Calibration(
        num_rows=num_rows,
        confidence=float(probs.mean()),
        accuracy=float(is_right.mean()),
        ece=ece,
        ece_if_calibrated=noise,
        brier=float((gaps**2).mean()),
        bins=tuple(
            Bin(
                low=idx / NUM_BINS,
                high=(idx + 1) / NUM_BINS,
                num_rows=int(rows.sum()),
                confidence=float(probs[rows].mean()),
                accuracy=wilson(float(is_right[rows].sum()), float(rows.sum()), confidence),
            )
            for idx in range(NUM_BINS)
            if (rows := bin_of == idx).any()
        ),
    )


def _ece(gaps: Floats, bin_of: npt.NDArray[np.int64]) -> Floats:
    """Return the error of each draw: [B] float64.

    Args:
        gaps: [B, rows] float64.
        bin_of: [B, rows] or [rows] int64.
    """
    place = bin_of + NUM_BINS * np.arange(len(gaps))[:, None]
    sums = np.bincount(place.ravel(), weights=gaps.ravel(), minlength=NUM_BINS * len(gaps))
    found: Floats = np.abs(sums.reshape(-1, NUM_BINS)).sum(1) / gaps.shape[1]
    return found

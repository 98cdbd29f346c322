"""The share of each class, corrected with the rows that have gold: prediction-powered inference.

To count labels is precise but biased; to count the gold alone is unbiased but imprecise. The corrected share is the
share of the gold, plus ``power`` times what labels say about the difference between all rows and those with gold
(Angelopoulos et al. 2023, "Prediction-powered inference", Science 382; the power is tuned as in PPI++, Angelopoulos,
Duchi and Zrnic 2023). It is unbiased whatever the labels are worth, if the rows with gold are a random sample, and
never much less precise than the gold alone.

The normal interval of the papers is too short for rare classes and for labels that are nearly always right: with few
gold rows, all errors may be missing. So the interval is that of a Bayesian bootstrap (Rubin 1981, "The Bayesian
bootstrap", Annals of Statistics 9), in closed form by three moments, with four rows added to the gold, one for each
pair of (is or is not the class, was or was not labeled so). Where labels have no probabilities, this is the posterior
under a Dirichlet prior of that weight for each pair; 1/2 is Jeffreys', which covers more than was asked for. The
quantiles are Student's, because the power is tuned on the same rows. ``scripts/bench intervals`` measures it. The
formulas are in ``job.report.rectified``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.errors import shorten
from job.report.intervals import NUM_RESAMPLES, SEED, Estimate, Floats, wilson
from job.report.rectified import corrected, ends_of, others_of, tuned_power
from job.report.tables import LONG_NAME

MIN_GOLD = 10
"""With fewer rows of gold, shares are not corrected."""

MIN_WRONG = 3
"""With fewer gold rows on which the labels are wrong about a class, its interval rests on the rows that are added."""


DOUBTFUL = 0.01
"""If a random sample is as unusual this rarely, a note says so."""

MAX_NAMED = 5
"""Classes that a note names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """The share of one class among rows like those of the run."""

    name: str
    labels: float
    """The share of the labels that are this class."""
    gold: Estimate
    """The share of the gold, with Wilson's interval."""
    corrected: Estimate
    num_wrong: int
    """Rows with gold that are labeled so and are not, or are so and not labeled so."""

    is_doubtful: bool
    """Whether the interval cannot be trusted: fewer than ``MIN_WRONG`` errors were seen, so it may be too long, or too
    short if labels err in one direction alone. Where labels do not count: whether fewer rows with gold are of the
    class, or are not."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        shares = {"labels": self.labels, "gold": self.gold.to_dict(), "corrected": self.corrected.to_dict()}
        return {"name": self.name, **shares, "wrong": self.num_wrong, "doubtful": self.is_doubtful}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The shares of all classes."""

    num_rows: int
    """Rows with a label."""
    num_gold: int
    """Those of them with gold."""
    power: float
    """How much the labels count: 0 not at all, 1 as if they were gold."""
    p_random: float
    """How often a random sample of the rows would have labels that differ as much from those of all rows, as those of
    the rows with gold do. Near 0: they are hardly a random sample, and corrected shares are biased."""
    of_classes: tuple[ClassShare, ...]

    @property
    def notes(self) -> list[str]:
        """Return why corrected shares should not be trusted."""
        notes = []
        if few := [shorten(each.name, LONG_NAME) for each in self.of_classes if each.is_doubtful]:
            names = ", ".join(few[:MAX_NAMED]) + (f" and {len(few) - MAX_NAMED:,} more" if len(few) > MAX_NAMED else "")
            of_labels = f"have a label that is wrong about {names}"
            of_gold = f"are, or are not, {names}"
            notes.append(
                f"fewer than {MIN_WRONG} rows with gold {of_labels if self.power else of_gold}: too few to trust the "
                "interval of the corrected share"
            )
        if self.p_random < DOUBTFUL:
            notes.append(
                f"only {100 * self.p_random:.2g} % of random samples have labels that differ so much from those of all "
                "rows; if the rows with gold were not chosen at random, the corrected shares are biased"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        classes = [each.to_dict() for each in self.of_classes]
        numbers = {"rows": self.num_rows, "gold": self.num_gold, "power": self.power, "p_random": self.p_random}
        return {**numbers, "classes": classes, "notes": self.notes}


def corrected_shares(
    labels: npt.NDArray[np.int64], probs: Floats, gold: npt.NDArray[np.int64], classes: Sequence[str], confidence: float
) -> Shares:
    """Return the shares of classes.

    Args:
        labels: [rows] int64, class indices.
        probs: [rows, classes] float64: the label's probabilities, or 1 for the label and 0 for the others.
        gold: [rows] int64, class indices; negative where a row has none. ``MIN_GOLD`` rows or more have some, and they
            are a random sample of all.
    """
    has_gold = gold >= 0
    truth = (gold[has_gold, None] == np.arange(len(classes))).astype(np.float64)
    is_labeled = labels[:, None] == np.arange(len(classes))
    predicted, others = probs[has_gold], others_of(probs[~has_gold])
    power = tuned_power(truth, predicted, others)
    shares = corrected(truth, predicted, others, ends_of(probs, is_labeled), power, confidence)
    num_gold, num_of_class = len(truth), truth.sum(0)
    num_wrong = (is_labeled[has_gold] != (truth > 0)).sum(0)
    num_seen = num_wrong if power else np.minimum(num_of_class, num_gold - num_of_class)
    found = [
        ClassShare(
            name=name,
            labels=float(is_labeled[:, idx].mean()),
            gold=wilson(float(num_of_class[idx]), num_gold, confidence),
            corrected=Estimate(
                value=float(shares.value[idx]), low=float(shares.low[idx]), high=float(shares.high[idx])
            ),
            num_wrong=int(num_wrong[idx]),
            is_doubtful=bool(num_seen[idx] < MIN_WRONG),
        )
        for idx, name in enumerate(classes)
    ]
    return Shares(
        num_rows=len(labels),
        num_gold=num_gold,
        power=float(power),
        p_random=_chance_of_sample(labels, has_gold, len(classes)),
        of_classes=tuple(found),
    )


def _chance_of_sample(labels: npt.NDArray[np.int64], has_gold: npt.NDArray[np.bool_], num_classes: int) -> float:
    """Return the p value of a chi-square statistic, by drawing samples without replacement."""
    counts = np.bincount(labels + 1, minlength=num_classes + 1)  # a missing label is one more class
    counts, sample = counts[counts > 0], np.bincount(labels[has_gold] + 1, minlength=num_classes + 1)[counts > 0]
    expected = counts * (sample.sum() / counts.sum())
    draws = np.random.default_rng(SEED).multivariate_hypergeometric(
        counts, int(sample.sum()), size=NUM_RESAMPLES, method="marginals"
    )
    statistics = ((draws - expected) ** 2 / expected).sum(1)
    found = ((sample - expected) ** 2 / expected).sum()
    return float((1 + (statistics >= found - 1e-9).sum()) / (1 + NUM_RESAMPLES))

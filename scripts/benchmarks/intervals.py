"""How often the intervals of ``job report`` contain the truth: a simulation, without a model.

Each draw is a run with labels, probabilities, and gold on some rows that are chosen at random. True classes, labels
and probabilities are drawn; the truth is the share of a class, the accuracy, kappa and so on of this way of drawing.
With ``--one-sided``, labels err in one direction alone: some rows of all classes are labeled as one of them.

Rows with gold are drawn one by one. Of the thousands of others only sums matter, so these are drawn: counts of labels
are multinomial, and sums of probabilities are normal. Many draws are computed at once.

    scripts/bench intervals
    scripts/bench intervals --one-sided
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from job.report.accuracy import Accuracy, score
from job.report.calibration import NUM_BINS, calibration
from job.report.intervals import Estimate, wilson
from job.report.rectified import Others, corrected, ends_of, tuned_power
from job.report.shares import MIN_WRONG

SHARES = ((0.5, 0.5), (0.6, 0.3, 0.1), (0.9, 0.05, 0.05))
RIGHT = (0.3, 0.7, 0.95)
"""A label is right with this probability, and else drawn from the shares."""

RIGHT_ONE_SIDED = (0.5, 0.8, 0.95, 0.98)
"""A label is right with this probability, and else it is one class: the first, or the second."""

NUM_GOLD = (30, 100, 300)
CONFIDENCE = 0.9
AT_ONCE = 500
MANY = 1_000_000
"""Rows that stand for all rows, where probabilities make it hard to compute what is true."""


@dataclass(frozen=True)
class Rows:
    """Rows of many draws; ``...`` is any shape."""

    truth: np.ndarray
    """[...] int64."""
    labels: np.ndarray
    """[...] int64."""
    probs: np.ndarray
    """[..., classes] float64."""


@dataclass(frozen=True)
class Case:
    """A way of drawing a run."""

    shares: tuple[float, ...]
    right: float
    num_gold: int
    num_rows: int
    has_probs: bool
    errs_to: int | None = None
    """The class of all wrong labels. None: they are drawn from the shares."""

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> Rows:
        """Return rows."""
        num_classes, shares = len(self.shares), np.array(self.shares)
        wrong = shares if self.errs_to is None else np.eye(num_classes)[self.errs_to]
        table = shares[:, None] * (self.right * np.eye(num_classes) + (1 - self.right) * wrong)
        pair = np.searchsorted(np.cumsum(table)[:-1], random.random(shape), side="right")
        truth, labels = pair // num_classes, pair % num_classes
        probs = np.eye(num_classes)[labels]
        if self.has_probs:  # as a model gives them: right in tendency, not calibrated
            logits = 3 * probs + random.normal(0, 1, probs.shape) + np.eye(num_classes)[truth]
            probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            labels = probs.argmax(-1)
        return Rows(truth, labels, probs)


@dataclass(frozen=True)
class Population:
    """What is true of a case."""

    table: np.ndarray
    """[true classes, labels]: the share of the rows."""
    ends: np.ndarray
    mean: np.ndarray
    """[2 * classes]: of probabilities, and of their squares."""
    covariance: np.ndarray
    ece: float

    def others(self, random: np.random.Generator, num_draws: int, num_rows: int, *, has_probs: bool) -> Others:
        """Return the rows without gold of many draws."""
        if has_probs:
            sums = random.multivariate_normal(self.mean, self.covariance / num_rows, num_draws, method="svd")
            mean, squares = np.split(sums, 2, axis=1)
            return Others(num_rows=num_rows, mean=mean, variance=squares - mean**2)
        mean = random.multinomial(num_rows, self.table.sum(0), num_draws) / num_rows
        return Others(num_rows=num_rows, mean=mean, variance=mean * (1 - mean))


def population(case: Case) -> Population:
    """Return what is true, of many rows; that of labels alone is corrected to be exact."""
    many, num_classes = case.draw(np.random.default_rng(2), (MANY,)), len(case.shares)
    pairs = many.truth * num_classes + many.labels
    table = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes) / MANY
    if not case.has_probs:
        wrong = np.array(case.shares) if case.errs_to is None else np.eye(num_classes)[case.errs_to]
        table = np.array(case.shares)[:, None] * (case.right * np.eye(num_classes) + (1 - case.right) * wrong)
    moments = np.concatenate([many.probs, many.probs**2], axis=1)
    confidence, is_right = many.probs.max(1), many.labels == many.truth
    bin_of = np.ceil(confidence * NUM_BINS).astype(int) - 1
    ece = np.abs(np.bincount(bin_of, weights=is_right - confidence)).sum() / MANY
    is_labeled = many.labels[:, None] == np.arange(num_classes)
    return Population(table, ends_of(many.probs, is_labeled), moments.mean(0), np.cov(moments.T), float(ece))


@dataclass(frozen=True)
class Figures:
    """What came out of a case."""

    covered: np.ndarray
    """Of each class, the share of the draws whose interval contains its share."""
    too_low: np.ndarray
    """The share of the draws whose interval ends below it."""
    few: np.ndarray
    """Of each class, the share of the draws whose interval cannot be trusted."""
    covered_if_trusted: np.ndarray
    """Of the others, the share whose interval contains its share; NaN if they are fewer than a tenth."""
    width: float
    gold_width: float
    """The mean width of the corrected intervals, and of those from the gold alone."""
    num_errors: np.ndarray
    """Of each class, how many rows with gold have a label that is wrong about it, on average."""
    scores: dict[str, list[float]]
    """Of each number of the report, the share of the draws that have an interval, whose interval contains the truth."""
    without: dict[str, float]
    """The share of the draws without an interval."""


def measure(case: Case, num_draws: int, num_scored: int, num_calibrated: int) -> Figures:
    """Draw runs and count."""
    random, true, classes = np.random.default_rng(1), population(case), np.arange(len(case.shares))
    gold_ends = np.array([(one.low, one.high) for one in _wilsons(case.num_gold)])
    chunks, scored = [], Scored(case, true)
    for start in range(0, num_draws, AT_ONCE):
        rows = case.draw(random, (min(AT_ONCE, num_draws - start), case.num_gold))
        num_others = case.num_rows - case.num_gold
        others = true.others(random, len(rows.truth), num_others, has_probs=case.has_probs)
        is_class, is_labeled = rows.truth[..., None] == classes, rows.labels[..., None] == classes
        truth = is_class.astype(np.float64)
        power = tuned_power(truth, rows.probs, others)
        found = corrected(truth, rows.probs, others, true.ends, power, CONFIDENCE)
        low, high = gold_ends[is_class.sum(1)].transpose(2, 0, 1)
        wrong = (is_class != is_labeled).sum(1)
        chunks.append((found.low, found.high, wrong, low, high))
        for idx in range(max(0, min(len(rows.truth), num_scored - start))):
            scored.add(rows.labels[idx], rows.truth[idx], rows.probs[idx], calibrate=start + idx < num_calibrated)
    low, high, wrong, gold_low, gold_high = (np.concatenate(each) for each in zip(*chunks, strict=True))
    share = np.array(case.shares)
    hits, few = (low <= share) & (share <= high), wrong < MIN_WRONG
    with np.errstate(invalid="ignore"):
        trusted = np.where(few.mean(0) <= 0.9, (hits & ~few).sum(0) / (~few).sum(0), math.nan)
    scored.hits["share of gold"] = ((gold_low <= share) & (share <= gold_high)).T.tolist()
    return Figures(
        covered=hits.mean(0),
        too_low=(high < share).mean(0),
        few=few.mean(0),
        covered_if_trusted=trusted,
        width=float((high - low).mean()),
        gold_width=float((gold_high - gold_low).mean()),
        num_errors=wrong.mean(0),
        scores={name: [float(np.mean(one)) for one in found if one] for name, found in scored.hits.items()},
        without={name: missing / max(1, scored.num_seen[name]) for name, missing in scored.num_missing.items()},
    )


def _wilsons(num_gold: int) -> list[Estimate]:
    return [wilson(count, num_gold, CONFIDENCE) for count in range(num_gold + 1)]


class Scored:
    """Counts how often the other intervals of a report contain the truth."""

    def __init__(self, case: Case, true: Population) -> None:
        self._names = [str(idx) for idx in range(len(case.shares))]
        self._true, self._ece = truths(true.table), true.ece
        self._has_probs = case.has_probs
        self.hits: dict[str, list[list[bool]]] = {}
        self.num_seen: dict[str, int] = {}
        self.num_missing: dict[str, int] = {}

    def add(self, labels: np.ndarray, gold: np.ndarray, probs: np.ndarray, *, calibrate: bool) -> None:
        """Add a draw."""
        for name, found in estimates(score(labels, gold, self._names, CONFIDENCE)).items():
            self._count(name, found, self._true[name])
        if calibrate and self._has_probs:
            ece = calibration(probs.max(1), (labels == gold).astype(np.float64), CONFIDENCE).ece
            self._count("ECE", [ece], [self._ece])

    def _count(self, name: str, found: list[Estimate], true: list[float]) -> None:
        hits = self.hits.setdefault(name, [[] for _ in found])
        for one, truth, row in zip(found, true, hits, strict=True):
            if not math.isnan(truth):
                self.num_seen[name] = self.num_seen.get(name, 0) + 1
                self.num_missing[name] = self.num_missing.get(name, 0) + math.isnan(one.low)
                if not math.isnan(one.low):
                    row.append(one.low - 1e-12 <= truth <= one.high + 1e-12)


def estimates(found: Accuracy) -> dict[str, list[Estimate]]:
    """Return all intervals, by the names that the table has."""
    return {
        "accuracy": [found.accuracy],
        "precision": [each.precision for each in found.of_classes],
        "recall": [each.recall for each in found.of_classes],
        "F1": [each.f1 for each in found.of_classes],
        "macro F1": [found.macro_f1],
        "kappa": [found.kappa],
    }


def truths(table: np.ndarray) -> dict[str, list[float]]:
    """Return what is true, by the same names."""
    right, of_gold, of_labels = np.diag(table), table.sum(1), table.sum(0)
    accuracy, by_chance = float(right.sum()), float(of_gold @ of_labels)
    f1 = 2 * right / (of_gold + of_labels)
    with np.errstate(invalid="ignore"):
        precision = right / of_labels
    return {
        "accuracy": [accuracy],
        "precision": precision.tolist(),
        "recall": (right / of_gold).tolist(),
        "F1": f1.tolist(),
        "macro F1": [float(f1.mean())],
        "kappa": [(accuracy - by_chance) / (1 - by_chance)],
    }


def cases(num_rows: int, *, one_sided: bool) -> Iterator[Case]:
    """Yield all cases."""
    rights = RIGHT_ONE_SIDED if one_sided else RIGHT
    kinds = (False,) if one_sided else (False, True)
    for has_probs, shares, right, num_gold in itertools.product(kinds, SHARES, rights, NUM_GOLD):
        for errs_to in (0, 1) if one_sided else (None,):
            yield Case(shares, right, num_gold, num_rows, has_probs, errs_to)


def summary(pairs: list[tuple[Case, Figures]]) -> Iterator[str]:
    """Yield the lines of a table with one line for each number of gold rows."""
    yield "| gold | shares | lowest | highest | 88 to 92 | above | below | lowest without note |"
    yield "|---|---|---|---|---|---|---|---|"
    for num_gold in NUM_GOLD:
        found = [each for case, each in pairs if case.num_gold == num_gold]
        covered = 100 * np.concatenate([each.covered for each in found])
        trusted = 100 * np.nanmin(np.concatenate([each.covered_if_trusted for each in found]))
        yield f"| {num_gold} | {_spread(covered)} | {trusted:.1f} |"


def summary_of_scores(pairs: list[tuple[Case, Figures]]) -> Iterator[str]:
    """Yield the lines of a table with one line for each kind of number, and number of gold rows."""
    yield "| number | gold | numbers | lowest | highest | 88 to 92 | above | below | distance | without interval |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(name for _, each in pairs for name in each.scores):
        for num_gold in NUM_GOLD:
            found = [each for case, each in pairs if case.num_gold == num_gold and name in each.scores]
            covered = 100 * np.concatenate([each.scores[name] for each in found])
            missing = 100 * np.mean([each.without.get(name, 0.0) for each in found])
            distance = np.abs(covered - 100 * CONFIDENCE).mean()
            yield f"| {name} | {num_gold} | {_spread(covered)} | {distance:.1f} | {missing:.1f} % |"


def _spread(covered: np.ndarray) -> str:
    above, below = int((covered > 92.0001).sum()), int((covered < 87.9999).sum())
    inside = len(covered) - above - below
    return f"{len(covered)} | {covered.min():.1f} | {covered.max():.1f} | {inside} | {above} | {below}"


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--scored", type=int, default=1000, help="draws of which the other intervals are computed, too")
    parser.add_argument("--calibrated", type=int, default=300, help="draws of which the ECE is computed, too")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one-sided", action="store_true")
    options = parser.parse_args()
    names = ("predictions", "shares", "right", "gold", "covered, by class", "ends below", "errors", "noted", "width")
    print(f"| {' | '.join(names)} | of gold alone | kappa |", "|---" * 11 + "|", sep="\n")
    every, pairs = list(cases(options.rows, one_sided=options.one_sided)), []
    job = partial(measure, num_draws=options.draws, num_scored=options.scored, num_calibrated=options.calibrated)
    with ProcessPoolExecutor(options.processes) as pool:
        for case, found in zip(every, pool.map(job, every), strict=True):
            print(_line(case, found), flush=True)
            pairs.append((case, found))
    print("", *summary(pairs), "", *summary_of_scores(pairs), sep="\n")


def _line(case: Case, found: Figures) -> str:
    covered, low, few = (
        ", ".join(f"{100 * each:.1f}" for each in one) for one in (found.covered, found.too_low, found.few)
    )
    errors, shares = ", ".join(f"{each:.1f}" for each in found.num_errors), ", ".join(f"{one:g}" for one in case.shares)
    kind = "probabilities" if case.has_probs else "labels"
    errs_to = "" if case.errs_to is None else f", else class {case.errs_to + 1}"
    kappa = ", ".join(f"{100 * each:.1f}" for each in found.scores.get("kappa", []))
    return (
        f"| {kind} | {shares} | {case.right:g}{errs_to} | {case.num_gold:,} | {covered} | {low} | {errors} | {few} "
        f"| {found.width:.3f} | {found.gold_width:.3f} | {kappa} |"
    )


if __name__ == "__main__":
    main()

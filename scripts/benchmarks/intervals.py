"""How often the intervals of ``job report`` contain the truth: a simulation, without a model.

Each draw is a run with labels, probabilities, and gold on some rows that are chosen at random. True classes, labels
and probabilities are drawn; the truth is the share of a class, the accuracy and the kappa of this way of drawing.
With ``--one-sided``, labels err in one direction alone: some rows of all classes are labeled as one of them.

    scripts/bench intervals --draws 1000
    scripts/bench intervals --draws 1000 --one-sided
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from job.report.accuracy import score
from job.report.shares import corrected_shares

SHARES = ((0.5, 0.5), (0.6, 0.3, 0.1), (0.9, 0.05, 0.05))
RIGHT = (0.3, 0.7, 0.95)
"""A label is right with this probability, and else drawn from the shares."""

RIGHT_ONE_SIDED = (0.5, 0.8, 0.95, 0.98)
"""A label is right with this probability, and else it is one class: the first, or the second."""

NUM_GOLD = (30, 100, 300)
CONFIDENCE = 0.9


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

    @property
    def table(self) -> np.ndarray:
        """The probability of each pair of (true class, label)."""
        shares = np.array(self.shares)
        wrong = shares if self.errs_to is None else np.eye(len(shares))[self.errs_to]
        return shares[:, None] * (self.right * np.eye(len(shares)) + (1 - self.right) * wrong)

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels, probabilities and gold of a run."""
        num_classes = len(self.shares)
        pair = random.choice(num_classes**2, self.num_rows, p=self.table.ravel())
        truth, labels = pair // num_classes, pair % num_classes
        probs = np.eye(num_classes)[labels]
        if self.has_probs:  # as a model gives them: right in tendency, not calibrated
            logits = 3 * probs + random.normal(0, 1, probs.shape) + np.eye(num_classes)[truth]
            probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            labels = probs.argmax(1)
        gold = np.full(self.num_rows, -1)
        chosen = random.permutation(self.num_rows)[: self.num_gold]
        gold[chosen] = truth[chosen]
        return labels, probs, gold


@dataclass(frozen=True)
class Figures:
    """What came out of a case."""

    covered: list[float]
    """Of each class, the share of the draws whose interval contains its share."""
    few: list[float]
    """Of each class, the share of the draws whose interval cannot be trusted."""
    covered_if_trusted: list[float]
    """Of the others, the share whose interval contains its share; NaN if they are fewer than a tenth."""
    accuracy: float
    kappa: float
    """The share of the draws that have an interval, whose interval contains the truth."""
    width: float
    gold_width: float
    """The mean width of the corrected intervals, and of those from the gold alone."""


def measure(case: Case, num_draws: int) -> Figures:
    """Draw runs and count."""
    random = np.random.default_rng(1)
    names = [str(idx) for idx in range(len(case.shares))]
    truth_accuracy, truth_kappa = agreement(case)
    hits, few = np.zeros((num_draws, len(names)), np.bool_), np.zeros((num_draws, len(names)), np.bool_)
    scored, known, widths = np.zeros(2), np.zeros(2), np.zeros(2)
    for idx in range(num_draws):
        labels, probs, gold = case.draw(random)
        found = corrected_shares(labels, probs, gold, names, CONFIDENCE).of_classes
        each = zip(found, case.shares, strict=True)
        hits[idx] = [one.corrected.low <= share <= one.corrected.high for one, share in each]
        few[idx] = [one.is_doubtful for one in found]
        widths += [
            np.mean([one.corrected.high - one.corrected.low for one in found]),
            np.mean([one.gold.high - one.gold.low for one in found]),
        ]
        used = gold >= 0
        numbers = score(labels[used], gold[used], names, CONFIDENCE)
        pairs = ((numbers.accuracy, truth_accuracy), (numbers.kappa, truth_kappa))
        scored += [one.low <= truth <= one.high for one, truth in pairs]
        known += [not math.isnan(one.low) for one, _ in pairs]
    (accuracy, kappa), (width, gold_width) = scored / known, widths / num_draws
    trusted = [
        hit[~doubt].mean() if doubt.mean() <= 0.9 else math.nan for hit, doubt in zip(hits.T, few.T, strict=True)
    ]
    return Figures(
        covered=hits.mean(0).tolist(),
        few=few.mean(0).tolist(),
        covered_if_trusted=trusted,
        accuracy=accuracy,
        kappa=kappa,
        width=width,
        gold_width=gold_width,
    )


def agreement(case: Case) -> tuple[float, float]:
    """Return the accuracy and kappa of a case: exactly, or of many draws where labels come from probabilities."""
    table = case.table
    if case.has_probs:
        many = replace(case, num_gold=2_000_000, num_rows=2_000_000)
        labels, _, gold = many.draw(np.random.default_rng(2))
        table = np.zeros_like(table)
        np.add.at(table, (gold, labels), 1 / many.num_rows)
    by_chance = float(table.sum(0) @ table.sum(1))
    right = float(np.trace(table))
    return right, (right - by_chance) / (1 - by_chance)


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
        above, below = (covered > 92.0001).sum(), (covered < 87.9999).sum()
        inside = len(covered) - above - below
        yield (
            f"| {num_gold} | {len(covered)} | {covered.min():.1f} | {covered.max():.1f} | {inside} "
            f"| {above} | {below} | {trusted:.1f} |"
        )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one-sided", action="store_true")
    options = parser.parse_args()
    names = ("predictions", "shares", "right", "gold", "covered, by class", "noted", "accuracy", "kappa", "width")
    print(f"| {' | '.join(names)} | of gold alone |", "|---|---|---|---|---|---|---|---|---|---|", sep="\n")
    every, pairs = list(cases(options.rows, one_sided=options.one_sided)), []
    with ProcessPoolExecutor(options.processes) as pool:
        for case, found in zip(every, pool.map(partial(measure, num_draws=options.draws), every), strict=True):
            covered, few = (", ".join(f"{100 * each:.1f}" for each in one) for one in (found.covered, found.few))
            shares = ", ".join(f"{share:g}" for share in case.shares)
            kind = "probabilities" if case.has_probs else "labels"
            errs_to = "" if case.errs_to is None else f", else class {case.errs_to + 1}"
            scores = f"{100 * found.accuracy:.1f} | {100 * found.kappa:.1f}"
            print(
                f"| {kind} | {shares} | {case.right:g}{errs_to} | {case.num_gold:,} | {covered} | {few} "
                f"| {scores} | {found.width:.3f} | {found.gold_width:.3f} |",
                flush=True,
            )
            pairs.append((case, found))
    print("", *summary(pairs), sep="\n")


if __name__ == "__main__":
    main()

"""How often the intervals of ``job report`` contain the truth: a simulation, without a model.

Each draw is a run with labels, probabilities, and gold on some rows that are chosen at random. True classes, labels
and probabilities are drawn; the truth is the share of a class, the accuracy and the kappa of this way of drawing.

    scripts/bench intervals --draws 1000
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from job.report.accuracy import score
from job.report.shares import corrected_shares

SHARES = ((0.5, 0.5), (0.6, 0.3, 0.1), (0.9, 0.05, 0.05))
RIGHT = (0.3, 0.7, 0.95)
"""A label is right with this probability, and else drawn from the shares."""

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

    @property
    def table(self) -> np.ndarray:
        """The probability of each pair of (true class, label)."""
        shares = np.array(self.shares)
        return shares[:, None] * (self.right * np.eye(len(shares)) + (1 - self.right) * shares)

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
    accuracy: float
    kappa: float
    """The same, of the draws that have an interval."""
    width: float
    gold_width: float
    """The mean width of the corrected intervals, and of those from the gold alone."""


def measure(case: Case, num_draws: int) -> Figures:
    """Draw runs and count."""
    random = np.random.default_rng(1)
    names = [str(idx) for idx in range(len(case.shares))]
    truth_accuracy, truth_kappa = agreement(case)
    hits, scored, known, widths = np.zeros(len(names)), np.zeros(2), np.zeros(2), np.zeros(2)
    for _ in range(num_draws):
        labels, probs, gold = case.draw(random)
        found = corrected_shares(labels, probs, gold, names, CONFIDENCE).of_classes
        each = zip(found, case.shares, strict=True)
        hits += [one.corrected.low <= share <= one.corrected.high for one, share in each]
        widths += [
            np.mean([one.corrected.high - one.corrected.low for one in found]),
            np.mean([one.gold.high - one.gold.low for one in found]),
        ]
        used = gold >= 0
        numbers = score(labels[used], gold[used], names, CONFIDENCE)
        pairs = ((numbers.accuracy, truth_accuracy), (numbers.kappa, truth_kappa))
        scored += [one.low <= truth <= one.high for one, truth in pairs]
        known += [not math.isnan(one.low) for one, _ in pairs]
    covered, (accuracy, kappa), (width, gold_width) = hits / num_draws, scored / known, widths / num_draws
    return Figures(covered=covered.tolist(), accuracy=accuracy, kappa=kappa, width=width, gold_width=gold_width)


def agreement(case: Case) -> tuple[float, float]:
    """Return the accuracy and kappa of a case: exactly, or of many draws where labels come from probabilities."""
    table = case.table
    if case.has_probs:
        many = Case(case.shares, case.right, 2_000_000, 2_000_000, True)
        labels, _, gold = many.draw(np.random.default_rng(2))
        table = np.zeros_like(table)
        np.add.at(table, (gold, labels), 1 / many.num_rows)
    by_chance = float(table.sum(0) @ table.sum(1))
    right = float(np.trace(table))
    return right, (right - by_chance) / (1 - by_chance)


def cases(num_rows: int) -> Iterator[Case]:
    """Yield all cases."""
    for has_probs, shares, right, num_gold in itertools.product((False, True), SHARES, RIGHT, NUM_GOLD):
        yield Case(shares, right, num_gold, num_rows, has_probs)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    print("| predictions | shares | right | gold | covered, by class | accuracy | kappa | width | of gold alone |")
    print("|---|---|---|---|---|---|---|---|---|")
    every = list(cases(options.rows))
    with ProcessPoolExecutor(options.processes) as pool:
        for case, found in zip(every, pool.map(partial(measure, num_draws=options.draws), every), strict=True):
            covered = ", ".join(f"{100 * share:.1f}" for share in found.covered)
            shares = ", ".join(f"{share:g}" for share in case.shares)
            kind = "probabilities" if case.has_probs else "labels"
            print(
                f"| {kind} | {shares} | {case.right:g} | {case.num_gold:,} | {covered} | {100 * found.accuracy:.1f} "
                f"| {100 * found.kappa:.1f} | {found.width:.3f} | {found.gold_width:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""The completions of two runs over the same rows: how many are equal, and where the others begin to differ."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from job.report.intervals import Estimate, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class TextComparison:
    """Texts of two runs, compared character by character."""

    num_rows: int
    """Pairs of completions."""
    num_equal: int
    equal: Estimate
    """Their share, with Wilson's interval."""
    first_difference: float | None
    """The median position, in characters, at which the others begin to differ; None if all are equal."""
    length_a: float
    length_b: float
    """The mean length, in characters."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "rows": self.num_rows,
            "equal_rows": self.num_equal,
            "equal": self.equal.to_dict(),
            "median_first_difference": self.first_difference,
            "mean_characters": {"a": self.length_a, "b": self.length_b},
        }


def compare_texts(a: Sequence[str], b: Sequence[str], confidence: float) -> tuple[TextComparison, list[int | None]]:
    """Compare two texts of each row, at least one row. Returns where each pair begins to differ, too."""
    places = [first_difference(*pair) for pair in zip(a, b, strict=True)]
    differing = [place for place in places if place is not None]
    num_equal = len(places) - len(differing)
    found = TextComparison(
        num_rows=len(places),
        num_equal=num_equal,
        equal=wilson(num_equal, len(places), confidence),
        first_difference=statistics.median(differing) if differing else None,
        length_a=statistics.fmean(map(len, a)),
        length_b=statistics.fmean(map(len, b)),
    )
    return found, places


def first_difference(a: str, b: str) -> int | None:
    """Return the position of the first character that differs; None if the texts are equal.

    >>> first_difference("abc", "abd"), first_difference("ab", "abc"), first_difference("ab", "ab")
    (2, 2, None)
    """
    if a == b:
        return None
    return next((idx for idx, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))

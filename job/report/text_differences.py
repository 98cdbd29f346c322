"""The completions of two runs over the same rows: how many are equal, and where the others begin to differ."""

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.report.intervals import Estimate, wilson

AT_ONCE = 10_000
"""Pairs of texts that differ, of which Python holds copies."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Where texts differ."""

    rows: npt.NDArray[np.int64]
    """Positions of the pairs that differ."""
    places: tuple[int, ...]
    """Of each of them, the character at which they begin to differ."""


def compare_texts(a: pa.Array, b: pa.Array, confidence: float) -> tuple[TextComparison, Differences]:
    """Compare two texts of each row, at least one row. Those that are equal never become Python's texts."""
    rows = np.flatnonzero(~pc.equal(a, b).to_numpy(zero_copy_only=False))
    places: list[int] = []
    for start in range(0, len(rows), AT_ONCE):
        at = pa.array(rows[start : start + AT_ONCE])
        pairs = zip(a.take(at).to_pylist(), b.take(at).to_pylist(), strict=True)
        places += [place for pair in pairs if (place := first_difference(*pair)) is not None]
    num_equal = len(a) - len(rows)
    found = TextComparison(
        num_rows=len(a),
        num_equal=num_equal,
        equal=wilson(num_equal, len(a), confidence),
        first_difference=statistics.median(places) if places else None,
        length_a=pc.mean(pc.utf8_length(a)).as_py(),
        length_b=pc.mean(pc.utf8_length(b)).as_py(),
    )
    return found, Differences(rows=rows, places=tuple(places))


def first_difference(a: str, b: str) -> int | None:
    """Return the position of the first character that differs; None if the texts are equal.

    >>> first_difference("abc", "abd"), first_difference("ab", "abc"), first_difference("ab", "ab")
    (2, 2, None)
    """
    if a == b:
        return None
    return next((idx for idx, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))

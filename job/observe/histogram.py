"""The distribution of whole numbers: a few quantiles, and bars made of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MAX_BINS = 12
BAR_CHARS = 40


@dataclass(frozen=True, slots=True)
class Bin:
    """How many numbers are between ``first`` and ``last``, both included."""

    first: int
    last: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The distribution of one or more whole numbers, none of them negative."""

    count: int
    min: int
    median: int
    p95: int
    """95 % of the numbers are at most this."""
    max: int
    bins: tuple[Bin, ...]
    """All have the same width, except that the last is wider if some numbers are far above the others."""

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Histogram":
        """Count the numbers.

        >>> [(entry.first, entry.last, entry.count) for entry in Histogram.of([3, 0, 1, 1]).bins]
        [(0, 0, 1), (1, 1, 2), (2, 2, 0), (3, 3, 1)]
        """
        values = np.sort(np.asarray(numbers, np.int64))
        median, p95 = (int(value) for value in np.percentile(values, (50, 95), method="higher"))
        return cls(
            count=len(values),
            min=int(values[0]),
            median=median,
            p95=p95,
            max=int(values[-1]),
            bins=_bins(values, top=min(int(values[-1]), p95 + (p95 - int(values[0])) // 2)),
        )

    def bars(self) -> list[str]:
        """Return a line for each bin."""
        most = max(entry.count for entry in self.bins)
        width, count_width = len(f"{self.bins[-1].last:,}"), len(f"{most:,}")
        return [
            f"{one.first:>{width},} to {one.last:>{width},}  {_bar(one.count, most)}  {one.count:>{count_width},}"
            for one in self.bins
        ]


def _bins(values: npt.NDArray[np.int64], top: int) -> tuple[Bin, ...]:
    """Divide the range from the smallest number to ``top`` into bins; numbers above ``top`` go into the last bin."""
    width = round_up((top - int(values[0])) // MAX_BINS + 1)
    borders = list(range(int(values[0]) // width * width, top + 1, width))
    borders.append(max(borders[-1] + width, int(values[-1]) + 1))
    counts = np.diff(np.searchsorted(values, borders)).tolist()
    return tuple(Bin(first, end - 1, count) for (first, end), count in zip(pairwise(borders), counts, strict=True))


def round_up(width: int) -> int:
    """Return the smallest number from ``width`` up that is 1, 2 or 5 times a power of ten.

    >>> [round_up(width) for width in (1, 3, 5, 6, 11, 201)]
    [1, 5, 5, 10, 20, 500]
    """
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= width:
                return factor * power
        power *= 10


def _bar(count: int, most: int) -> str:
    """Return a bar whose length is its share of the longest; a count above 0 gets at least one character."""
    length = max(round(BAR_CHARS * count / most), 1 if count else 0)
    return ("#" * length).ljust(BAR_CHARS)

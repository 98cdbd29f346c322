"""The lengths of prompts and completions, as a few quantiles and the bars of a chart."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from job.observe.histogram import round_up

MAX_BARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The distribution of one or more numbers of tokens."""

    count: int
    total: int
    mean: float
    quantiles: tuple[tuple[float, int], ...]
    """Pairs of a share and the length that it of the rows have at most."""
    bars: tuple[tuple[int, int, int], ...]
    """First length, last length, count. The last bar is wider if some are far above the others."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean,
            "quantiles": [list(pair) for pair in self.quantiles],
            "bars": [list(bar) for bar in self.bars],
        }


def lengths_of(numbers: npt.NDArray[np.int64]) -> Lengths | None:
    """Return the distribution of token counts; None if there are none.

    >>> lengths_of(np.array([1, 2, 2, 3])).bars
    ((1, 1, 1), (2, 2, 2), (3, 3, 1))
    """
    if not len(numbers):
        return None
    values = np.sort(numbers)
    shares = (0.0, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
    found = np.quantile(values, shares, method="higher").tolist()
    low, high = int(values[0]), int(values[-1])
    top = min(high, int(found[5]) + (int(found[5]) - low) // 4)
    width = round_up((top - low) // MAX_BARS + 1)
    edges = list(range(low // width * width, top + 1, width))
    edges.append(max(edges[-1] + width, high + 1))
    counts = np.diff(np.searchsorted(values, edges)).tolist()
    return Lengths(
        count=len(values),
        total=int(values.sum()),
        mean=float(values.mean()),
        quantiles=tuple(zip(shares, map(int, found), strict=True)),
        bars=tuple((first, end - 1, count) for (first, end), count in zip(pairwise(edges), counts, strict=True)),
    )

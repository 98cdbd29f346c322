"""The order in which a run's rows are computed. It changes no row: parts stay ranges of rows, in row order.

In the random order, the first N rows are a simple random sample of the dataset, for every N. Each row has a key, which
depends on the seed and the row alone, and rows are computed in the order of their keys. So all workers, and all
launches, agree without talking, and rows that a run grows by find their places among the others.
"""

import numpy as np
import numpy.typing as npt

from job.draws import next_seed

Rows = npt.NDArray[np.int64]
"""[rows] int64: row indices."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SALT = 0x0DE4
"""So that the order has nothing to do with the draws of the same seed."""


def shuffled(num_rows: int, seed: int) -> Rows:
    """Return all rows in the random order of a seed: by SplitMix64 (Steele et al., "Fast splittable pseudorandom number
    generators", OOPSLA 2014) of the row, which is never the same for two rows. NumPy's own permutations may differ
    between its versions.

    >>> shuffled(6, seed=0).tolist(), shuffled(5, seed=0).tolist()
    ([2, 0, 3, 4, 5, 1], [2, 0, 3, 4, 1])
    """
    with np.errstate(over="ignore"):
        mixed = np.uint64(next_seed(seed + _SALT)) + _GOLDEN * np.arange(1, num_rows + 1, dtype=np.uint64)
        mixed = (mixed ^ mixed >> np.uint64(30)) * _FACTORS[0]
        mixed = (mixed ^ mixed >> np.uint64(27)) * _FACTORS[1]
    return np.argsort(mixed ^ mixed >> np.uint64(31), kind="stable").astype(np.int64)


def ranks(order: Rows) -> Rows:
    """Return the place of each row in an order.

    >>> ranks(np.array([2, 0, 1])).tolist()
    [1, 2, 0]
    """
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places

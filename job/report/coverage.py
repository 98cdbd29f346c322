"""Which rows of a dataset an unfinished run has finished: a random sample of them, the first ones, or others.

Nothing records the order in which rows were computed, and it may change with each launch. So the finished rows
themselves are compared with the first ones of both orders.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_MISSING = 0.1
"""At most this share of the first rows of an order may be missing: those that were in flight when the run stopped."""

Rows = npt.NDArray[np.int64]
"""[rows] int64: row indices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What is finished of an unfinished run."""

    num_finished: int
    """Rows of which all samples are finished."""
    num_rows: int
    is_random: bool
    """Whether they are the first ones of the random order."""
    is_first: bool
    """Whether they are the first ones of the dataset."""
    num_missing: int
    """How many rows of that order, before the last one that is finished, are not."""

    def describe(self) -> str:
        """Return it as a sentence or two.

        >>> Coverage(num_finished=20, num_rows=900, is_random=True, is_first=False, num_missing=0).describe()
        'The 20 finished rows are a random sample of the 900: shares and lengths here are estimates for all.'
        >>> Coverage(num_finished=1, num_rows=900, is_random=False, is_first=True, num_missing=0).describe()
        '1 row of 900 is finished: too few to say anything about the others.'
        """
        rows = f"{self.num_rows:,}"
        if self.num_finished == 1:
            return f"1 row of {rows} is finished: too few to say anything about the others."
        finished = f"{self.num_finished:,}"
        if self.is_random and not self.num_missing:
            sample = f"The {finished} finished rows are a random sample of the {rows}"
            return f"{sample}: shares and lengths here are estimates for all."
        if self.is_random:
            return (
                f"The {finished} finished rows are nearly a random sample of the {rows}: {self.num_missing:,} that are "
                "begun are missing, and long answers are a larger share of those."
            )
        place = "the first ones of the dataset, not" if self.is_first else "not"
        return (
            f"The {finished} finished rows of {rows} are {place} a random sample (--order random makes one): shares "
            "and lengths may differ from those of all."
        )


def coverage_of(finished: Rows, num_rows: int, random_order: Rows) -> Coverage | None:
    """Compare the finished rows with both orders; None if all rows or none are finished.

    Args:
        finished: in any order, each once.
        num_rows: of the dataset.
        random_order: all rows in the random order of the run.
    """
    if not 0 < len(finished) < num_rows:
        return None
    places = np.empty(num_rows, np.int64)
    places[random_order] = np.arange(num_rows)
    missing = {"random": _num_missing(places[finished]), "first": _num_missing(finished)}
    is_like = {name: number <= MAX_MISSING * len(finished) for name, number in missing.items()}
    # In a run that is nearly finished, little is missing of either order: only a clear difference counts.
    is_random = is_like["random"] and 2 * missing["random"] < missing["first"]
    return Coverage(
        num_finished=len(finished),
        num_rows=num_rows,
        is_random=is_random,
        is_first=is_like["first"] and not is_random,
        num_missing=missing["random" if is_random else "first"],
    )


def _num_missing(places: Rows) -> int:
    return int(places.max()) + 1 - len(places)

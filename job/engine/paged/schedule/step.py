"""One step's work as the leader sends it: a few arrays of integers in a fixed form.

Followers keep the block tables themselves, so a step contains only what is new: the tokens, and the pages that
sequences have gained. A step that decodes 256 rows takes about 1,300 numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int32]

RUN, KEEP_ALIVE, CLOSE = range(3)

_NUM_FIELDS = 6
_HEADER = 1 + _NUM_FIELDS


def _empty(width: int) -> Array:
    return np.zeros((0, width), np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A ragged batch: consecutive tokens of each of N sequences, T in all. Sequences with one token come first."""

    kind: int = RUN
    """RUN, KEEP_ALIVE or CLOSE."""
    token_ids: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    """[T], sequence after sequence; -1 - k for the k-th token of the latest choice, which the host does not know yet.
    For CLOSE: the exit code."""
    sequences: Array = field(default_factory=lambda: _empty(4))
    """[N, 4]: slot, number of tokens before, number of tokens now, and how many of the last of these need logits."""
    new_pages: Array = field(default_factory=lambda: _empty(3))
    """[., 3]: slot, index of the page in its sequence, page."""
    pages_to_clear: Array = field(default_factory=lambda: _empty(1))
    """[., 1]: pages to clear before use: what a former holder left, perhaps NaN, would spoil the sums."""
    copies: Array = field(default_factory=lambda: _empty(3))
    """[., 3]: from page, to page, number of tokens."""

    @property
    def num_chosen(self) -> int:
        """How many tokens of the latest choice the step may need: the first ones."""
        return max(0, -int(self.token_ids.min(initial=0)))

    def pack(self) -> Array:
        """Return the step as one array."""
        arrays = (self.token_ids, self.sequences, self.new_pages, self.pages_to_clear, self.copies)
        total = _HEADER + sum(array.size for array in arrays)
        header = np.array([total, self.kind, *(len(array) for array in arrays)], np.int32)
        return np.concatenate([header, *(array.reshape(-1) for array in arrays)]).astype(np.int32, copy=False)

    @classmethod
    def unpack(cls, packed: Array) -> "Step":
        """Return the step that ``pack`` packed."""
        kind, *lengths = (int(number) for number in packed[1:_HEADER])
        arrays, start = [], _HEADER
        for length, width in zip(lengths, (0, 4, 3, 1, 3), strict=True):
            end = start + length * max(1, width)
            arrays.append(packed[start:end].reshape(length, width) if width else packed[start:end])
            start = end
        names = ("token_ids", "sequences", "new_pages", "pages_to_clear", "copies")
        return cls(kind=kind, **dict(zip(names, arrays, strict=True)))


def most_wanted(max_rows: int) -> int:
    """Return how many logits a step may give: more than one for each row if texts are scored."""
    return max(4 * max_rows, 256)


def close_step(exit_code: int) -> Step:
    """Return the last step of an engine."""
    return Step(kind=CLOSE, token_ids=np.array([exit_code], np.int32))


def rows(values: Sequence[Sequence[int]], width: int) -> Array:
    """Return [len(values), width] int32."""
    return np.array(values, np.int32).reshape(len(values), width)

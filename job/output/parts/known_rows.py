"""Which rows of other runs have the answers to the rows of a new one: matched by their keys, in memory, with NumPy.

N is the number of known rows, M that of new ones. A row takes about 50 bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from job.output.parts.copy_plan import COMPUTED

NOTHING = -1
"""In place of a known row: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRows:
    """Rows of other runs that have an answer."""

    keys: Any
    """[N, 16] uint8: what they ask."""
    run: Any
    """[N] int16: the run of each."""
    row_idx: Any
    """[N] int64: its index there."""
    drawn_at: Any
    """[N] int64: the index that it had when it was computed, in whichever run: what its draws depend on."""

    @classmethod
    def joined(cls, parts: "list[KnownRows]") -> "KnownRows":
        """Return the rows of several parts, the first ones first."""
        empty = cls(keys=np.empty((0, 16), np.uint8), run=_ints(np.int16), row_idx=_ints(), drawn_at=_ints())
        each = [empty, *parts]
        return cls(
            keys=np.concatenate([part.keys for part in each]),
            run=np.concatenate([part.run for part in each]),
            row_idx=np.concatenate([part.row_idx for part in each]),
            drawn_at=np.concatenate([part.drawn_at for part in each]),
        )

    def where(self, chosen: Any) -> "KnownRows":
        """Return some of the rows: [N] bool, or indices."""
        return KnownRows(
            keys=self.keys[chosen],
            run=self.run[chosen],
            row_idx=self.row_idx[chosen],
            drawn_at=self.drawn_at[chosen],
        )

    def without_draws(self, used: Any) -> "KnownRows":
        """Return the rows whose draws are not of these indices, [U] int64."""
        return self.where(~np.isin(self.drawn_at, used)) if len(used) else self

    def origin_of(self, matched: Any) -> tuple[Any, Any, Any]:
        """Return the run, the index there, and the index of the draws of rows that ``matched`` has returned: [M] int16,
        [M] int64, [M] int64."""
        is_found = matched != NOTHING
        found = [np.full(len(matched), COMPUTED, dtype) for dtype in (np.int16, np.int64, np.int64)]
        for of_rows, of_known in zip(found, (self.run, self.row_idx, self.drawn_at), strict=True):
            of_rows[is_found] = of_known[matched[is_found]]
        run, row_idx, drawn_at = found
        return run, row_idx, drawn_at


def matched(known: KnownRows, keys: Any, first_row: int, *, is_drawn: bool) -> Any:
    """Return for each new row the place of a known row with the same key, or ``NOTHING``: [M] int64.

    If answers are drawn, no two new rows get draws of the same index, whatever they ask: such draws come from the same
    random numbers. A row gets the one that it would have drawn itself, if that is known, and of the others each goes to
    one row at most. Otherwise an answer serves all rows with its key.

    Args:
        keys: [M, 16] uint8. Zeros are the key of a row that asks nothing.
        first_row: the index of the first new row; they are consecutive.
    """
    asks = keys.any(axis=1)
    if not len(known.keys) or not asks.any():
        return np.full(len(keys), NOTHING, np.int64)
    if not is_drawn:
        return np.where(asks, _lookup(known.keys, keys), NOTHING)
    drawn = _with_place(known.keys, known.drawn_at)
    own = _lookup(drawn, _with_place(keys, np.arange(first_row, first_row + len(keys), dtype=np.int64)))
    found = np.where(asks, own, NOTHING)
    waiting = np.flatnonzero(asks & (found == NOTHING))
    if not len(waiting):
        return found
    is_left = ~np.isin(known.drawn_at, known.drawn_at[found[found != NOTHING]])
    is_left[is_left] = _lookup(keys[waiting], known.keys[is_left]) != NOTHING
    left = np.flatnonzero(is_left)
    # The same draw may be known from several runs, one of which has copied it from the other: it is one answer.
    left = left[np.sort(np.unique(known.drawn_at[left], return_index=True)[1])]
    if len(left):
        nth_known, nth_new = (_numbered(some) for some in (known.keys[left], keys[waiting]))
        place = _lookup(_with_place(known.keys[left], nth_known), _with_place(keys[waiting], nth_new))
        found[waiting] = np.where(place == NOTHING, NOTHING, left[place])
    return found


def _ints(dtype: Any = np.int64) -> Any:
    return np.empty(0, dtype)


def _with_place(keys: Any, places: Any) -> Any:
    """Return keys that name a number, too: [N, 24] uint8."""
    return np.hstack([keys, np.ascontiguousarray(places, np.int64).view(np.uint8).reshape(-1, 8)])


def _lookup(known: Any, wanted: Any) -> Any:
    """Return the first place in ``known`` of each wanted key, or ``NOTHING``: [M] int64.

    Sorts by 64 bits of the keys, and compares all of them. Of two known keys that share those 64 bits (one chance in a
    million for 6 million keys) one may not be found.
    """
    hashes, wanted_hashes = _hash64(known), _hash64(wanted)
    order = np.argsort(hashes, kind="stable")
    place = np.searchsorted(hashes[order], wanted_hashes)
    found = order[np.minimum(place, len(order) - 1)]
    return np.where((known[found] == wanted).all(axis=1), found, NOTHING)


def _hash64(keys: Any) -> Any:
    """Return 64 bits of keys, which are hashes already, perhaps followed by a number: [N] uint64."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), -1)
    hashes = words[:, 0]
    if words.shape[1] > 2:  # splitmix64 spreads the numbers
        mixed = words[:, 2] + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes = hashes ^ mixed ^ (mixed >> np.uint64(31))
    return hashes


def _numbered(keys: Any) -> Any:
    """Return how many times each key occurred before: [N] int64."""
    hashes = _hash64(keys)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    lengths = np.diff(np.append(starts, len(ordered)))
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.arange(len(keys)) - np.repeat(starts, lengths)
    return numbers

"""What cells of text mean: a column is numbers or truth values only if all cells of all files say so, and if nothing is
lost by it. Otherwise it is text, exactly as in the files.
"""

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

INTEGER = "^(0|-?[1-9][0-9]*)$"
"""Without zeros in front and without a plus: those are codes and telephone numbers."""

NUMBER = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"

CODE = "^([0-9]+[eE][0-9]+|-0)$"
"""1E5 is the code of something: programs write 1e+05 or 1.0E5 for the number. And -0 is not the integer 0."""

TRUTH = "^(true|false|True|False|TRUE|FALSE)$"

LARGEST_EXACT = 2**53
"""Integers beyond this are not exact in a double."""


def _is_all(cells: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(cells, pattern)).as_py())


def _are_integers(cells: pa.Array) -> bool:
    if not _is_all(cells, INTEGER):
        return False
    try:
        cells.cast(pa.int64())
    except pa.ArrowInvalid:  # out of range
        return False
    return True


def _are_numbers(cells: pa.Array) -> bool:
    if not _is_all(cells, NUMBER) or pc.any(pc.match_substring_regex(cells, CODE)).as_py():
        return False
    integers = cells.filter(pc.match_substring_regex(cells, INTEGER))
    try:
        limits = pc.min_max(integers.cast(pa.int64())).as_py()
        doubles = cells.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    is_exact = max(abs(limits["min"] or 0), abs(limits["max"] or 0)) <= LARGEST_EXACT
    return is_exact and bool(pc.all(pc.is_finite(doubles)).as_py())


def _are_truths(cells: pa.Array) -> bool:
    return _is_all(cells, TRUTH)


KINDS: Sequence[tuple[pa.DataType, Callable[[pa.Array], bool]]] = (
    (pa.int64(), _are_integers),
    (pa.float64(), _are_numbers),
    (pa.bool_(), _are_truths),
)


class ColumnType:
    """Finds the type of one column. Batches of its cells are added one by one."""

    def __init__(self) -> None:
        """Start without cells."""
        self.is_empty = True
        """Whether no cell has had any text."""
        self._kinds = list(KINDS)

    def add(self, cells: pa.Array) -> None:
        """Look at further cells."""
        if not self._kinds:
            return
        filled = cells.filter(pc.not_equal(cells, ""))  # also leaves out nulls
        if len(filled):
            self.is_empty = False
            self._kinds = [(kind, fits) for kind, fits in self._kinds if fits(filled)]

    @property
    def type(self) -> pa.DataType:
        """The first type that fits all cells."""
        return self._kinds[0][0] if self._kinds and not self.is_empty else pa.string()


def cast(cells: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Return cells in a type that fits them. In columns that are not text, an empty text is a null, too."""
    if data_type == pa.string():
        return cells
    filled = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
    return pc.equal(pc.utf8_lower(filled), "true") if data_type == pa.bool_() else filled.cast(data_type)

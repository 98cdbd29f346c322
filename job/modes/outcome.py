"""What came out of a run, as far as a mode knows it: in numbers, and where its labels are."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out of a run so far, in numbers, for ``Mode.describe``."""

    num_completions: int
    """Rows with a completion."""
    num_completion_tokens: int
    finish_reasons: Mapping[str, int]
    tallies: Mapping[str, Mapping[str, int]]
    """What modes have counted (see ``Mode.tally``), by name."""
    max_new_tokens: int
    has_own_limits: bool = False
    """Whether rows may have a ``max_new_tokens`` of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelColumn:
    """A column with a label for each row, for reports."""

    name: str
    """``a.b`` is the field ``b`` of the column ``a``, a struct."""
    classes: tuple[str, ...] = ()
    """All labels that there can be. Empty: any text."""
    probs: str | None = None
    """The column with a probability for each class, in their order: a list."""
    confidence: str | None = None
    """The column with the probability, or the share of the votes, of the label alone."""
    is_of_row: bool = False
    """Whether it is the same in all samples of a row."""
    rank: int = 0
    """A run may have several: the one with the highest rank is taken, unless another is named."""

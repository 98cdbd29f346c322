"""What came out of a run so far, for the modes to describe."""

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

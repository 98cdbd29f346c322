"""What came out of recomputing rows of a run: each equal, near a tie, different, or unclear; counted by worker."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EQUAL, NEAR_TIE, DIFFERENT, UNCLEAR, FAILED = "equal", "near_tie", "different", "unclear", "failed"
VERDICTS = (EQUAL, NEAR_TIE, DIFFERENT, UNCLEAR, FAILED)

TIE_GAPS: Mapping[str, float] = {"float32": 1e-3, "float16": 0.06, "bfloat16": 0.5}
"""Two tokens whose logits are this close, or closer, are a near tie, by dtype. The logits of a model are about 30 at
most, where neighboring bfloat16 numbers are 0.125 apart. Of SmolLM2-135M, the largest gap by which bfloat16 chose
another token alone than in a batch of many was 0.25; float16 has three bits more. In float32, none was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out of one row."""

    row_idx: int
    sample_idx: int
    worker: str
    """Its process and nonce; ``unknown`` if the part does not say which worker computed the row."""
    host: str
    outcome: str
    """One of ``VERDICTS``. ``unclear``: which tokens the run had is not known, and that decides. ``failed``: it
    could not be recomputed."""
    position: int | None = None
    """The first token that differs, from 0; None if none does, or if nothing is generated."""
    gap: float | None = None
    """By how many logits what the run has missed being chosen now: the largest gap, if there are several ties; infinity
    if it cannot be chosen. For numbers: how far they are apart. None if nothing is known."""
    num_ties: int = 0
    """How many near ties lie between the run's completion and the one that comes out now."""
    detail: str = ""
    """What differs, or why it failed."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        gap = self.gap if self.gap is None or self.gap != float("inf") else "infinity"
        return {
            "row_idx": self.row_idx,
            "sample_idx": self.sample_idx,
            "host": self.host,
            "worker": self.worker,
            "outcome": self.outcome,
            "position": self.position,
            "gap": gap,
            "ties": self.num_ties,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All rows that were recomputed, and how."""

    verdicts: Sequence[Verdict]
    num_finished: int
    """Finished rows of the run, from which these were drawn."""
    num_errors: int
    """Error rows, which are never drawn."""
    num_copied: int = 0
    """Rows that were copied from another run, which are not drawn either."""
    tie_gap: float
    how: str
    """Device, dtype and engine, in words."""

    @property
    def counts(self) -> Counter[str]:
        """The number of rows with each outcome."""
        return Counter(verdict.outcome for verdict in self.verdicts)

    @property
    def is_bad(self) -> bool:
        """Whether a row differs beyond a tie, or could not be recomputed."""
        return any(verdict.outcome in (DIFFERENT, FAILED) for verdict in self.verdicts)

    @property
    def workers(self) -> Mapping[tuple[str, str], Counter[str]]:
        """The number of rows with each outcome, by host and worker."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for verdict in self.verdicts:
            found.setdefault((verdict.host, verdict.worker), Counter())[verdict.outcome] += 1
        return dict(sorted(found.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values. The names are stable, since scripts rely on them."""
        by_worker = [
            {"host": host, "worker": worker, **{name: counts[name] for name in VERDICTS}}
            for (host, worker), counts in self.workers.items()
        ]
        return {
            "recomputed": len(self.verdicts),
            "finished_rows": self.num_finished,
            "error_rows": self.num_errors,
            "copied_rows": self.num_copied,
            "how": self.how,
            "tie_gap": self.tie_gap,
            **{name: self.counts[name] for name in VERDICTS},
            "workers": by_worker,
            "rows": [verdict.to_dict() for verdict in self.verdicts if verdict.outcome != EQUAL],
        }

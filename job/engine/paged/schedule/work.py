"""What a step computes for one sequence, as it was when the step was scheduled."""

from dataclasses import dataclass

from job.engine.paged.schedule.sequences import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes for a sequence: its next tokens. The sequence may go on while the step is computed."""

    sequence: Sequence
    start: int
    """The number of tokens in the cache before the step."""
    num_tokens: int
    num_wanted: int
    """How many of the last tokens need logits."""

    @classmethod
    def of(cls, sequence: Sequence, num_tokens: int) -> "Work":
        """Return the work to compute a sequence's next tokens."""
        start = sequence.num_cached
        num_wanted = max(0, start + num_tokens - max(start, sequence.first_wanted))
        return cls(sequence, start, num_tokens, num_wanted)

    @property
    def end(self) -> int:
        """The number of tokens in the cache after the step."""
        return self.start + self.num_tokens

    @property
    def is_needed(self) -> bool:
        """Whether its logits are wanted, and still are after all that the host has learned since it was scheduled.

        A row may have left meanwhile. Or the token that it computed last is followed by one that is known already
        (its grammar allows no other), or was chosen wrongly.
        """
        if not self.num_wanted or self.sequence.slot < 0:
            return False
        return self.sequence.wanted_from is not None or self.end == len(self.sequence.token_ids)

    @property
    def token_ids(self) -> list[int]:
        """The tokens to compute; -1 - k for the k-th token of the latest choice."""
        known = self.sequence.token_ids[self.start : self.end]
        if len(known) == self.num_tokens:
            return known
        assert self.sequence.pending is not None
        return [*known, -1 - self.sequence.pending]

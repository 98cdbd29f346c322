"""What a step computes for one sequence, as it was when the step was scheduled."""

from collections import abc
from typing import NamedTuple

from job.engine.paged.schedule.sequences import Sequence


class Work(NamedTuple):
    """What a step computes for a sequence: its next tokens. The sequence may go on while the step is computed.

    A tuple, since one is made and read several times for every row of every step.
    """

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
        if sequence.wanted_from is None:
            return cls(sequence, start, num_tokens, int(num_tokens == sequence.num_missing))
        return cls(sequence, start, num_tokens, max(0, start + num_tokens - max(start, sequence.wanted_from)))

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
        sequence, start, num_tokens, num_wanted = self
        if not num_wanted or sequence.slot < 0:
            return False
        return start + num_tokens == len(sequence.token_ids) or sequence.wanted_from is not None


def token_ids_of(work: abc.Sequence[Work]) -> list[int]:
    """Return the tokens that a step computes, sequence after sequence; -1 - k for the k-th token of the latest choice.

    The device computes such a token before the host knows it. It is the last one of its sequence.
    """
    token_ids: list[int] = []
    for sequence, start, num_tokens, _ in work:
        end, known = start + num_tokens, sequence.token_ids
        if num_tokens == 1 and end <= len(known):
            token_ids.append(known[start])
            continue
        token_ids += known[start:end]
        if end > len(known):
            assert end == len(known) + 1 and sequence.pending is not None
            token_ids.append(-1 - sequence.pending)
    return token_ids

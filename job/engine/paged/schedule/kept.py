"""What a sequence leaves in the cache for a request that continues it."""

from typing import NamedTuple

from job.engine.paged.schedule.pages import num_common
from job.engine.paged.schedule.sequences import Sequence


class Kept(NamedTuple):
    """A sequence that has ended, and what it had in the cache until then."""

    sequence: Sequence
    slot: int
    pages: list[int]
    num_cached: int

    @classmethod
    def of(cls, sequence: Sequence) -> "Kept":
        """Take the slot and the pages of a sequence."""
        kept = cls(sequence, sequence.slot, sequence.pages, sequence.num_cached)
        sequence.slot, sequence.num_cached, sequence.pages = -1, 0, []
        return kept

    def give_to(self, sequence: Sequence) -> None:
        """Give them to another one, as far as both begin alike and it does not want the logits of what is cached."""
        num_same = num_common(self.sequence.token_ids, sequence.token_ids)
        sequence.slot, sequence.pages, sequence.may_share = self.slot, self.pages, self.sequence.may_share
        sequence.num_cached = min(self.num_cached, num_same, sequence.first_wanted)

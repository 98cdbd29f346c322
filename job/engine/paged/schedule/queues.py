"""The sequences that are not running, and which of them comes next."""

from collections import abc, deque
from collections.abc import Iterable
from itertools import chain

from job.engine.paged.schedule.sequences import Sequence, in_order


class Queues:
    """Holds each sequence that waits in exactly one queue."""

    def __init__(self) -> None:
        """Start empty."""
        self._arrived: list[Sequence] = []  # submitted, not sorted yet
        self._waiting: deque[Sequence] = deque()  # in the order in which they are admitted
        self._returned: deque[Sequence] = deque()  # lost their pages; before all waiting ones
        self._apart: deque[list[Sequence]] = deque()  # groups that contain a row that the model fails on
        self._group: deque[Sequence] | None = None  # the one of these groups that is being admitted

    def __len__(self) -> int:
        lists = (self._arrived, self._waiting, self._returned, self._group or (), *self._apart)
        return sum(map(len, lists))

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Add sequences that are new."""
        self._arrived.extend(sequences)

    def withdraw(self, running: Iterable[Sequence]) -> list[Sequence]:
        """Remove the sequences that are new, unless others of their request are running or were."""
        others = (*running, *self._returned, *(self._group or ()), *chain.from_iterable(self._apart))
        begun = {sequence.request.key for sequence in others}
        new = [*self._waiting, *self._arrived]
        self._arrived = [sequence for sequence in new if sequence.request.key in begun]
        self._waiting = deque()
        return [sequence for sequence in new if sequence.request.key not in begun]

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """Add sequences that come before all others, in this order."""
        self._returned.extendleft(list(sequences)[::-1])

    def remove(self, sequence: Sequence) -> bool:
        """Remove a sequence that was put back. False if it was not."""
        if sequence not in self._returned:
            return False
        self._returned.remove(sequence)
        return True

    def separate(self, sequences: abc.Sequence[Sequence]) -> None:
        """Add two groups of sequences, on one of which the model fails. Each is admitted by itself."""
        # Halves go before groups that were set apart earlier, so that a search ends before the next one begins. They
        # are not computed together with other rows, since a failure would then count against those, too.
        half = -(-len(sequences) // 2)
        self._apart.extendleft(group for group in (list(sequences[half:]), list(sequences[:half])) if group)

    def current(self, *, is_running: bool) -> deque[Sequence]:
        """Return the queue that the next sequence comes from.

        Args:
            is_running: whether any sequence is running.
        """
        # A group is over when its last row no longer runs, not when that row is admitted: until then, one of its
        # rows may cause a failure, and no other rows may be in the step.
        if self._group is not None and not self._group and not is_running:
            self._group = None
        if self._group is None and self._apart:
            if is_running:
                return deque()  # a group set apart waits until it can run by itself
            self._group = deque(self._apart.popleft())
        if self._group is not None:
            return self._group
        if self._returned:
            return self._returned
        if len(self._arrived) > len(self._waiting):  # sort seldom, but many at once
            self._waiting = deque(in_order([*self._waiting, *self._arrived]))
            self._arrived = []
        return self._waiting

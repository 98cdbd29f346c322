"""What the next step computes: decode of all running rows, then prompts in chunks, then new rows into free slots.

Rules, in this order:
1. Every running row gets its next token. If no page is free for one, the row that was admitted last is taken out
   (preempted): its pages are free, its tokens are kept, and it is computed again later.
2. Prompts that have begun go on, as far as the step's token budget reaches.
3. Waiting rows are admitted while there are slots, budget and pages, with a reserve for the rows that run.
"""

from collections import abc, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from job.engine.paged.schedule.pages import Match, Pages
from job.engine.paged.schedule.sequences import Sequence, in_order
from job.engine.paged.schedule.step import Step, rows

ROWS_PER_RESERVED_PAGE = 8
"""One page is kept free for this many running rows: to admit a row into the last pages only to preempt it computes its
prompt twice."""

SMALL_STEP = 16
"""Tokens. Below that, steps are only halved."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes of a sequence: its next tokens."""

    sequence: Sequence
    num_tokens: int

    @property
    def end(self) -> int:
        """Tokens in the cache after the step."""
        return self.sequence.num_cached + self.num_tokens

    @property
    def num_wanted(self) -> int:
        """How many of the last tokens need logits."""
        return max(0, self.end - max(self.sequence.num_cached, self.sequence.first_wanted))


class Scheduler:
    """Holds all sequences of the engine, from submitted to finished."""

    def __init__(self, pages: Pages, *, max_rows: int, max_tokens: int, share_prefixes: bool = True) -> None:
        """Schedule over these pages.

        Args:
            max_rows: slots.
            max_tokens: tokens per step at most; never fewer than slots.
            share_prefixes: compute common beginnings once.
        """
        self.pages, self.max_rows, self._share = pages, max_rows, share_prefixes
        self.max_tokens = max(max_tokens, max_rows)
        self.running: list[Sequence] = []
        """In the order of their admission."""
        self.unfit: list[Sequence] = []
        """Sequences that do not fit into the cache although they are alone; the engine takes them from here."""
        # A sequence that is not running is in exactly one of these; ``num_pending`` adds them up.
        self._arrived: list[Sequence] = []  # submitted, not sorted yet
        self._waiting: deque[Sequence] = deque()  # in the order in which they are admitted
        self._returned: deque[Sequence] = deque()  # lost their pages; before all that waits
        self._apart: deque[list[Sequence]] = deque()  # groups one of whose rows the model fails on
        self._group: deque[Sequence] | None = None  # the one of these groups that is being admitted
        self._free_slots = list(range(max_rows))[::-1]
        self._retained: abc.Sequence[int] = ()  # pages held for the next rows, by no sequence
        self._begin()

    def _begin(self) -> None:
        self._new_pages: list[tuple[int, int, int]] = []
        self._pages_to_clear: list[int] = []
        self._copies: list[tuple[int, int, int]] = []
        self._origins: dict[int, tuple[int, int]] = {}

    @property
    def num_pending(self) -> int:
        """Sequences that are not finished."""
        lists = (
            self.running,
            self._arrived,
            self._waiting,
            self._returned,
            self.unfit,
            self._group or (),
            *self._apart,
        )
        return sum(map(len, lists))

    def submit(self, sequence: Sequence) -> None:
        """Add a sequence."""
        self._arrived.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Drop a sequence that is done. Its prompt is retained until the next one ends: its neighbours may share it."""
        # Before the release: a page that nobody holds, even for a moment, is free and out of the prefix cache.
        self._retain(sequence.pages[: self.pages.num_needed(min(sequence.num_prompt, sequence.num_cached))])
        self._release(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Drop a sequence that has failed. What it left in the cache is of no use to others."""
        self._release(sequence)

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """Take running sequences out; they are computed again from their first token, before others."""
        for sequence in list(sequences)[::-1]:  # last first, so that appendleft leaves them in their order
            self._release(sequence)
            self._returned.appendleft(sequence)

    def may_share(self, sequence: Sequence) -> bool:
        """Whether a sequence's pages may be those of others."""
        return self._share and sequence.may_share

    def isolate(self, sequence: Sequence) -> None:
        """Take a running sequence out, and compute it again without sharing: what it shares may be spoilt."""
        # Forgotten before they are released: rows that hold these pages go on, but no other row may find them.
        self.pages.forget(sequence.pages)
        sequence.may_share = False
        self.put_back([sequence])

    def separate(self, sequences: abc.Sequence[Sequence]) -> None:
        """Take out sequences one of which the model fails on, and compute them later in two groups, each by itself."""
        for sequence in sequences:
            self._release(sequence)
        # Halves go before groups that were set apart earlier, so that a search ends before the next one begins. They
        # are not computed together with other rows: a failure would then be theirs, too.
        half = -(-len(sequences) // 2)
        self._apart.extendleft(group for group in (list(sequences[half:]), list(sequences[:half])) if group)

    def shrink(self, num_tokens: int) -> None:
        """Make all later steps smaller: memory that ran out once will run out again.

        Args:
            num_tokens: of the step that was too large. Half of it is the next limit, but not at once a tiny one: few
                rows at the end of a run may have met a shortage that is not theirs.
        """
        self.max_tokens = max(1, min(self.max_tokens // 2, max(num_tokens // 2, SMALL_STEP)))
        self.max_rows = min(self.max_rows, self.max_tokens)

    def next_work(self) -> list[Work]:
        """Decide the next step; empty if nothing can be computed. ``to_step`` then says it to the replica."""
        self._begin()
        work: dict[Sequence, int] = {}
        budget = self.max_tokens
        # Decoding rows first: a chunk of a prompt may take the whole budget, and they would wait for it. The list is a
        # copy, since preemption takes rows out of ``running`` meanwhile.
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_missing > 1):
            if sequence.slot < 0:
                continue  # preempted just now
            num_tokens = min(sequence.num_missing, budget)
            while num_tokens and not self._grow(sequence, num_tokens):
                # The row that was admitted last has the least to lose. It may have been scheduled above: then its
                # tokens are not computed, and the pages that it was given go back within the same step.
                victim = self.running[-1]
                budget += work.pop(victim, 0)
                self._preempt(victim)
                num_tokens = 0 if victim is sequence else num_tokens
            if num_tokens:
                self._schedule(sequence, num_tokens, work)
                budget -= num_tokens
        while budget and (admitted := self._admit()) is not None:
            num_tokens = min(admitted.num_missing, budget)
            self._grow(admitted, num_tokens)  # cannot fail: _admit has counted pages for the whole sequence
            self._schedule(admitted, num_tokens, work)
            budget -= num_tokens
        items = [Work(sequence, num_tokens) for sequence, num_tokens in work.items()]
        return sorted(items, key=lambda item: item.num_tokens > 1)  # single tokens first, as ``Step`` promises

    def to_step(self, work: abc.Sequence[Work]) -> Step:
        """Return what the replica must be told."""
        token_ids = [token for item in work for token in item.sequence.token_ids[item.sequence.num_cached : item.end]]
        sequences = [(w.sequence.slot, w.sequence.num_cached, w.num_tokens, w.num_wanted) for w in work]
        return Step(
            token_ids=np.array(token_ids, np.int32),
            sequences=rows(sequences, 4),
            new_pages=rows(self._new_pages, 3),
            pages_to_clear=np.array(self._pages_to_clear, np.int32).reshape(-1, 1),
            copies=rows(self._copies, 3),
        )

    def _schedule(self, sequence: Sequence, num_tokens: int, work: dict[Sequence, int]) -> None:
        work[sequence] = num_tokens
        # Described before they are computed: rows admitted in this very step find them, and read them only after all
        # rows of the step have written. Only prompts: completions are not shared by anybody.
        if self.may_share(sequence) and sequence.num_cached < sequence.num_prompt:
            end = min(sequence.num_cached + num_tokens, sequence.num_prompt)
            first_idx = sequence.num_cached // self.pages.page_tokens
            self.pages.describe(sequence.pages, sequence.token_ids[:end], first_idx)

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence the pages for its next tokens. False if there are too few, and then nothing is taken."""
        num_lacking = self.pages.num_needed(sequence.num_cached + num_tokens) - len(sequence.pages)
        if num_lacking > self.pages.num_free:
            self._retain(())  # pages kept on the chance of sharing go before a row loses its work
        if num_lacking > self.pages.num_free:
            return False
        for _ in range(num_lacking):
            # A page of its own is cleared; one that is shared must not be. Pages of a row that is preempted later in
            # this step stay in the lists: to enter or clear them once more does no harm.
            self._pages_to_clear.append(self.pages.take())
            self._add_page(sequence, self._pages_to_clear[-1])
        return True

    def _add_page(self, sequence: Sequence, page: int) -> None:
        self._new_pages.append((sequence.slot, len(sequence.pages), page))
        sequence.pages.append(page)

    def _preempt(self, victim: Sequence) -> None:
        """Take a sequence out for its pages. One that is alone has all there are, and cannot be helped."""
        if len(self.running) == 1:
            self._release(victim)
            self.unfit.append(victim)
        else:
            self.put_back([victim])

    def _admit(self) -> Sequence | None:
        """Move the first waiting sequence into a slot, with what is known of its prompt. None if it must wait."""
        queue = self._queue()
        if not queue or len(self.running) >= self.max_rows:
            return None
        match = self._match(queue[0])
        num_new = self.pages.num_needed(len(queue[0].token_ids)) - len(match.pages)
        if num_new + len(self.running) // ROWS_PER_RESERVED_PAGE > self.pages.num_free:
            if self.running:
                return None  # a running row will end and leave its pages
            # Alone, it may have everything: the reserve is for others, and what is retained may be in its way. The
            # match may have been of retained pages, which are free now.
            self._retain(())
            match = Match(())
            if self.pages.num_needed(len(queue[0].token_ids)) > self.pages.num_free:
                self.unfit.append(queue.popleft())
                return None
        sequence = queue.popleft()
        sequence.slot, sequence.is_new_in_slot = self._free_slots.pop(), True
        sequence.num_cached = len(match.pages) * self.pages.page_tokens + match.num_donated
        self.running.append(sequence)
        # Held before any page is taken: for want of free pages ``_grow`` lets go of what is retained, perhaps these.
        self.pages.hold(match.pages)
        for page in match.pages:
            self._add_page(sequence, page)
        if match.donor is not None:
            # num_cached counts the donor's tokens already, so this takes the page that they are copied to.
            self._grow(sequence, 0)
            self._copies.append((match.donor, sequence.pages[-1], match.num_donated))
            self._origins[sequence.pages[-1]] = (match.donor, match.num_donated)
        return sequence

    def _match(self, sequence: Sequence) -> Match:
        """Find what is known of a sequence's prompt. Tokens whose logits are wanted must be computed in any case."""
        if not self.may_share(sequence):
            return Match(())
        match = self.pages.match(sequence.token_ids[: sequence.num_prompt][: sequence.first_wanted])
        if match.donor in self._origins:
            # All copies of a step happen at once: a page that is being copied to is not a source yet; its own source
            # is, as far as it was copied.
            donor, num_original = self._origins[match.donor]
            return Match(match.pages, donor, min(match.num_donated, num_original))
        return match

    def _queue(self) -> deque[Sequence]:
        """Return where the next sequence comes from."""
        # A group is over when its last row has left ``running``, not when it is admitted: until then a failure may be
        # that of one of its rows, and rows of others must not be in the step.
        if self._group is not None and not self._group and not self.running:
            self._group = None
        if self._group is None and self._apart:
            if self.running:
                return deque()  # a group set apart waits until it can be by itself
            self._group = deque(self._apart.popleft())
        if self._group is not None:
            return self._group
        if self._returned:
            return self._returned
        if len(self._arrived) > len(self._waiting):  # so that sorting costs little, and still sees many at once
            self._waiting = deque(in_order([*self._waiting, *self._arrived]))
            self._arrived = []
        return self._waiting

    def _release(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self.pages.release(sequence.pages)
        sequence.slot, sequence.num_cached, sequence.pages = -1, 0, []

    def _retain(self, pages: abc.Sequence[int]) -> None:
        self.pages.hold(pages)  # first, since the new ones may be among the old ones
        self.pages.release(self._retained)
        self._retained = tuple(pages)

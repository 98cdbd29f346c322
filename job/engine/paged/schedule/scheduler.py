"""What the next step computes: decode of all running rows, then prompts in chunks, then new rows into free slots.

Rules, in this order:
1. Every running row gets its next token. If there is no free page for it, the row that was admitted last is taken out
   (preempted): its pages are freed, its tokens are kept, and it is recomputed later.
2. Prompts that are partly computed continue, as far as the step's token budget allows.
3. Waiting rows are admitted while there are slots, budget and pages, with a reserve of pages for the running rows.
"""

from collections import abc, deque
from collections.abc import Iterable

import numpy as np

from job.engine.paged.schedule.admission import Admission
from job.engine.paged.schedule.kept import Kept
from job.engine.paged.schedule.pages import Match, Pages
from job.engine.paged.schedule.queues import Queues
from job.engine.paged.schedule.sequences import Sequence, decoding_first
from job.engine.paged.schedule.step import Step, most_wanted, rows
from job.engine.paged.schedule.work import Work, token_ids_of
from job.records import SampleKey

ROWS_PER_RESERVED_PAGE = 8
"""One page is kept free for this many running rows: if a row is admitted into the last pages and soon preempted, its
prompt is computed twice."""

SMALL_STEP = 16
"""Tokens. Steps become smaller than this only by halving the limit."""


class Scheduler:
    """Holds all sequences of the engine, from submitted to finished."""

    def __init__(
        self, pages: Pages, *, max_rows: int, max_tokens: int, share_prefixes: bool = True, holds_rows: bool = False
    ) -> None:
        """Schedule over these pages.

        Args:
            max_rows: the number of slots.
            max_tokens: the most tokens per step; raised to ``max_rows`` if it is less.
            share_prefixes: whether common beginnings are computed only once.
            holds_rows: whether new rows wait to be admitted together; see ``admission``.
        """
        self._admission = Admission(max_rows, is_held=holds_rows)
        self.pages, self.max_rows, self._share = pages, max_rows, share_prefixes
        self.max_tokens = max(max_tokens, max_rows)
        self.running: list[Sequence] = []
        """In the order of admission."""
        self.unfit: list[Sequence] = []
        """Sequences that do not fit into the cache even when they are alone; the engine takes them from here."""
        self.queues = Queues()
        self._kept: dict[SampleKey, Kept] = {}
        self._free_slots = list(range(max_rows))[::-1]
        self._retained: abc.Sequence[int] = ()  # pages held for the next rows, by no sequence
        self.num_preemptions = 0
        self._begin()

    def _begin(self) -> None:
        self._new_pages: list[tuple[int, int, int]] = []
        self._pages_to_clear: list[int] = []
        self._copies: list[tuple[int, int, int]] = []
        self._origins: dict[int, tuple[int, int]] = {}

    @property
    def num_pending(self) -> int:
        """The number of sequences that are not finished."""
        return len(self.running) + len(self.unfit) + len(self.queues)

    def submit(self, sequences: abc.Sequence[Sequence]) -> None:
        """Add the sequences of a request. If it continues one that was kept, the first begins with what that cached."""
        kept = self._kept.pop(sequences[0].request.key, None)
        if kept is None:
            self.queues.submit(sequences)
        else:
            self._begin_with(kept, sequences[0])
            self.queues.put_back(sequences[1:])

    def keep(self, sequence: Sequence) -> None:
        """Drop a sequence that is done, but keep what it cached until the next step: a request may continue it."""
        if sequence.slot < 0:
            return self.drop(sequence)
        self.running.remove(sequence)
        self._kept[sequence.request.key] = Kept.of(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Drop a sequence that is done. Its prompt is retained until the next one is: its neighbors may share it."""
        if sequence.slot < 0:
            return self.drop(sequence)
        # Retain before the release: a page without a holder, even for a moment, is freed and leaves the prefix cache.
        self._retain(sequence.pages[: self.pages.num_needed(min(sequence.num_prompt, sequence.num_cached))])
        self._release(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Take out a sequence that was running when its latest step began; it may have been preempted since. What it
        left in the cache is of no use to others."""
        if sequence.slot >= 0:
            self._release(sequence)
        elif not self.queues.remove(sequence):
            self.unfit.remove(sequence)

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """Take sequences out; they are recomputed from their first token, before others."""
        rows = list(sequences)
        for sequence in rows:
            self.drop(sequence)
        self.queues.put_back(rows)

    def may_share(self, sequence: Sequence) -> bool:
        """Whether a sequence may share pages with others."""
        return self._share and sequence.may_share

    def isolate(self, sequence: Sequence) -> None:
        """Take a sequence out, and recompute it without sharing: what it shares may be corrupted."""
        # Forget the pages before the release: rows that hold them go on, but no other row may find them.
        self.pages.forget(sequence.pages)
        sequence.may_share = False
        self.put_back([sequence])

    def step_back(self, sequence: Sequence) -> None:
        """Let the next step compute a sequence's last known token again."""
        if sequence.slot >= 0:
            sequence.num_cached = min(sequence.num_cached, len(sequence.token_ids) - 1)

    def separate(self, sequences: abc.Sequence[Sequence]) -> None:
        """Take out sequences, on one of which the model fails, and compute them later in two separate groups."""
        for sequence in sequences:
            self.drop(sequence)
        self.queues.separate(sequences)

    def shrink(self, num_tokens: int) -> None:
        """Make all later steps smaller: memory that ran out once will run out again.

        Args:
            num_tokens: tokens of the step that was too large. Half of that is the next limit, but it does not become
                tiny at once: a few rows at the end of a run may have met a shortage that they did not cause.
        """
        self.max_tokens = max(1, min(self.max_tokens // 2, max(num_tokens // 2, SMALL_STEP)))
        self.max_rows = min(self.max_rows, self.max_tokens)

    def next_work(self) -> list[Work]:
        """Decide the next step; empty if nothing can be computed. ``to_step`` turns it into what the replica gets."""
        self._begin()
        self._free(*self._kept.values())  # nothing has continued these
        self._kept = {}
        work: dict[Sequence, Work] = {}
        budget = self.max_tokens
        num_scores = most_wanted(self.max_rows) - self.max_rows  # the logits that rows may want beyond their last
        for sequence, num_missing in decoding_first(self.running):
            if sequence.slot < 0:
                continue  # preempted earlier in this loop
            num_tokens = num_missing if num_missing < budget else budget
            if sequence.wanted_from is not None:
                num_tokens = sequence.limited(num_tokens, num_scores)
            while num_tokens and not self._grow(sequence, num_tokens):
                # The row that was admitted last has the least to lose. It may have been scheduled above: then its
                # tokens are not computed, and the pages that it was given are released within the same step.
                victim = self.running[-1]
                budget += work.pop(victim).num_tokens if victim in work else 0
                self._preempt(victim)
                num_tokens = 0 if victim is sequence else num_tokens
            if num_tokens:
                num_scores -= self._schedule(sequence, num_tokens, work)
                budget -= num_tokens
        self._admission.begin_step(num_running=len(self.running))
        while budget and num_scores and self._admission.is_open and (admitted := self._admit()) is not None:
            self._admission.count()
            num_tokens = admitted.limited(min(admitted.num_missing, budget), num_scores)
            self._grow(admitted, num_tokens)  # cannot fail: _admit has counted pages for the whole sequence
            num_scores -= self._schedule(admitted, num_tokens, work)
            budget -= num_tokens
        if budget and num_scores and self._admission.is_open:  # since no row was waiting, or had room
            self._admission.close(num_running=len(self.running), lacks_pages=bool(self._queue()))
        single = [item for item in work.values() if item.num_tokens == 1]  # these come first, as ``Step`` promises
        self._admission.end_step(has_prompts=len(single) < len(work))
        return single if len(single) == len(work) else single + [w for w in work.values() if w.num_tokens > 1]

    def to_step(self, work: abc.Sequence[Work]) -> Step:
        """Return what the replica must receive."""
        slots = [item.sequence.slot for item in work]
        columns = [slots, *([item[idx] for item in work] for idx in (1, 2, 3))]  # NumPy is slow to read many tuples
        return Step(
            token_ids=np.array(token_ids_of(work), np.int32),
            sequences=np.array(columns, np.int32).T,
            new_pages=rows(self._new_pages, 3),
            pages_to_clear=np.array(self._pages_to_clear, np.int32).reshape(-1, 1),
            copies=rows(self._copies, 3),
        )

    def _schedule(self, sequence: Sequence, num_tokens: int, work: dict[Sequence, Work]) -> int:
        """Enter a sequence's next tokens into the step; return how many of them are scored."""
        work[sequence] = item = Work.of(sequence, num_tokens)
        # Pages are described before they are computed: rows that are admitted in the same step find them, but read them
        # only after all rows of the step have written. Only prompts are described: completions are never shared.
        if sequence.num_cached < sequence.num_prompt and self.may_share(sequence):
            end = min(sequence.num_cached + num_tokens, sequence.num_prompt)
            first_idx = sequence.num_cached // self.pages.page_tokens
            self.pages.describe(sequence.pages, sequence.token_ids[:end], first_idx)
        return 0 if sequence.wanted_from is None else item.num_wanted

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence the pages for its next tokens. If too few are free, take none and return False."""
        num_tokens += sequence.num_cached
        if num_tokens <= len(sequence.pages) * self.pages.page_tokens:
            return True  # the usual case: a row needs a new page only once in ``page_tokens`` steps
        num_lacking = self.pages.num_needed(num_tokens) - len(sequence.pages)
        if num_lacking > self.pages.num_free:
            self._retain(())  # give up pages that might have been shared before a row loses its work
        if num_lacking > self.pages.num_free:
            return False
        for _ in range(num_lacking):
            # A page of its own is cleared; a shared one must not be. Pages of a row that is preempted later in this
            # step stay in the lists: entering or clearing them once more does no harm.
            self._pages_to_clear.append(self.pages.take())
            self._add_page(sequence, self._pages_to_clear[-1])
        return True

    def _add_page(self, sequence: Sequence, page: int) -> None:
        self._new_pages.append((sequence.slot, len(sequence.pages), page))
        sequence.pages.append(page)

    def _preempt(self, victim: Sequence) -> None:
        """Take a sequence out to free its pages. One that is alone already has all pages, so it cannot fit."""
        if len(self.running) == 1:
            self._release(victim)
            self.unfit.append(victim)
        else:
            self.num_preemptions += 1
            self.put_back([victim])

    def _admit(self) -> Sequence | None:
        """Move the first waiting sequence into a slot, with the cached part of its prompt. None if it must wait."""
        queue = self._queue()
        if not queue or len(self.running) >= self.max_rows or not queue[0].num_missing:
            return None
        match = self._match(queue[0])
        num_new = self.pages.num_needed(queue[0].num_tokens) - len(match.pages)
        if num_new + len(self.running) // ROWS_PER_RESERVED_PAGE > self.pages.num_free:
            if self.running:
                return None  # a running row will end and free its pages
            # Alone, it may have everything: the reserve is for others, and retained pages may be in its way. The match
            # may have consisted of retained pages, which are free now.
            self._retain(())
            match = Match(())
            if self.pages.num_needed(queue[0].num_tokens) > self.pages.num_free:
                self.unfit.append(queue.popleft())
                return None
        sequence = queue.popleft()
        sequence.slot = self._free_slots.pop()
        sequence.num_cached = len(match.pages) * self.pages.page_tokens + match.num_donated
        self.running.append(sequence)
        # Hold these before taking any page: if too few are free, ``_grow`` releases the retained pages, perhaps these.
        self.pages.hold(match.pages)
        for page in match.pages:
            self._add_page(sequence, page)
        if match.donor is not None:
            # num_cached already counts the donor's tokens, so this takes the page that they are copied to.
            self._grow(sequence, 0)
            self._copies.append((match.donor, sequence.pages[-1], match.num_donated))
            self._origins[sequence.pages[-1]] = (match.donor, match.num_donated)
        return sequence

    def _match(self, sequence: Sequence) -> Match:
        """Find the cached part of a sequence's prompt. Tokens whose logits are wanted must be computed in any case."""
        if not self.may_share(sequence):
            return Match(())
        match = self.pages.match(sequence.token_ids[: sequence.num_prompt][: sequence.first_wanted])
        if match.donor in self._origins:
            # All copies of a step happen at once, so a page that is being copied to cannot be a source yet. Its own
            # source can, as far as it was copied.
            donor, num_original = self._origins[match.donor]
            return Match(match.pages, donor, min(match.num_donated, num_original))
        return match

    def _queue(self) -> deque[Sequence]:
        return self.queues.current(is_running=bool(self.running))

    def _begin_with(self, kept: Kept, sequence: Sequence) -> None:
        """Let a sequence run with the slot and the pages of one that has ended, as far as both begin alike."""
        self.running.append(sequence)
        kept.give_to(sequence)
        if self.may_share(sequence):  # what the other one has generated is part of a prompt now
            first_idx = min(kept.sequence.num_prompt, sequence.num_cached) // self.pages.page_tokens
            self.pages.describe(sequence.pages, sequence.token_ids[: sequence.num_cached], first_idx)

    def _release(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(Kept.of(sequence))

    def _free(self, *left: Kept) -> None:
        for _, slot, pages, _ in left:
            self._free_slots.append(slot)
            self.pages.release(pages)

    def _retain(self, pages: abc.Sequence[int]) -> None:
        self.pages.hold(pages)  # before the release, since new pages may be among the old ones
        self.pages.release(self._retained)
        self._retained = tuple(pages)

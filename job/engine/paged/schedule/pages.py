"""Which sequences hold which pages of the KV cache. Numbers only, no tensors; runs on the leader only.

A page stores the keys and values of ``page_tokens`` consecutive tokens of one sequence, or of several sequences that
begin with the same tokens. The holders of each page are counted, and a prompt's pages can be found by their contents
(the prefix cache), so common instructions, few-shot examples and the samples of one prompt are computed only once. A
page is free again as soon as it has no holder; lower numbers are handed out first, which keeps the used pages together.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

ROOT = -1
"""The parent of a sequence's first page."""

MIN_COPIED_TOKENS = 4
"""A shorter common part of a page is recomputed: copying costs about as much."""

NUM_DONORS = 4
"""How many of the latest pages after a common prefix are searched for more common tokens. Requests arrive sorted, so
the one that shares the most has just been admitted."""


@dataclass(frozen=True, slots=True)
class Match:
    """The part of a prompt that is already in the cache."""

    pages: tuple[int, ...]
    """Whole pages to share."""
    donor: int | None = None
    """A page whose first tokens are the prompt's next ones. It must be copied, since it continues differently."""
    num_donated: int = 0


class Pages:
    """Counts the holders of each page, and finds pages by their contents."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        """Start with ``num_pages`` pages, all free."""
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self._free = list(range(num_pages))  # a heap
        self._num_holders = [0] * num_pages
        # The prefix cache is a tree: a page is identified by the page before it and its own tokens, since keys and
        # values depend on all earlier tokens. The parent's number represents those: every holder of a described page
        # also holds its parent, so that number cannot be given to other contents meanwhile.
        self._contents: dict[int, tuple[int, tuple[int, ...]]] = {}  # for each described page: parent and tokens
        self._whole: dict[tuple[int, tuple[int, ...]], int] = {}  # the inverse, for full pages: only they are shared
        self._children: dict[int, dict[int, None]] = {}  # for each parent, in the order in which they were described

    @property
    def num_free(self) -> int:
        """The number of pages without a holder."""
        return len(self._free)

    def num_needed(self, num_tokens: int) -> int:
        """Return how many pages hold this many tokens."""
        return -(-num_tokens // self.page_tokens)

    def take(self) -> int:
        """Return a free page, which now has one holder. There must be a free page."""
        page = heapq.heappop(self._free)
        self._num_holders[page] = 1
        return page

    def hold(self, pages: Sequence[int]) -> None:
        """Count one more holder of each page."""
        for page in pages:
            self._num_holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Count one holder less of each page; a page without holders is free and leaves the prefix cache."""
        for page in pages:
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                self._forget(page)  # before it can be given out: its next holder overwrites it
                heapq.heappush(self._free, page)

    def forget(self, pages: Sequence[int]) -> None:
        """Remove pages from the prefix cache. Current holders keep them."""
        for page in pages:
            self._forget(page)

    def describe(self, pages: Sequence[int], token_ids: Sequence[int], first_idx: int) -> None:
        """Enter a sequence's pages into the prefix cache, from its page ``first_idx`` on, so that others can find them.

        Args:
            pages: all pages of the sequence.
            token_ids: what they hold; the last page may not be full.
        """
        parent = pages[first_idx - 1] if first_idx else ROOT
        for page_idx in range(first_idx, self.num_needed(len(token_ids))):
            start = page_idx * self.page_tokens
            contents = tuple(token_ids[start : start + self.page_tokens])
            page = pages[page_idx]
            self._forget(page)  # a last page is described again and again while it fills
            self._contents[page] = (parent, contents)
            self._children.setdefault(parent, {})[page] = None
            if len(contents) == self.page_tokens:
                # Of several equal pages, only the first can be found, and pages that follow another one cannot. So
                # prompts may share less than they could, but never anything wrong.
                self._whole.setdefault((parent, contents), page)
            parent = page

    def match(self, token_ids: Sequence[int]) -> Match:
        """Find the longest cached beginning of ``token_ids``."""
        pages: list[int] = []
        parent = ROOT
        while len(contents := tuple(token_ids[len(pages) * self.page_tokens :][: self.page_tokens])) > 0:
            page = self._whole.get((parent, contents))
            if page is None:
                return Match(tuple(pages), *self._best_donor(parent, contents))
            pages.append(page)
            parent = page
        return Match(tuple(pages))

    def _best_donor(self, parent: int, contents: tuple[int, ...]) -> tuple[int | None, int]:
        donors = islice(reversed(self._children.get(parent, {})), NUM_DONORS)
        lengths = {page: num_common(self._contents[page][1], contents) for page in donors}
        best = max(lengths, key=lengths.__getitem__, default=None)
        if best is None or lengths[best] < MIN_COPIED_TOKENS:
            return None, 0
        return best, lengths[best]

    def _forget(self, page: int) -> None:
        parent, contents = self._contents.pop(page, (None, ()))
        if parent is None:
            return
        siblings = self._children[parent]
        del siblings[page]
        if not siblings:
            del self._children[parent]
        if self._whole.get((parent, contents)) == page:  # the entry may be an equal page
            del self._whole[parent, contents]


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common beginning.

    >>> num_common([1, 2, 3], [1, 2, 4, 5]), num_common([], [1])
    (2, 0)
    """
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(idx for idx in range(shorter) if left[idx] != right[idx])

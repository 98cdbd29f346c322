"""Where the tokens of a step lie in the cache: index arrays on the host, made once per step and used by every layer.

Two kinds of sequences. Prefill: several tokens in this step. Decode: one token. Decode goes through the pages in the
order in which they lie in memory, not row by row: each page is multiplied with the query of the row that holds it, and
the partial results of a row are put together afterwards. So nothing is copied, rows of any length go together without
padding, and a page that many rows share is read once for all of them.

Letters: T tokens, N sequences, P tokens per page, H key-value heads, G queries per head.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from job.engine.paged.step import Step

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROWS_PER_SHARED_ITEM = 16
"""So many rows' queries are multiplied with a shared page at once; more rows make more items."""

MIN_USED_SHARE = 0.7
"""Pages are read in place while at least this share of the range is wanted; else the wanted ones are copied first."""

MAX_PADDING = 1.5
"""Prompts are computed together as long as padding them makes no more than this times the work."""


class BlockTables:
    """[slots, pages per sequence] page numbers, kept alike on all ranks by what steps tell."""

    def __init__(self, num_slots: int) -> None:
        """Know nothing yet."""
        self._pages = np.zeros((num_slots, 16), np.int64)

    def gain(self, gained: npt.NDArray[np.int32]) -> None:
        """Enter [., 3]: slot, index of the page in its sequence, page."""
        if not len(gained):
            return
        while gained[:, 1].max() >= self._pages.shape[1]:
            self._pages = np.concatenate([self._pages, np.zeros_like(self._pages)], axis=1)
        self._pages[gained[:, 0], gained[:, 1]] = gained[:, 2]

    def of(self, slots: npt.NDArray[np.int32]) -> Ints:
        """Return [N, .]: the pages of sequences; what is behind a sequence's own pages means nothing."""
        return self._pages[slots]


@dataclass(frozen=True, slots=True)
class DecodeItems:
    """The pages that decode reads for one window, and how their partial results make rows again.

    A private item is a page with one row's query, a shared item a page with up to ``ROWS_PER_SHARED_ITEM`` rows'.
    """

    first_page: int
    """Private pages are those from here on ..."""
    pages: Ints | None
    """... unless they are listed here [private]."""
    rows: Ints
    """[private]: whose query meets the page. A page in the range that nobody wants meets row 0, for nothing."""
    hidden: Bools
    """[private, P]: tokens that its row does not see."""
    shared_pages: Ints
    """[shared]."""
    shared_rows: Ints
    """[shared, R]: unused places meet row 0, for nothing."""
    shared_hidden: Bools
    """[shared, R, P]."""
    bases: Ints
    """[N, most pages of a row]: where the partial results of the row's k-th page begin, for H = G = 1 ..."""
    is_shared: Bools
    """[N, most pages of a row]: in which part; the shared ones are behind the private ones."""
    is_real: Bools
    """[N, most pages of a row]: whether the row has a k-th page."""

    def partial_indices(self, num_heads: int, group: int) -> Ints:
        """Return [N, H, G, most pages of a row]: index of each partial result; one past the end where there is none."""
        num_private, (num_shared, width) = len(self.rows), self.shared_rows.shape
        h = np.arange(num_heads)[:, None, None]
        g = np.arange(group)[None, :, None]
        bases, shared = self.bases[:, None, None, :], self.is_shared[:, None, None, :]
        item, place = np.divmod(bases, width)
        private_idx = (bases * num_heads + h) * group + g
        shared_idx = num_private * num_heads * group + ((item * num_heads + h) * width + place) * group + g
        end = (num_private + num_shared * width) * num_heads * group
        return np.where(self.is_real[:, None, None, :], np.where(shared, shared_idx, private_idx), end)


@dataclass(frozen=True, slots=True)
class PrefillGroup:
    """Sequences of like length, padded to rectangles. n sequences, q tokens in this step, k pages at most."""

    tokens: Ints
    """[n, q]: index of each token in the step; padding repeats token 0."""
    is_real: Bools
    """[n, q]."""
    pages: Ints
    """[n, k]; padding repeats the sequence's own first page: NaN in another's would pass the mask."""
    positions: Ints
    """[n, q]: of each token in its sequence; padding is at the end."""
    num_keys: int
    """Tokens of the longest sequence."""

    def hidden(self, window: int | None) -> Bools:
        """Return [n, q, num_keys]: what each token does not see."""
        keys = np.arange(self.num_keys)
        hidden: Bools = keys > self.positions[:, :, None]
        return hidden if window is None else hidden | (keys <= self.positions[:, :, None] - window)


class Layout:
    """Index arrays of one step."""

    def __init__(self, step: Step, tables: BlockTables, page_tokens: int) -> None:
        """Derive them from a step whose pages are entered in the tables already."""
        slots, starts, counts, is_sampled = step.sequences.astype(np.int64).T
        self.page_tokens, self.pages = page_tokens, tables.of(slots)
        self.starts, self.counts, self.ends = starts, counts, starts + counts
        self.token_ids = step.token_ids.astype(np.int64)
        self.copies = step.copies.astype(np.int64)
        sequence_of_token = np.repeat(np.arange(len(slots)), counts)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.positions: Ints = np.arange(len(sequence_of_token)) - (self.offsets[:-1] - starts)[sequence_of_token]
        self.token_pages: Ints = self.pages[sequence_of_token, self.positions // page_tokens]
        self.token_places: Ints = self.positions % page_tokens
        self.sampled_tokens: Ints = self.offsets[1:][is_sampled > 0] - 1
        self.num_decode = int(np.argmax(counts > 1)) if (counts > 1).any() else len(counts)

    @cached_property
    def prefill_groups(self) -> list[PrefillGroup]:
        """The sequences with more than one token, grouped so that padding stays small."""
        order = sorted(range(self.num_decode, len(self.counts)), key=lambda i: (int(self.ends[i]), int(self.counts[i])))
        groups: list[list[int]] = []
        for i in order:
            if groups and self._padding([*groups[-1], i]) <= MAX_PADDING:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [self._group(np.array(group)) for group in groups]

    def _padding(self, group: list[int]) -> float:
        padded = len(group) * self.counts[group].max() * self.ends[group].max()
        return float(padded / (self.counts[group] * self.ends[group]).sum())

    def _group(self, group: Ints) -> PrefillGroup:
        counts, num_keys = self.counts[group, None], int(self.ends[group].max())
        within = np.arange(counts.max())
        is_real = within < counts
        num_pages = -(-self.ends[group, None] // self.page_tokens)
        page_idx = np.arange(num_pages.max())
        return PrefillGroup(
            tokens=np.where(is_real, self.offsets[group, None] + within, 0),
            is_real=is_real,
            pages=np.where(page_idx < num_pages, self.pages[group, : num_pages.max()], self.pages[group, :1]),
            positions=np.minimum(self.starts[group, None] + within, self.ends[group, None] - 1),
            num_keys=num_keys,
        )

    def decode_items(self, window: int | None) -> DecodeItems:
        """Sort out which pages the decoding rows read."""
        num_rows = self.num_decode
        ends = self.ends[:num_rows]
        first = np.zeros_like(ends) if window is None else np.maximum(0, ends - window) // self.page_tokens
        num_pages = (ends - 1) // self.page_tokens - first + 1
        row = np.repeat(np.arange(num_rows), num_pages)
        idx_in_row = np.arange(len(row)) - np.repeat(np.cumsum(num_pages) - num_pages, num_pages)
        page_idx = first[row] + idx_in_row
        page = self.pages[row, page_idx]
        positions = page_idx[:, None] * self.page_tokens + np.arange(self.page_tokens)
        hidden = positions >= ends[row, None]
        if window is not None:
            hidden |= positions < ends[row, None] - window
        shared = np.bincount(page)[page] > 1
        bases = np.zeros((num_rows, int(num_pages.max(initial=1))), np.int64)
        is_shared = np.zeros_like(bases, bool)
        is_shared[row, idx_in_row] = shared
        is_real = np.arange(bases.shape[1]) < num_pages[:, None]
        private = ~shared
        first_page, pages, rows, private_hidden, items = self._private(page[private], row[private], hidden[private])
        bases[row[private], idx_in_row[private]] = items
        shared_pages, shared_rows, shared_hidden, places = self._shared(page[shared], row[shared], hidden[shared])
        bases[row[shared], idx_in_row[shared]] = places
        return DecodeItems(
            first_page, pages, rows, private_hidden, shared_pages, shared_rows, shared_hidden, bases, is_shared, is_real
        )

    def _private(self, page: Ints, row: Ints, hidden: Bools) -> tuple[int, Ints | None, Ints, Bools, Ints]:
        """Lay out pages that one row reads: a whole range of the cache if most of it is wanted, else a list."""
        if not len(page):
            return 0, page, row, hidden, page
        first, last = int(page.min()), int(page.max())
        if len(page) < MIN_USED_SHARE * (last - first + 1):
            return 0, page, row, hidden, np.arange(len(page))
        rows = np.zeros(last - first + 1, np.int64)
        rows[page - first] = row
        all_hidden = np.zeros((len(rows), self.page_tokens), bool)
        all_hidden[page - first] = hidden
        return first, None, rows, all_hidden, page - first

    def _shared(self, page: Ints, row: Ints, hidden: Bools) -> tuple[Ints, Ints, Bools, Ints]:
        """Lay out pages that several rows read; returns also where each pair lies: item times R plus place."""
        order = np.argsort(page, kind="stable")
        distinct, begin, count = np.unique(page[order], return_index=True, return_counts=True)
        rank = np.arange(len(page)) - np.repeat(begin, count)
        num_items = -(-count // ROWS_PER_SHARED_ITEM)
        item = np.repeat(np.cumsum(num_items) - num_items, count) + rank // ROWS_PER_SHARED_ITEM
        place = rank % ROWS_PER_SHARED_ITEM
        rows = np.zeros((int(num_items.sum()), ROWS_PER_SHARED_ITEM), np.int64)
        rows[item, place] = row[order]
        all_hidden = np.zeros((*rows.shape, self.page_tokens), bool)
        all_hidden[item, place] = hidden[order]
        places = np.empty_like(page)
        places[order] = item * ROWS_PER_SHARED_ITEM + place
        return np.repeat(distinct, num_items), rows, all_hidden, places

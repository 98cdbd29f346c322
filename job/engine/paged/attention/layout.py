"""Where the tokens of a step are in the cache: index arrays on the host, made once per step and used by every layer.

Letters: T tokens, N sequences, P tokens per page.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from job.engine.paged.schedule.step import Step

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_PADDING = 1.5
"""Sequences are computed together as long as padding them multiplies the work by at most this factor."""


class BlockTables:
    """[slots, pages per sequence] page numbers; they stay the same on all ranks because steps carry the changes."""

    def __init__(self, num_slots: int) -> None:
        """Start with ``num_slots`` empty rows."""
        self._pages = np.zeros((num_slots, 16), np.int64)

    def add(self, new_pages: npt.NDArray[np.int32]) -> None:
        """Enter pages [., 3]: slot, index of the page in its sequence, page."""
        if not len(new_pages):
            return
        while new_pages[:, 1].max() >= self._pages.shape[1]:
            self._pages = np.concatenate([self._pages, np.zeros_like(self._pages)], axis=1)
        self._pages[new_pages[:, 0], new_pages[:, 1]] = new_pages[:, 2]

    @property
    def all(self) -> Ints:
        """[slots, .]: of all sequences."""
        return self._pages

    def of(self, slots: npt.NDArray[np.int32]) -> Ints:
        """Return [N, .]: the pages of sequences; entries after a sequence's own pages are meaningless."""
        return self._pages[slots]

    def pages_of(self, slots: npt.NDArray[np.int32], indices: npt.NDArray[np.int32]) -> Ints:
        """Return [T]: the page of each slot with this index in its sequence."""
        return self._pages[slots, indices]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Sequences of similar length, padded: n sequences with at most q tokens in this step and at most k pages."""

    tokens: Ints
    """[n, q]: index of each token in the step; padding repeats token 0."""
    is_real: Bools
    """[n, q]."""
    pages: Ints
    """[n, k]; padding repeats the sequence's own first page: a NaN in another sequence's page would pass the mask."""
    positions: Ints
    """[n, q]: the position of each token in its sequence; padding repeats the last one."""
    num_keys: int
    """The number of tokens in the longest sequence."""


class Layout:
    """Index arrays of one step."""

    def __init__(self, step: Step, tables: BlockTables, page_tokens: int) -> None:
        """Compute them for a step whose pages are already in the tables."""
        self.step, self.tables = step, tables
        slots, starts, counts, num_wanted = step.sequences.astype(np.int64).T
        self.page_tokens, self.pages = page_tokens, tables.of(slots)
        self.starts, self.counts, self.ends = starts, counts, starts + counts
        self.token_ids = step.token_ids.astype(np.int64)
        self.copies = step.copies.astype(np.int64)
        self.token_sequences: Ints = np.repeat(np.arange(len(slots)), counts)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.positions: Ints = np.arange(len(self.token_sequences)) - (self.offsets[:-1] - starts)[self.token_sequences]
        self.token_pages: Ints = self.pages[self.token_sequences, self.positions // page_tokens]
        self.token_places: Ints = self.positions % page_tokens
        first_wanted = self.offsets[1:] - num_wanted
        before = np.cumsum(num_wanted) - num_wanted
        self.wanted_tokens: Ints = np.arange(num_wanted.sum()) + np.repeat(first_wanted - before, num_wanted)

    def tokens(self, device: torch.device, chosen: torch.Tensor | None) -> torch.Tensor:
        """Return [T] int64 on the device, without waiting for the tokens that only the device knows.

        Args:
            chosen: [.] int64, on the device: the latest choice; used if a token is one of these, see ``Step``.
        """
        token_ids = torch.from_numpy(self.token_ids).to(device)
        if not len(self.token_ids) or self.token_ids.min() >= 0:
            return token_ids
        assert chosen is not None
        return resolved(token_ids, chosen)

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """The sequences, grouped so that padding stays small."""
        order = np.lexsort((self.counts, self.ends, self.counts > 1)).tolist()
        groups: list[list[int]] = []
        for i in order:
            if groups and self._padding([*groups[-1], i]) <= MAX_PADDING:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [self._rectangle(np.array(group)) for group in groups]

    def _padding(self, group: list[int]) -> float:
        padded = len(group) * self.counts[group].max() * self.ends[group].max()
        return float(padded / (self.counts[group] * self.ends[group]).sum())

    def _rectangle(self, group: Ints) -> Rectangle:
        counts, num_keys = self.counts[group, None], int(self.ends[group].max())
        within = np.arange(counts.max())
        is_real = within < counts
        num_pages = -(-self.ends[group, None] // self.page_tokens)
        page_idx = np.arange(num_pages.max())
        return Rectangle(
            tokens=np.where(is_real, self.offsets[group, None] + within, 0),
            is_real=is_real,
            pages=np.where(page_idx < num_pages, self.pages[group, : num_pages.max()], self.pages[group, :1]),
            positions=np.minimum(self.starts[group, None] + within, self.ends[group, None] - 1),
            num_keys=num_keys,
        )


def resolved(token_ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return ids [T] of which none is negative: -1 - k stands for the k-th token of ``chosen`` [.]."""
    known = chosen[(-1 - token_ids).clamp(min=0)].to(token_ids.dtype)
    return torch.where(token_ids < 0, known, token_ids)

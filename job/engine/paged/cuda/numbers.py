"""The numbers of a step as a device reads them: int32 arrays that travel in one copy, padded to a few shapes.

A recorded step reads fixed addresses, so every array of it has a fixed length. Padding does no harm: a token of padding
is written to the spare page, a tile of padding has no queries, and a page of padding goes to the spare row of the
block tables.

Letters: T tokens, W wanted tokens, N tiles, P tokens per page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from job.engine.paged.attention.layout import BlockTables
from job.engine.paged.cuda.launches import SPLIT_TOKENS, tiles_of
from job.engine.paged.schedule.step import Step

Array = npt.NDArray[np.int32]
Numbers = TypeVar("Numbers")
Others = TypeVar("Others")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """How long the arrays of a step are. A step is recorded once for each shape."""

    num_tokens: int
    num_wanted: int
    num_single: int
    """Tiles of the sequences with a single token, which come first."""
    num_chunks: tuple[int, ...]
    """Tiles of the others, for each size of a tile."""
    num_gained: int
    num_copies: int
    max_splits: int
    """The most splits of a single token's keys."""

    def holds(self, other: "StepShape") -> bool:
        """Whether a step of the other shape can be padded to this one."""
        pairs = zip(self._numbers(), other._numbers(), strict=True)
        return all(own >= others for own, others in pairs)

    def _numbers(self) -> tuple[int, ...]:
        lengths = (self.num_tokens, self.num_wanted, self.num_single, self.num_gained, self.num_copies)
        return (*lengths, self.max_splits, *self.num_chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the arrays depend on besides the step: the form of the cache and of its kernels."""

    page_tokens: int
    spare_page: int
    table_width: int
    """Pages of a slot in the block tables on the device."""
    spare_slot: int
    tile_sizes: tuple[int, ...]
    """Of chunks, in ascending order: layers may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers(Generic[Numbers]):
    """All numbers of a step: arrays on the host, or tensors on the device."""

    shape: StepShape
    token_ids: Numbers
    """[T]; -1 - k stands for the k-th token that was chosen last."""
    positions: Numbers
    """[T]."""
    places: Numbers
    """[T]: where keys and values go: page * P + place in the page."""
    wanted: Numbers
    """[W]: indices of tokens."""
    gained: Numbers
    """[2, .]: positions in the block tables, seen as one line; the pages to enter there."""
    copies: Numbers
    """[3, .]: from page, to page, number of tokens."""
    single: Numbers
    """[N, 4]: the tiles of sequences with a single token."""
    chunks: tuple[Numbers, ...]
    """[N, 4] each: the tiles of other sequences, for each size of a tile."""

    @property
    def arrays(self) -> list[Numbers]:
        """All arrays, in the order in which they are sent."""
        fixed = [self.token_ids, self.positions, self.places, self.wanted, self.gained, self.copies, self.single]
        return [*fixed, *self.chunks]

    def like(self, arrays: Sequence[Others]) -> "StepNumbers[Others]":
        """Return other arrays in the places of these."""
        names = ("token_ids", "positions", "places", "wanted", "gained", "copies", "single")
        fixed = dict(zip(names, arrays, strict=False))
        return StepNumbers(shape=self.shape, **fixed, chunks=tuple(arrays[len(names) :]))


def numbers_of(step: Step, tables: BlockTables, form: Form) -> StepNumbers[Array]:
    """Compute them for a step whose pages are already in the host's tables."""
    slots, starts, counts, num_wanted = step.sequences.T
    num_tokens, num_single = len(step.token_ids), int((counts == 1).sum())
    ends = np.cumsum(counts, dtype=np.int32)
    offsets = ends - counts
    if num_single == len(counts):
        token_slots, positions = slots, np.ascontiguousarray(starts)
    else:
        token_slots = np.repeat(slots, counts)
        positions = np.arange(num_tokens, dtype=np.int32) + np.repeat(starts - offsets, counts)
    pages = tables.pages_of(token_slots, positions // form.page_tokens)
    lines = pages * form.page_tokens + positions % form.page_tokens
    sequences = (slots, starts, counts, offsets)
    chunks = tuple(_tiles(sequences, slice(num_single, None), size) for size in form.tile_sizes)
    wanted = _wanted(ends, num_wanted)
    new = step.new_pages
    gained = np.stack([new[:, 0] * form.table_width + new[:, 1], new[:, 2]]).astype(np.int32)
    most_keys = int(starts[:num_single].max(initial=0)) + 1
    return StepNumbers(
        shape=StepShape(
            num_tokens=num_tokens,
            num_wanted=len(wanted),
            num_single=num_single,
            num_chunks=tuple(map(len, chunks)),
            num_gained=len(new),
            num_copies=len(step.copies),
            max_splits=-(-most_keys // SPLIT_TOKENS),
        ),
        token_ids=step.token_ids,
        positions=positions,
        places=lines.astype(np.int32),
        wanted=wanted,
        gained=gained,
        copies=np.ascontiguousarray(step.copies.T),
        single=_tiles(sequences, slice(num_single), 1),
        chunks=chunks,
    )


def padding_of(shape: StepShape, form: Form) -> StepNumbers[Array]:
    """Return a step of this shape that has no tokens."""
    spare_place = form.spare_page * form.page_tokens
    spare_line = form.spare_slot * form.table_width
    return StepNumbers(
        shape=shape,
        token_ids=_full(0, shape.num_tokens),
        positions=_full(0, shape.num_tokens),
        places=_full(spare_place, shape.num_tokens),
        wanted=_full(0, shape.num_wanted),
        gained=np.stack([_full(spare_line, shape.num_gained), _full(form.spare_page, shape.num_gained)]),
        copies=np.stack([_full(number, shape.num_copies) for number in (form.spare_page, form.spare_page, 0)]),
        single=np.zeros((shape.num_single, 4), np.int32),
        chunks=tuple(np.zeros((num, 4), np.int32) for num in shape.num_chunks),
    )


def padded(numbers: StepNumbers[Array], padding: StepNumbers[Array]) -> StepNumbers[Array]:
    """Return a step in the shape of ``padding``, which fills what the step does not use."""
    axes = [0, 0, 0, 0, 1, 1, 0, *(0 for _ in numbers.chunks)]
    triples = zip(numbers.arrays, padding.arrays, axes, strict=True)
    return padding.like([_padded(own, filler, axis) for own, filler, axis in triples])


def _tiles(sequences: tuple[Array, Array, Array, Array], part: slice, size: int) -> Array:
    slots, starts, counts, offsets = (array[part] for array in sequences)
    return tiles_of(slots, starts, counts, offsets, size)


def _full(number: int, length: int) -> Array:
    return np.full(length, number, np.int32)


def _wanted(ends: Array, num_wanted: Array) -> Array:
    """Return the indices of the last ``num_wanted`` [sequences] tokens of each sequence."""
    if (num_wanted == 1).all():
        last: Array = ends - 1
        return last
    if not num_wanted.any():  # a model must return some logits
        return np.zeros(1, np.int32)
    before = np.cumsum(num_wanted) - num_wanted
    indices: Array = np.arange(num_wanted.sum(), dtype=np.int32)
    indices += np.repeat(ends - num_wanted - before, num_wanted).astype(np.int32)
    return indices


def _padded(own: Array, filler: Array, axis: int) -> Array:
    length: int = own.shape[axis]
    if length == filler.shape[axis]:
        return own
    rest: Array = filler[length:] if axis == 0 else filler[:, length:]
    joined: Array = np.concatenate([own, rest], axis=axis)
    return joined

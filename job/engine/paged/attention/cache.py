"""The KV cache: each layer has a pool of pages for keys and one for values, shaped by what the layer stores.

Letters: P tokens per page, H key-value heads of this rank, D head size, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import Layout

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer stores for a token, and how it attends."""

    num_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    group: int = 1
    """Queries per key-value head."""
    has_softcap: bool = False
    has_sinks: bool = False

    stored: torch.dtype | None = None
    """The dtype of its pages. None: ``dtype``, that of what it computes."""

    @classmethod
    def of(cls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs) -> "LayerShape":
        """Derive it from what the layer computed: queries [T, H * G, D], keys and values [T, H, D]."""
        group = query.shape[1] // key.shape[1]
        has_softcap, has_sinks = args.softcap is not None, args.sinks is not None
        return cls(key.shape[1], key.shape[2], value.shape[2], key.dtype, group, has_softcap, has_sinks)

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of its pages."""
        return self.stored or self.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes per token."""
        return self.num_heads * (self.key_size + self.value_size) * self.cache_dtype.itemsize


class KVCache:
    """Pages [pages, H, P, D]."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        num_pages: int,
        page_tokens: int,
        device: torch.device,
    ) -> None:
        """Allocate the pages, and a spare one that no sequence owns. A CPU's memory is touched only when it is used."""
        self.shapes, self.page_tokens, self._device = shapes, page_tokens, device
        self.num_pages = num_pages
        self.spare_page = num_pages
        self.keys = {idx: self._pool(shape, shape.key_size) for idx, shape in shapes.items()}
        self.values = {idx: self._pool(shape, shape.value_size) for idx, shape in shapes.items()}

    def _pool(self, shape: LayerShape, size: int) -> torch.Tensor:
        pages = (self.num_pages + 1, shape.num_heads, self.page_tokens, size)
        return torch.empty(pages, dtype=shape.cache_dtype, device=self._device)

    def clear(self, dirty: npt.NDArray[np.int32]) -> None:
        """Zero the pages [., 1] that a step takes: what a former holder left, perhaps NaN, would spoil the sums."""
        if len(dirty):
            pages = torch.from_numpy(dirty[:, 0].copy()).long().to(self._device)
            for pool in (*self.keys.values(), *self.values.values()):
                movable(pool).index_fill_(0, pages, 0)


def to_stored(new: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return keys or values in the dtype of their pages.

    8-bit floats end at 448, and what is larger becomes that. But infinity becomes NaN, so that a row that overflows is
    found to be broken.
    """
    if dtype != FP8:
        return new.to(dtype)
    return (new.clamp(-FP8_MAX, FP8_MAX) + (new - new)).to(dtype)


def movable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view that torch can index, fill and copy: on a CPU, it can do little of that with 8-bit floats."""
    return tensor.view(torch.uint8) if tensor.dtype == FP8 else tensor


class Placement:
    """Where a step's keys and values go."""

    def __init__(self, cache: KVCache, pages: torch.Tensor, places: torch.Tensor) -> None:
        """Store each token's in its page, ``pages`` [T], at its place in that page, ``places`` [T]."""
        self._cache, self._pages, self._places = cache, pages, places
        self._lines: dict[int, torch.Tensor] = {}
        self._copied: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def of(cls, cache: KVCache, layout: Layout, device: torch.device) -> "Placement":
        """Take a step's places and copies from its layout."""
        pages, places = (torch.from_numpy(array).to(device) for array in (layout.token_pages, layout.token_places))
        placement = cls(cache, pages, places)
        if len(layout.copies):
            donors, pages, counts = torch.from_numpy(layout.copies).unbind(1)
            places = torch.cat([torch.arange(int(count)) for count in counts])
            columns = (donors.repeat_interleave(counts), pages.repeat_interleave(counts), places)
            placement._copied = tuple(column.to(device) for column in columns)
        return placement

    def write(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the keys and values [T, H, D] of the step's tokens, then copy what the step copies."""
        for pool, new in ((self._cache.keys[layer_idx], key), (self._cache.values[layer_idx], value)):
            pool, new = movable(pool), movable(to_stored(new, pool.dtype))
            pool.view(-1, pool.shape[-1]).index_copy_(0, self._lines_of(new.shape[1]), new.reshape(-1, new.shape[2]))
            if self._copied is not None:
                donors, pages, places = self._copied
                by_token = pool.transpose(1, 2)
                by_token[pages, places] = by_token[donors, places]

    def _lines_of(self, num_heads: int) -> torch.Tensor:
        """Return [T * H]: where the step's tokens are in a pool viewed as lines of D numbers."""
        if num_heads not in self._lines:
            heads = torch.arange(num_heads, device=self._pages.device)
            pages, places = self._pages[:, None], self._places[:, None]
            lines = (pages * num_heads + heads) * self._cache.page_tokens + places
            self._lines[num_heads] = lines.reshape(-1)
        return self._lines[num_heads]

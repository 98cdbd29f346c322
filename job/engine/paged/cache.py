"""The KV cache: for each layer a pool of pages for keys and one for values, shaped as the layers turn out to be.

Letters: P tokens per page, H key-value heads of this rank, D head size, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from job.engine.paged.attention import AttentionArgs
from job.engine.paged.layout import Layout
from job.engine.paged.step import Step


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer stores for a token."""

    num_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    is_plain: bool = True
    """Whether it attends without soft-capping and sinks."""

    @classmethod
    def of(cls, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs) -> "LayerShape":
        """Read it off what the layer computed: keys and values [T, H, D]."""
        is_plain = args.softcap is None and args.sinks is None
        return cls(key.shape[1], key.shape[2], value.shape[2], key.dtype, is_plain)

    @property
    def num_bytes(self) -> int:
        """Bytes per token."""
        return self.num_heads * (self.key_size + self.value_size) * self.dtype.itemsize


class KVCache:
    """Pages [pages, H, P, D], or [pages, P, H, D] where a kernel wants tokens before heads."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        num_pages: int,
        page_tokens: int,
        tokens_first: bool,
        device: torch.device,
    ) -> None:
        """Allocate, with a page more that belongs to nobody. A CPU's memory is touched only when pages are used."""
        self.page_tokens, self._tokens_first, self._device = page_tokens, tokens_first, device
        self._num_pages = num_pages + 1
        self.spare_page = num_pages
        self.keys = {idx: self._pool(shape, shape.key_size) for idx, shape in shapes.items()}
        self.values = {idx: self._pool(shape, shape.value_size) for idx, shape in shapes.items()}

    def _pool(self, shape: LayerShape, size: int) -> torch.Tensor:
        inner = (self.page_tokens, shape.num_heads) if self._tokens_first else (shape.num_heads, self.page_tokens)
        return torch.empty(self._num_pages, *inner, size, dtype=shape.dtype, device=self._device)

    def place(self, pages: torch.Tensor, places: torch.Tensor) -> None:
        """Let the next keys and values go to these pages [T] and places in them [T]; copy nothing."""
        self._token_pages, self._token_places = pages, places
        self._lines: dict[int, torch.Tensor] = {}
        self._copied: tuple[torch.Tensor, ...] | None = None

    def begin(self, step: Step, layout: Layout) -> None:
        """Clear the step's fresh pages and note where its tokens and copies go."""
        pages, places = (torch.from_numpy(array) for array in (layout.token_pages, layout.token_places))
        self.place(pages.to(self._device), places.to(self._device))
        if len(step.fresh):
            fresh = torch.from_numpy(step.fresh[:, 0].copy()).long().to(self._device)
            for pool in (*self.keys.values(), *self.values.values()):
                pool.index_fill_(0, fresh, 0)
        if len(step.copies):
            donors, pages, counts = torch.from_numpy(step.copies.copy()).long().unbind(1)
            places = torch.cat([torch.arange(int(count)) for count in counts])
            columns = (donors.repeat_interleave(counts), pages.repeat_interleave(counts), places)
            self._copied = tuple(column.to(self._device) for column in columns)

    def write(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store [T, H, D] keys and values of the step's tokens, then copy what the step copies."""
        for pool, new in ((self.keys[layer_idx], key), (self.values[layer_idx], value)):
            pool.view(-1, pool.shape[-1]).index_copy_(0, self._lines_of(new.shape[1]), new.reshape(-1, new.shape[2]))
            if self._copied is not None:
                donors, pages, places = self._copied
                by_token = pool if self._tokens_first else pool.transpose(1, 2)
                by_token[pages, places] = by_token[donors, places]

    def _lines_of(self, num_heads: int) -> torch.Tensor:
        """Return [T * H]: where the step's tokens lie in a pool seen as lines of D numbers."""
        if num_heads not in self._lines:
            heads = torch.arange(num_heads, device=self._device)
            pages, places = self._token_pages[:, None], self._token_places[:, None]
            if self._tokens_first:
                lines = (pages * self.page_tokens + places) * num_heads + heads
            else:
                lines = (pages * num_heads + heads) * self.page_tokens + places
            self._lines[num_heads] = lines.reshape(-1)
        return self._lines[num_heads]

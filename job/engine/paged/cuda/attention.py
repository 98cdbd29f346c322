"""Attention over the paged cache with our own Triton kernels, for CUDA.

Nothing is tuned at run time: ranks and restarts must not differ. What a row gets does not depend on its batch, since
its keys are split at fixed positions. This has not run on a GPU yet.

Letters: T tokens, P tokens per page, H key-value heads, G queries per head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from job.engine.paged.attention.cache import KVCache, LayerShape, Placement
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import Layout
from job.engine.paged.cuda.graphs import RecordedTensors
from job.engine.transfers import Upload
from job.errors import first_line

if TYPE_CHECKING:
    from job.engine.paged.cuda.launches import Blocks

PAGE_TOKENS = 64
"""As many as the kernel reads at once: then the page is one number per iteration."""

MAX_HEAD_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """What the programs of a step do; see ``kernels.attend``. Sequences with a single token come first."""

    num_single: int
    """The number of sequences with one token."""
    max_keys: int
    """The most keys that any of these attends to."""
    single: torch.Tensor
    """[num_single, 4] int32: a tile for each of these."""
    chunks: Mapping[int, torch.Tensor]
    """For each size of a tile, [., 4] int32: the tiles of all other sequences. Empty if there are none."""


class TritonAttention:
    """Implements ``Attend`` for one step."""

    def __init__(
        self, cache: KVCache, tiles: Tiles, tables: torch.Tensor, places: torch.Tensor, copies: Placement | None = None
    ) -> None:
        """Attend in any step.

        Args:
            tables: [slots, width] int32: the pages of each slot that a tile names.
            places: [T] int32: where the step's keys and values go: page * P + place in the page.
            copies: stores instead in a step that also copies pages.
        """
        self._cache, self._tiles, self._tables, self._places, self._copies = cache, tiles, tables, places, copies

    @classmethod
    def for_step(cls, cache: KVCache, layout: Layout, device: torch.device) -> "TritonAttention":
        """Attend in a step that is launched."""
        from job.engine.paged.cuda.launches import tiles_of

        num_single, num_sequences = int((layout.counts == 1).sum()), len(layout.counts)
        width = -(-int(layout.ends.max()) // cache.page_tokens)

        def tiles(part: slice, size: int) -> Any:
            slots = np.arange(num_sequences)
            return tiles_of(slots[part], layout.starts[part], layout.counts[part], layout.offsets[:-1][part], size)

        sizes = sorted(chunk_sizes(cache)) if num_single < num_sequences else []
        lines = layout.token_pages * cache.page_tokens + layout.token_places
        tables, places, single, *chunks = Upload(device)(
            layout.pages[:, :width].astype(np.int32),
            lines.astype(np.int32),
            tiles(slice(None, num_single), 1),
            *(tiles(slice(num_single, None), size) for size in sizes),
        )
        parts = Tiles(
            num_single=num_single,
            max_keys=int(layout.ends[:num_single].max(initial=0)),
            single=single,
            chunks=dict(zip(sizes, chunks, strict=True)),
        )
        copies = Placement.of(cache, layout, device) if len(layout.copies) else None
        return cls(cache, parts, tables, places, copies)

    @classmethod
    def for_recorded_step(cls, cache: KVCache, tensors: RecordedTensors) -> "TritonAttention":
        """Attend in a step of one token per row whose tensors are refilled before each replay."""
        num_rows, width = tensors.tables.shape
        order = torch.arange(num_rows, dtype=torch.int32, device=tensors.tables.device)
        single = torch.stack([order, order, torch.ones_like(order), tensors.num_keys - 1], dim=1)
        tiles = Tiles(num_single=num_rows, max_keys=width * cache.page_tokens, single=single, chunks={})
        places = (tensors.pages * cache.page_tokens + tensors.places).to(torch.int32)
        return cls(cache, tiles, tensors.tables, places)

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """See ``Attend``."""
        from job.engine.paged.cuda.launches import SPLIT_TOKENS, Pool, blocks_for, store_launch

        pool = Pool(self._cache.keys[layer_idx], self._cache.values[layer_idx])
        if self._copies is None:
            store_launch(pool, _dense(key), _dense(value), self._places).run()
        else:
            self._copies.write(layer_idx, key, value)
        query = _dense(query)
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        sizes = (query.shape[1] // key.shape[1], key.shape[-1], value.shape[-1], query.dtype.itemsize)
        if self._tiles.num_single:
            max_keys = self._tiles.max_keys
            # A window may begin within a split, and end in the one after its last whole one.
            num_keys = max_keys if args.window is None else min(max_keys, args.window + SPLIT_TOKENS)
            blocks = blocks_for(*sizes, decode=True)
            self._attend(output, query, pool, self._tiles.single, args, blocks, -(-num_keys // SPLIT_TOKENS))
        if self._tiles.chunks:
            blocks = blocks_for(*sizes, decode=False)
            self._attend(output, query, pool, self._tiles.chunks[blocks.queries(sizes[0])], args, blocks, 1)
        return output

    def _attend(
        self,
        output: torch.Tensor,
        query: torch.Tensor,
        pool: Any,
        tiles: torch.Tensor,
        args: AttentionArgs,
        blocks: "Blocks",
        max_splits: int,
    ) -> None:
        from job.engine.paged.cuda.launches import attend_launches

        for launch in attend_launches(
            output, query, pool, tiles, self._tables, args, blocks=blocks, max_splits=max_splits
        ):
            launch.run()


def chunk_sizes(cache: KVCache) -> set[int]:
    """Return the sizes of tiles that the layers of a cache need in chunks of prompts."""
    from job.engine.paged.cuda.launches import blocks_for

    return {
        blocks_for(shape.group, shape.key_size, shape.value_size, shape.dtype.itemsize, decode=False).queries(
            shape.group
        )
        for shape in cache.shapes.values()
    }


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def problem(shapes: Mapping[int, LayerShape]) -> str | None:
    """Return why the kernel cannot serve a model's layers, or None."""
    for shape in shapes.values():
        if shape.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"the kernel does not support {shape.dtype}"
        if (size := max(shape.key_size, shape.value_size)) > MAX_HEAD_SIZE:
            return f"the kernel supports heads of a size up to {MAX_HEAD_SIZE}, not {size}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return first_line(error)
    return None

"""Attention over the paged cache with our own Triton kernels, for CUDA.

Nothing is tuned at run time: ranks and restarts must not differ. What a row gets does not depend on its batch, since
its keys are split at fixed positions. This has not run on a GPU yet.

Letters: T tokens, P tokens per page, H key-value heads, G queries per head.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from job.engine.paged.attention.cache import FP8, KVCache, LayerShape, movable
from job.engine.paged.attention.interface import AttentionArgs, DelayedRotation
from job.engine.paged.attention.layout import Layout
from job.engine.paged.cuda import compiling
from job.engine.transfers import Upload

if TYPE_CHECKING:
    from job.engine.paged.cuda.launches import Blocks
    from job.engine.paged.cuda.numbers import Form, StepNumbers

PAGE_TOKENS = 64
"""As many as the kernel reads at once: then the page is one number per iteration."""

MAX_HEAD_SIZE = 256

TRIAL_TOKENS = 1100
"""More than the keys of one split, ``launches.SPLIT_TOKENS``."""

FP8_CAPABILITY = (8, 9)
"""Older GPUs have no instruction that converts e4m3, and Triton does not compile for them."""


class TritonAttention:
    """Implements ``Attend`` for one step."""

    def __init__(self, cache: KVCache, numbers: "StepNumbers[torch.Tensor]", tables: torch.Tensor) -> None:
        """Attend in any step.

        Args:
            numbers: tensors on the device.
            tables: [slots + 1, width] int32: the pages of each slot, those of this step included.
        """
        self._cache, self._numbers, self._tables = cache, numbers, tables
        self._copies = Copies(numbers.copies, cache) if numbers.shape.num_copies else None
        self._rotation: DelayedRotation | None = None

    @classmethod
    def for_step(cls, cache: KVCache, layout: Layout, device: torch.device) -> "TritonAttention":
        """Attend in a step that does not come with tensors and tables on the device."""
        from job.engine.paged.cuda.numbers import numbers_of

        host_tables = layout.tables.all
        numbers = numbers_of(layout.step, layout.tables, form_of(cache, len(host_tables), host_tables.shape[1]))
        *arrays, tables = Upload(device)(*numbers.arrays, host_tables.astype(np.int32))
        return cls(cache, numbers.like(arrays), tables)

    def rotate_next(self, rotation: DelayedRotation) -> None:
        """See ``RotatingAttend``."""
        assert self._rotation is None, "a layer has rotated and not attended"
        self._rotation = rotation

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """See ``Attend``."""
        from job.engine.paged.cuda.launches import SPLIT_TOKENS, Pool, blocks_for, shared_memory

        pool = Pool(self._cache.keys[layer_idx], self._cache.values[layer_idx])
        query = self._store(pool, query, key, _dense(value))
        if self._copies is not None:
            self._copies.apply(pool.keys, pool.values)
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        group, shape = query.shape[1] // key.shape[1], self._numbers.shape
        sizes = (group, key.shape[-1], value.shape[-1], query.dtype.itemsize)
        if shape.num_single:
            max_splits = shape.max_splits
            if args.window is not None:  # it may begin within a split, and end in the one after its last whole one
                max_splits = min(max_splits, -(-args.window // SPLIT_TOKENS) + 1)
            blocks = blocks_for(*sizes, decode=True)
            self._attend(output, query, pool, self._numbers.single, args, blocks, max_splits)
        if any(shape.num_chunks):
            blocks = blocks_for(*sizes, decode=False, shared_bytes=shared_memory(query.device))
            chunks = dict(zip(tile_sizes(self._cache), self._numbers.chunks, strict=True))
            self._attend(output, query, pool, chunks[blocks.queries(group)], args, blocks, 1)
        return output

    def _store(self, pool: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store keys and values, and return the queries; both rotated, if that has been left to do here."""
        from job.engine.paged.cuda.launches import store_launch

        rotation, self._rotation = self._rotation, None
        if rotation is None:
            store_launch(pool, _dense(key), value, self._numbers.places).run()
            return _dense(query)
        from job.engine.paged.cuda.fused_launches import rotate_and_store

        assert rotation.is_of(query, key), "a layer has computed something from queries or keys before their rotation"
        return rotate_and_store(pool, rotation, value, self._numbers.places)

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


class Copies:
    """The first tokens of some pages, which become those of other pages once the step's own are stored."""

    def __init__(self, copies: torch.Tensor, cache: KVCache) -> None:
        """Take [3, .] int32: from page, to page, number of tokens. Padding copies none."""
        self._copies, self._cache = copies.long(), cache
        self._lines: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def apply(self, *pools: torch.Tensor) -> None:
        """Copy in pools [pages, H, P, size]."""
        for pool in pools:
            sources, targets = self._lines_of(pool.shape[1])
            lines = movable(pool).view(-1, pool.shape[-1])
            lines.index_copy_(0, targets, lines.index_select(0, sources))

    def _lines_of(self, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [. * H * P] twice: lines of a pool. What is not copied is a line of the spare page, and stays."""
        if num_heads not in self._lines:
            sources, targets, counts = self._copies[:, :, None, None]
            heads = torch.arange(num_heads, device=counts.device)[:, None]
            at = torch.arange(self._cache.page_tokens, device=counts.device)
            is_copied = at < counts
            sources, targets = (
                (torch.where(is_copied, pages, self._cache.spare_page) * num_heads + heads) * len(at) + at
                for pages in (sources, targets)
            )
            self._lines[num_heads] = (sources.flatten(), targets.flatten())
        return self._lines[num_heads]


def form_of(cache: KVCache, num_slots: int, table_width: int) -> "Form":
    """Return what the numbers of steps depend on."""
    from job.engine.paged.cuda.numbers import Form

    return Form(
        page_tokens=cache.page_tokens,
        spare_page=cache.spare_page,
        table_width=table_width,
        spare_slot=num_slots,
        tile_sizes=tile_sizes(cache),
    )


def tile_sizes(cache: KVCache) -> tuple[int, ...]:
    """Return the sizes of tiles that the layers of a cache need in chunks of prompts, in ascending order."""
    from job.engine.paged.cuda.launches import blocks_for

    sizes = {
        blocks_for(shape.group, shape.key_size, shape.value_size, shape.dtype.itemsize, decode=False).queries(
            shape.group
        )
        for shape in cache.shapes.values()
    }
    return tuple(sorted(sizes))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def problem(shapes: Mapping[int, LayerShape], device: torch.device) -> str | None:
    """Return why the kernel cannot serve a model's layers on a device, or None."""
    for shape in shapes.values():
        if shape.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"the kernel does not support {shape.dtype}"
        if (
            shape.cache_dtype == FP8
            and device.type == "cuda"
            and torch.cuda.get_device_capability(device) < FP8_CAPABILITY
        ):
            return "the kernel reads a KV cache in fp8 only on GPUs of compute capability 8.9 or more"
        if (size := max(shape.key_size, shape.value_size)) > MAX_HEAD_SIZE:
            return f"the kernel supports heads of a size up to {MAX_HEAD_SIZE}, not {size}"
    return compiling.problem(device)

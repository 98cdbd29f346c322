"""Attention over the paged cache with torch's ``varlen_attn`` (flash attention over ragged batches), for CUDA.

Splitting keys has given wrong results (pytorch#194167); hence ``num_splits=1``, which also makes a row's attention
independent of its batch. This has not run on a GPU yet.

Letters: T tokens, N sequences, P tokens per page, H key-value heads, G queries per head, D head size.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from job.engine.paged.attention.cache import KVCache, LayerShape, Placement
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import Layout
from job.engine.paged.cuda.graphs import RecordedTensors
from job.errors import first_line

PAGE_TOKENS = 256
"""FlashAttention 2 requires pages of a multiple of 256 tokens."""

MAX_HEAD_SIZE = 256


class VarlenAttention:
    """Implements ``Attend`` for one step. The cache has tokens before heads."""

    def __init__(
        self,
        cache: KVCache,
        placement: Placement,
        tables: torch.Tensor,
        starts: torch.Tensor,
        num_keys: torch.Tensor,
        *,
        max_queries: int,
        max_keys: int,
    ) -> None:
        """Attend in a step whose new pages have been cleared.

        Args:
            tables: [N, pages of the longest sequence] int32.
            starts: [N + 1] int32: where each sequence's tokens begin in the step, and the end.
            num_keys: [N] int32: tokens of each sequence, including those of the step.
        """
        self._cache, self._placement = cache, placement
        self._tables, self._starts, self._num_keys = tables, starts, num_keys
        self._max_queries, self._max_keys = max_queries, max_keys

    @classmethod
    def for_step(cls, cache: KVCache, layout: Layout, device: torch.device) -> "VarlenAttention":
        """Attend in any step."""
        num_pages = -(-int(layout.ends.max()) // cache.page_tokens)
        arrays = (layout.pages[:, :num_pages], layout.offsets, layout.ends)
        tables, starts, num_keys = (torch.from_numpy(array).to(device, torch.int32) for array in arrays)
        max_queries, max_keys = int(layout.counts.max()), int(layout.ends.max())
        placement = Placement.of(cache, layout, device)
        return cls(cache, placement, tables, starts, num_keys, max_queries=max_queries, max_keys=max_keys)

    @classmethod
    def for_recorded_step(cls, cache: KVCache, tensors: RecordedTensors) -> "VarlenAttention":
        """Attend in a step of one token per row whose tensors are refilled before each replay."""
        placement = Placement(cache, tensors.pages, tensors.places)
        max_keys = tensors.tables.shape[1] * cache.page_tokens
        return cls(cache, placement, tensors.tables, tensors.starts, tensors.num_keys, max_queries=1, max_keys=max_keys)

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """See ``Attend``."""
        from torch.nn.attention.varlen import varlen_attn

        self._placement.write(layer_idx, key, value)
        output: Any = varlen_attn(
            query.contiguous(),
            self._cache.keys[layer_idx],
            self._cache.values[layer_idx],
            self._starts,
            None,
            self._max_queries,
            self._max_keys,
            scale=args.scale,
            window_size=(-1 if args.window is None else args.window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
            seqused_k=self._num_keys,
            block_table=self._tables,
            num_splits=1,
        )
        attended: torch.Tensor = output
        return attended


def problem(shapes: Mapping[int, LayerShape]) -> str | None:
    """Return why the kernel cannot serve a model's layers, or None."""
    for shape in shapes.values():
        if not shape.is_plain:
            return "the kernel supports neither soft-capping nor sinks"
        if shape.dtype not in (torch.float16, torch.bfloat16):
            return f"the kernel does not support {shape.dtype}"
        if shape.key_size != shape.value_size or shape.key_size > MAX_HEAD_SIZE or shape.key_size % 8:
            return f"the kernel does not support keys of size {shape.key_size} with values of size {shape.value_size}"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return first_line(error)
    lacking = {"block_table", "seqused_k", "num_splits"} - set(inspect.signature(varlen_attn).parameters)
    return f"varlen_attn of torch {torch.__version__} has no argument {min(lacking)}" if lacking else None

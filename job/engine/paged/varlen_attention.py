"""Attention over the paged cache with torch's ``varlen_attn`` (flash attention over ragged batches), for CUDA.

Trusted only after a comparison with plain operations on the device that it will run on: kernels for paged caches have
given wrong results before (pytorch#194167: split keys; hence ``num_splits=1``, which also makes a row's attention
independent of its batch). Not run on a GPU yet.

Letters: T tokens, N sequences, P tokens per page, H key-value heads, G queries per head, D head size.
"""

import inspect
from typing import Any

import torch

from job.engine.paged.attention import AttentionArgs
from job.engine.paged.cache import KVCache, LayerShape, Placement
from job.engine.paged.layout import Layout

PAGE_TOKENS = 256
"""What FlashAttention 2 asks of paged caches: multiples of 256."""

MAX_HEAD_SIZE = 256
TOLERANCE = 0.02
"""Largest allowed difference from plain operations in half precision, values being of size 1."""


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
        """Attend in a step whose fresh pages are clear.

        Args:
            tables: [N, pages of the longest sequence] int32.
            starts: [N + 1] int32: where each sequence's tokens begin in the step, and the end.
            num_keys: [N] int32: tokens of each sequence, those of the step included.
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


def kernel_problem(shapes: dict[int, LayerShape], device: torch.device) -> str | None:
    """Return why the kernel cannot serve a model on a device, or None."""
    if device.type != "cuda":
        return "not on CUDA"
    for shape in shapes.values():
        if not shape.is_plain:
            return "soft-capping and sinks are not known to the kernel"
        if shape.dtype not in (torch.float16, torch.bfloat16):
            return f"the kernel does not compute in {shape.dtype}"
        if shape.key_size != shape.value_size or shape.key_size > MAX_HEAD_SIZE or shape.key_size % 8:
            return f"the kernel does not know heads of {shape.key_size} and {shape.value_size}"
    try:
        from torch.nn.attention.varlen import varlen_attn

        lacking = {"block_table", "seqused_k", "num_splits"} - set(inspect.signature(varlen_attn).parameters)
        if lacking:
            return f"varlen_attn of torch {torch.__version__} does not take {min(lacking)}"
        error = _error_on(device, next(iter(shapes.values())))
    except Exception as failure:  # no such module, no such kernel on this device, ...: there is another way
        return f"{type(failure).__name__}: {failure}"
    return None if error <= TOLERANCE else f"its results are off by {error:.3f}"


def _error_on(device: torch.device, shape: LayerShape) -> float:
    """Return the largest difference from plain operations: a chunk after cached tokens, and a single token."""
    from job.engine.paged.layout import BlockTables
    from job.engine.paged.step import Step, rows

    generator = torch.Generator(device).manual_seed(0)

    def numbers(num_tokens: int, num_heads: int) -> torch.Tensor:
        return torch.randn(num_tokens, num_heads, shape.key_size, generator=generator, device=device, dtype=shape.dtype)

    cache = KVCache({0: shape}, num_pages=5, page_tokens=PAGE_TOKENS, tokens_first=True, device=device)
    tables, args = BlockTables(2), AttentionArgs(shape.key_size**-0.5)
    spans = (((0, 0, 300), (1, 0, 40)), ((0, 300, 1), (1, 40, 270)))  # (slot, tokens before, tokens now)
    pages = (((0, 0, 3), (0, 1, 0), (1, 0, 4)), ((1, 1, 2),))
    keys: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    values: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    error = 0.0
    for span, gained in zip(spans, pages, strict=True):
        step = Step(
            token_ids=torch.zeros(sum(count for _, _, count in span), dtype=torch.int32).numpy(),
            sequences=rows([(*part, 1) for part in span], 4),
            gained=rows(gained, 3),
            fresh=rows([page[2:] for page in gained], 1),
        )
        tables.gain(step.gained)
        layout = Layout(step, tables, PAGE_TOKENS)
        cache.clear(step.fresh)
        query = numbers(len(step.token_ids), 2 * shape.num_heads)
        key, value = (numbers(len(step.token_ids), shape.num_heads) for _ in range(2))
        found = VarlenAttention.for_step(cache, layout, device)(0, query, key, value, args)
        begin = 0
        for slot, before, count in span:
            part = slice(begin, begin + count)
            keys[slot].append(key[part])
            values[slot].append(value[part])
            expected = _plain(query[part], torch.cat(keys[slot]), torch.cat(values[slot]), before)
            error = max(error, float((found[part].float() - expected).abs().max()))
            begin += count
    return error


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_before: int) -> torch.Tensor:
    """Attend in float32: [q, 2 H, D] to [k, H, D], the first query being at position ``num_before``."""
    key, value = (tensor.float().repeat_interleave(2, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * query.shape[-1] ** -0.5
    positions = torch.arange(len(key), device=query.device)
    scores.masked_fill_(positions > num_before + torch.arange(len(query), device=query.device)[:, None], -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value)

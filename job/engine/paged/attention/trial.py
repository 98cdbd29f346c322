"""A trial of a kernel on its device, before any row: some kernels for paged caches have given wrong results.

Letters: H key-value heads, G queries per key-value head, D head size.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from job.engine.paged.attention.cache import LayerShape, movable, to_stored
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.schedule.step import Step, rows

if TYPE_CHECKING:
    from job.engine.paged.attention.backends import Backend

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.02}
"""Largest allowed difference between a kernel and plain operations in float32, for values of size 1."""

WINDOW, SOFTCAP = 50, 5.0
"""Small enough to matter in a trial."""

Span = tuple[int, int, int]
"""A sequence in a step: slot, tokens before, tokens now. As in all steps, single tokens come first."""


def trial_problem(backend: "Backend", shapes: Mapping[int, LayerShape], device: torch.device) -> str | None:
    """Return why a kernel cannot be trusted on this device, or None."""
    for shape in set(shapes.values()):
        try:
            error = largest_error(backend, shape, device)
        except Exception as failure:  # no such kernel on this device, no compiler, ...: plain operations remain
            return backend.explain(failure)
        if not error <= TOLERANCES[shape.dtype]:
            return f"its results are off by {error:.3f}"
    return None


def largest_error(backend: "Backend", shape: LayerShape, device: torch.device) -> float:
    """Return the largest difference from plain operations in the trial's steps."""
    return max(_Trial(backend, shape, device, window).largest_error() for window in (None, WINDOW))


def _steps(num_long: int) -> tuple[tuple[Span, ...], ...]:
    """Return the trial's steps: kernels often treat these cases differently.

    Chunks alone; a single token beside a chunk, twice; then single tokens alone, one of a sequence of ``num_long`` or
    more; and this one beside a chunk.
    """
    return (
        ((0, 0, 300), (1, 0, 40)),
        ((0, 300, 1), (1, 40, 270)),
        ((1, 310, 1), (0, 301, num_long - 301)),
        ((0, num_long, 1), (1, 311, 1)),
        ((0, num_long + 1, 1), (1, 312, 5)),
    )


class _Trial:
    """Two sequences on pages that alternate, and all their keys and values once more as they are."""

    def __init__(self, backend: "Backend", shape: LayerShape, device: torch.device, window: int | None) -> None:
        self._backend, self._shape, self._device = backend, shape, device
        self._generator = torch.Generator(device).manual_seed(0)
        self._steps = _steps(backend.trial_tokens)
        pages_each = -(-(backend.trial_tokens + 2) // backend.page_tokens)
        new_pages = [(slot, idx, 2 * idx + 1 - slot) for slot in range(2) for idx in range(pages_each)]
        self._cache = backend.allocate({0: shape}, 2 * pages_each, device)
        hidden = torch.tensor(0.0 if backend.reads_hidden else torch.nan)
        for pool in (*self._cache.keys.values(), *self._cache.values.values()):
            movable(pool).fill_(movable(hidden.to(pool.dtype)))
        self._tables = BlockTables(2)
        self._tables.add(rows(new_pages, 3))
        self._keys: dict[int, list[torch.Tensor]] = {0: [], 1: []}
        self._values: dict[int, list[torch.Tensor]] = {0: [], 1: []}
        num_query_heads = shape.num_heads * shape.group
        sinks = self._numbers(num_query_heads) if shape.has_sinks else None
        softcap = SOFTCAP if shape.has_softcap else None
        self._args = AttentionArgs(shape.key_size**-0.5, window, softcap, sinks)

    def _numbers(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self._generator, device=self._device, dtype=self._shape.dtype)

    def largest_error(self) -> float:
        """Compute the steps one after the other."""
        return max(self._error_of(spans) for spans in self._steps)

    def _error_of(self, spans: tuple[Span, ...]) -> float:
        num_tokens, shape = sum(count for _, _, count in spans), self._shape
        step = Step(token_ids=np.zeros(num_tokens, np.int32), sequences=rows([(*span, 1) for span in spans], 4))
        layout = Layout(step, self._tables, self._backend.page_tokens)
        query = self._numbers(num_tokens, shape.num_heads * shape.group, shape.key_size)
        key, value = (self._numbers(num_tokens, shape.num_heads, size) for size in (shape.key_size, shape.value_size))
        found = self._backend.attend(self._cache, layout, self._device)(0, query, key, value, self._args)
        error = 0.0
        for (slot, before, count), begin in zip(spans, layout.offsets, strict=False):
            part = slice(begin, begin + count)
            for kept, new in ((self._keys, key), (self._values, value)):  # what pages round is no error of the kernel's
                kept[slot].append(to_stored(new[part], shape.cache_dtype).to(shape.dtype))
            expected = plain(
                query[part], torch.cat(self._keys[slot]), torch.cat(self._values[slot]), before, self._args
            )
            difference = float((found[part].float() - expected).abs().max())
            error = max(error, difference) if difference == difference else torch.inf  # max() may lose a NaN
        return error


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_before: int, args: AttentionArgs
) -> torch.Tensor:
    """Attend in float32: [q, H * G, D] to [k, H, .]; the first query is at position ``num_before``."""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.float().repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * args.scale
    if args.softcap is not None:
        scores = torch.tanh(scores / args.softcap) * args.softcap
    keys = torch.arange(len(key), device=query.device)
    own = num_before + torch.arange(len(query), device=query.device)[:, None]
    is_hidden = keys > own if args.window is None else (keys > own) | (keys <= own - args.window)
    scores.masked_fill_(is_hidden, -torch.inf)
    if args.sinks is not None:
        scores = torch.cat([scores, args.sinks.float()[:, None, None].expand(-1, len(query), 1)], dim=-1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1)[..., : len(key)], value)

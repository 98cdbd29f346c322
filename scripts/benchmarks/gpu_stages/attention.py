"""The attention kernels against the ceilings of the card, and against torch's attention on contiguous keys."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _model_shapes import SHAPES
from step_model import ATTENTION_SHARE

from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.cuda.attention import PAGE_TOKENS
from job.engine.paged.cuda.launches import SPLIT_TOKENS, Pool, attend_launches, blocks_for, tiles_of

from . import figures
from .device import DEVICE, HALF, chain_ms

NUM_SETS = 3
"""Sets of inputs that are used in turn, so that none of them is in the cache of the device."""


class Case:
    """Sequences on scattered pages."""

    def __init__(self, shape: str, before: np.ndarray, now: np.ndarray) -> None:
        """Make the sets.

        Args:
            before: [N]: tokens in the cache.
            now: [N]: tokens of the step.
        """
        model = SHAPES[shape]
        self.heads, self.group, self.size = model.kv_heads, model.heads // model.kv_heads, model.head_size
        self.before, self.now, self.ends = before, now, before + now
        num_pages = -(-self.ends // PAGE_TOKENS)
        self._sets = [self._inputs(num_pages, seed) for seed in range(NUM_SETS)]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values that a decode step reads."""
        return int(self.ends.sum()) * self.heads * self.size * 2 * HALF.itemsize

    @property
    def operations(self) -> float:
        """Operations of the scores and sums that are not hidden."""
        pairs = (self.now * self.before + self.now * (self.now + 1) / 2).sum()
        return 4 * float(pairs) * self.heads * self.group * self.size

    def _inputs(self, num_pages: np.ndarray, seed: int) -> tuple[Pool, torch.Tensor, torch.Tensor, torch.Tensor]:
        tables = np.zeros((len(num_pages), int(num_pages.max())), np.int32)
        order = np.random.default_rng(seed).permutation(int(num_pages.sum()))
        tables[np.arange(tables.shape[1]) < num_pages[:, None]] = order
        pages = (len(order), self.heads, PAGE_TOKENS, self.size)
        query = _numbers(int(self.now.sum()), self.heads * self.group, self.size)
        pool = Pool(_numbers(*pages), _numbers(*pages))
        return pool, query, torch.empty_like(query), torch.from_numpy(tables).to(DEVICE)

    def ms(self, *, split_tokens: int = SPLIT_TOKENS) -> float:
        """Return the ms of one layer's attention."""
        is_decode = int(self.now.max()) == 1
        blocks = blocks_for(self.group, self.size, self.size, HALF.itemsize, decode=is_decode)
        offsets = np.cumsum(self.now) - self.now
        tiles = tiles_of(np.arange(len(self.now)), self.before, self.now, offsets, blocks.queries(self.group))
        on_device = torch.from_numpy(tiles).to(DEVICE)
        num_splits = -(-int(self.ends.max()) // split_tokens) if is_decode else 1
        options = {"blocks": blocks, "max_splits": num_splits, "split_tokens": split_tokens}
        args = AttentionArgs(self.size**-0.5)
        launches = [
            attend_launches(output, query, pool, on_device, tables, args, **options)
            for pool, query, output, tables in self._sets
        ]
        return chain_ms([_run(each) for each in launches])


def _run(launches: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for launch in launches:
            launch.run()

    return run


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=HALF)


def _contiguous_ms(case: Case, rows: int, keys: int, queries: int) -> float:
    """Return the ms of torch's attention on rows of one length without pages."""
    heads, group, size = case.heads, case.group, case.size
    sets = [
        (_numbers(rows, heads * group, queries, size), *(_numbers(rows, heads, keys, size) for _ in range(2)))
        for _ in range(NUM_SETS)
    ]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=queries > 1, enable_gqa=group > 1)

    return chain_ms([lambda inputs=inputs: attend(*inputs) for inputs in sets])


def main(*, shapes: list[str], decode: list[list[int]], prompts: list[list[int]], splits: list[int]) -> None:
    """Measure single tokens and prompts.

    Args:
        decode: rows and keys of each.
        prompts: rows and tokens of each.
        splits: keys of a split to try on decode steps that are split.
    """
    card = figures.card()
    for shape in shapes:
        for rows, keys in decode:
            _decode(shape, rows, keys, splits, card.bandwidth)
        for rows, length in prompts:
            case = Case(shape, np.zeros(rows, int), np.full(rows, length))
            ms, expected = case.ms(), case.operations / (card.rate * ATTENTION_SHARE / 2) * 1e3
            figures.save(
                f"prompts, {shape}, {rows} x {length}",
                {"ms": expected},
                ms=ms,
                torch_ms=_contiguous_ms(case, rows, length, length),
                TFLOP_per_s=case.operations / ms / 1e9,
            )


def _decode(shape: str, rows: int, keys: int, splits: list[int], bandwidth: float) -> None:
    for is_ragged in (False, True):
        before = np.full(rows, keys - 1)
        if is_ragged:
            before = np.random.default_rng(0).integers(keys // 4, keys, rows)
        case = Case(shape, before, np.ones(rows, int))
        ms, floor = case.ms(), case.kv_bytes / bandwidth * 1e3
        figures.save(
            f"decode, {shape}, {rows} x {keys}{', ragged' if is_ragged else ''}",
            {"share_of_bandwidth": ATTENTION_SHARE},
            ms=ms,
            share_of_bandwidth=floor / ms,
            **({} if is_ragged else {"torch_ms": _contiguous_ms(case, rows, keys, 1)}),
            **{f"ms_splits_of_{split}": case.ms(split_tokens=split) for split in splits if keys > split},
        )

"""The host's side of the attention kernels: tiles, block shapes, and launches as values.

Letters: T tokens, N sequences, H key-value heads, G queries per key-value head, K and V head sizes, P tokens per page.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from job.engine.paged.attention.cache import FP8, FP8_MAX
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.cuda.kernels.attend import attend_kernel
from job.engine.paged.cuda.kernels.combine import combine_kernel
from job.engine.paged.cuda.kernels.store import store_kernel

SPLIT_TOKENS = 1024
"""Keys per program in decode. A constant, so that a row's sums do not depend on its batch; a multiple of every N."""

Numbers = npt.NDArray[np.integer[Any]]


def tiles_of(slots: Numbers, positions: Numbers, counts: Numbers, offsets: Numbers, size: int) -> npt.NDArray[np.int32]:
    """Cut sequences into tiles of at most ``size`` queries: [., 4], see ``kernels.attend``.

    The last tile of a sequence attends to the most keys. It comes first: programs start in the order of their tiles,
    and what starts last should be short.

    Args:
        slots: [N]: row of the block table.
        positions: [N]: tokens before the step.
        counts: [N]: tokens of the step.
        offsets: [N]: where each sequence's tokens begin in the step.
    """
    numbers = -(-counts // size)
    sequence = np.repeat(np.arange(len(counts)), numbers)
    within = np.arange(len(sequence)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    begins = (numbers[sequence] - 1 - within) * size
    tiles = np.empty((len(sequence), 4), np.int32)
    tiles[:, 0] = slots[sequence]
    tiles[:, 1] = offsets[sequence] + begins
    tiles[:, 2] = np.minimum(size, counts[sequence] - begins)
    tiles[:, 3] = positions[sequence] + begins
    return tiles


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the work of the attention kernel is cut."""

    rows: int
    """M: (query, head) pairs of a tile."""
    keys: int
    """N: keys of one iteration."""
    num_warps: int
    num_stages: int

    def queries(self, group: int) -> int:
        """Return the number of queries of a tile."""
        return self.rows // group


def padded(size: int, least: int = 16) -> int:
    """Return the power of two that holds ``size``; tensor cores want 16.

    >>> padded(80), padded(3), padded(3, 1)
    (128, 16, 4)
    """
    return max(least, 1 << (size - 1).bit_length())


LARGE_SHARED_MEMORY = 227 * 1024
"""Bytes that a block may have on an H100. It is 99 KiB on cards for workstations."""


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Return how many bytes of shared memory a block may have."""
    if device.type != "cuda":
        return LARGE_SHARED_MEMORY
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def blocks_for(
    group: int, key_size: int, value_size: int, itemsize: int, *, decode: bool, shared_bytes: int = LARGE_SHARED_MEMORY
) -> Blocks:
    """Return the block shapes: by registers and shared memory, from the compiled code; not measured on a device yet.

    Args:
        shared_bytes: what a block may have; with less, fewer keys are in flight.
    """
    width = padded(max(key_size, value_size))
    is_wide = width * itemsize > 256  # more than 128 numbers of 16 bits
    if decode:
        return Blocks(padded(group), 32 if is_wide else 64, 4, 2 if width * itemsize > 512 else 3)
    if itemsize == 4:
        return Blocks(max(32, padded(group)), 32, 4, 2)
    rows, keys = max(64 if is_wide else 128, padded(group)), 64
    query_bytes = rows * padded(key_size) * itemsize
    stage_bytes = keys * (padded(key_size) + padded(value_size)) * itemsize
    num_stages = max(1, min(2 if is_wide else 3, (shared_bytes - 1024 - query_bytes) // stage_bytes))
    return Blocks(rows, keys, 8, num_stages)


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch as a value: it can be run, compiled for another device, or looked at."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    def run(self) -> None:
        """Launch the kernel."""
        self.kernel[self.grid](**self.arguments, **self.options)


@dataclass(frozen=True, slots=True)
class Pool:
    """A layer's keys and values: [pages, H, P, size]."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def num_heads(self) -> int:
        """H."""
        return self.keys.shape[1]

    @property
    def page_tokens(self) -> int:
        """P."""
        return self.keys.shape[2]


def attend_launches(
    output: torch.Tensor,
    query: torch.Tensor,
    pool: Pool,
    tiles: torch.Tensor,
    tables: torch.Tensor,
    args: AttentionArgs,
    *,
    blocks: Blocks,
    max_splits: int = 1,
    split_tokens: int = SPLIT_TOKENS,
    empty: Callable[..., torch.Tensor] = torch.empty,
) -> list[Launch]:
    """Return the launches that attend with tiles.

    Args:
        output: [T, H * G, V], written.
        query: [T, H * G, K]; the last dimension is dense.
        tiles: [., 4] int32.
        tables: [slots, width] int32.
        max_splits: of any tile; above 1 all tiles must be of one query.
        empty: allocates what the splits leave for the second launch.
    """
    _, num_query_heads, key_size = query.shape
    value_size, group = pool.values.shape[-1], num_query_heads // pool.num_heads
    is_split = max_splits > 1
    partial, weight = output, output
    if is_split:
        lines = (len(tiles), num_query_heads, max_splits)
        partial = empty(*lines, value_size, dtype=torch.float32, device=query.device)
        weight = empty(*lines, dtype=torch.float32, device=query.device)
    shared = {
        "output": output,
        "partial": partial,
        "weight": weight,
        "tiles": tiles,
        "sinks": output if args.sinks is None else args.sinks,
        "split_tokens": split_tokens,
        "output_token_stride": output.stride(0),
        "output_head_stride": output.stride(1),
        "V": value_size,
        "V_PADDED": padded(value_size),
        "WINDOW": args.window or 0,
        "SINKS": args.sinks is not None,
    }
    attend = {
        **shared,
        "query": query,
        "keys": pool.keys,
        "values": pool.values,
        "tables": tables,
        "scale": args.scale,
        "cap": args.softcap or 1.0,
        "table_stride": tables.stride(0),
        "query_token_stride": query.stride(0),
        "query_head_stride": query.stride(1),
        "key_page_stride": pool.keys.stride(0),
        "key_head_stride": pool.keys.stride(1),
        "key_place_stride": pool.keys.stride(2),
        "value_page_stride": pool.values.stride(0),
        "value_head_stride": pool.values.stride(1),
        "value_place_stride": pool.values.stride(2),
        "G": group,
        "P": pool.page_tokens,
        "K": key_size,
        "K_PADDED": padded(key_size),
        "M": blocks.rows,
        "N": blocks.keys,
        "CAPPED": args.softcap is not None,
        "SPLIT": is_split,
        "PRECISION": "ieee",  # of float32; tf32 would be off by 1e-3
        "STAGES": blocks.num_stages,
    }
    options = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
    launches = [Launch(attend_kernel, (len(tiles), pool.num_heads, max_splits), attend, options)]
    if is_split:
        combine = {**shared, "num_splits": max_splits, "S": padded(max_splits, 1)}
        launches.append(Launch(combine_kernel, (len(tiles), num_query_heads), combine, {"num_warps": 2}))
    return launches


def store_launch(pool: Pool, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> Launch:
    """Return the launch that stores [T, H, K] and [T, H, V] at ``places`` [T] int32: page * P + place in the page."""
    arguments = {
        **stored(pool, key, value, places),
        "H": pool.num_heads,
        "H_PADDED": padded(pool.num_heads, 1),
        "K": key.shape[-1],
        "K_PADDED": padded(key.shape[-1]),
    }
    return Launch(store_kernel, (len(key),), arguments, {"num_warps": 4})


def stored(pool: Pool, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of every kernel that stores keys and values."""
    return {
        "keys": pool.keys,
        "values": pool.values,
        "key": key,
        "value": value,
        "places": places,
        "key_token_stride": key.stride(0),
        "key_head_stride": key.stride(1),
        "value_token_stride": value.stride(0),
        "value_head_stride": value.stride(1),
        "key_page_stride": pool.keys.stride(0),
        "key_pool_head_stride": pool.keys.stride(1),
        "key_place_stride": pool.keys.stride(2),
        "value_page_stride": pool.values.stride(0),
        "value_pool_head_stride": pool.values.stride(1),
        "value_place_stride": pool.values.stride(2),
        "P": pool.page_tokens,
        "V": value.shape[-1],
        "V_PADDED": padded(value.shape[-1]),
        "LARGEST": FP8_MAX if pool.keys.dtype == FP8 else 0.0,
    }

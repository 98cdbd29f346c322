"""Puts the results of split keys together: with few rows, one program per row would leave most of a GPU idle."""

import triton
import triton.language as tl

from job.engine.paged.cuda.kernels.attend import LOG2_E


@triton.jit(do_not_specialize=["split_tokens", "num_splits"])
def combine_kernel(
    output,  # [T, H * G, V]
    partial,  # [tiles, H * G, splits, V] float32
    weight,  # [tiles, H * G, splits] float32
    tiles,  # [., 4] int32, of one query each
    sinks,  # [H * G]
    split_tokens,
    num_splits,
    output_token_stride,
    output_head_stride,
    V: tl.constexpr,
    V_PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    S: tl.constexpr,
):
    """Put the splits of one query of one head together. Grid: (tiles, H * G); S: the number of splits, padded."""
    tile, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(tiles + tile * 4 + 1)
    count = tl.load(tiles + tile * 4 + 2)
    position = tl.load(tiles + tile * 4 + 3)
    if count == 0:
        return
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0)
    num_own = position // split_tokens - begin // split_tokens + 1

    line = (tile.to(tl.int64) * tl.num_programs(1) + head) * num_splits
    splits, dims = tl.arange(0, S), tl.arange(0, V_PADDED)
    logs = tl.load(weight + line + splits, mask=splits < num_own, other=float("-inf"))
    parts = tl.load(
        partial + (line + splits)[:, None] * V + dims[None, :],
        mask=(splits < num_own)[:, None] & (dims < V)[None, :],
        other=0.0,
    )
    top = tl.max(logs, axis=0)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        top = tl.maximum(top, sink)
    weights = tl.exp2(logs - top)
    total = tl.sum(weights, axis=0)
    if SINKS:
        total += tl.exp2(sink - top)
    acc = tl.sum(parts * weights[:, None], axis=0) / total
    lines = first.to(tl.int64) * output_token_stride + head * output_head_stride
    tl.store(output + lines + dims, acc.to(output.dtype.element_ty), mask=dims < V)

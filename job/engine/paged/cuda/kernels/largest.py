"""The largest logit of each row and its index.

Letters: B rows, V vocabulary.
"""

import triton
import triton.language as tl


@triton.jit
def largest_kernel(
    top,  # [B] float32
    best,  # [B] int64
    logits,  # [B, V]
    stride,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest logit of a row and its first index; the logit is NaN if one is. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    value, index = tl.full([BLOCK], float("-inf"), tl.float32), lane
    has_nan = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, V, BLOCK):
        at = begin + lane
        new = tl.load(logits + row * stride + at, mask=at < V, other=float("-inf")).to(tl.float32)
        has_nan |= (new != new).to(tl.int32)
        is_larger = new > value  # not for ties: the first stays
        value, index = tl.where(is_larger, new, value), tl.where(is_larger, at, index)
    largest = tl.max(value, axis=0)
    first = tl.min(tl.where(value == largest, index, V - 1), axis=0)
    tl.store(top + row, tl.where(tl.max(has_nan, axis=0) > 0, float("nan"), largest))
    tl.store(best + row, first.to(tl.int64))

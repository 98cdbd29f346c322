"""Stores a step's keys and values in their pages."""

import triton
import triton.language as tl


@triton.jit
def narrowed(new, LARGEST: tl.constexpr):
    """Return numbers that the pages can hold: at most ``LARGEST``, but NaN for infinity, which must not be hidden."""
    if LARGEST > 0:
        new = new.to(tl.float32)
        return tl.minimum(tl.maximum(new, -LARGEST), LARGEST) + (new - new)
    else:
        return new


@triton.jit
def store_kernel(
    keys,  # the pool of pages
    values,
    key,  # [T, H, K]
    value,  # [T, H, V]
    places,  # [T] int32: page * P + place in the page
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    key_page_stride,
    key_pool_head_stride,
    key_place_stride,
    value_page_stride,
    value_pool_head_stride,
    value_place_stride,
    P: tl.constexpr,
    H: tl.constexpr,
    H_PADDED: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    K_PADDED: tl.constexpr,
    V_PADDED: tl.constexpr,
    LARGEST: tl.constexpr,  # what the pages can hold, if that is less than what the model computes; else 0
):
    """Store one token's keys and values of all heads. Grid: (T,)."""
    token = tl.program_id(0)
    place = tl.load(places + token)
    page, place = (place // P).to(tl.int64), place % P
    token = token.to(tl.int64)
    heads = tl.arange(0, H_PADDED)[:, None]
    dims = tl.arange(0, K_PADDED)[None, :]
    is_real = (heads < H) & (dims < K)
    new = tl.load(key + token * key_token_stride + heads * key_head_stride + dims, mask=is_real)
    to = keys + page * key_page_stride + place * key_place_stride + heads * key_pool_head_stride + dims
    tl.store(to, narrowed(new, LARGEST).to(to.dtype.element_ty), mask=is_real)
    dims = tl.arange(0, V_PADDED)[None, :]
    is_real = (heads < H) & (dims < V)
    new = tl.load(value + token * value_token_stride + heads * value_head_stride + dims, mask=is_real)
    to = values + page * value_page_stride + place * value_place_stride + heads * value_pool_head_stride + dims
    tl.store(to, narrowed(new, LARGEST).to(to.dtype.element_ty), mask=is_real)

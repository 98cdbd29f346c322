"""Rotates queries and keys by their positions, and stores the keys and values in their pages: ``rotate`` and ``store``.

Computed in float32, and rounded once to what the model computes in, as ``rotate`` does.

Letters: T tokens, D head size, V size of values, R numbers that are rotated, P tokens per page.
"""

import triton
import triton.language as tl

from job.engine.paged.cuda.kernels.rotate import rotated
from job.engine.paged.cuda.kernels.store import narrowed


@triton.jit
def rotate_and_store_kernel(
    new_query,  # [T, QUERIES, D], dense
    keys,  # the pool of pages
    values,
    query,  # [T, QUERIES, D]
    key,  # [T, KEYS, D]
    value,  # [T, KEYS, V]
    cosines,  # [T, R]
    sines,  # [T, R]
    places,  # [T] int32: page * P + place in the page
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    cosine_stride,
    sine_stride,
    key_page_stride,
    key_pool_head_stride,
    key_place_stride,
    value_page_stride,
    value_pool_head_stride,
    value_place_stride,
    P: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_PADDED: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    V_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    LARGEST: tl.constexpr,  # what the pages can hold, if that is less than what the model computes; else 0
):
    """Rotate HEADS heads of one token; its last program stores its values. Grid: (T, blocks of heads + 1)."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token)
    page, place = (place // P).to(tl.int64), place % P
    if tl.program_id(1) == (QUERIES + KEYS + HEADS - 1) // HEADS:
        # Names of its own: what both branches define must be of one shape.
        value_heads = tl.arange(0, KEYS_PADDED)[:, None]
        value_at = tl.arange(0, V_PADDED)[None, :]
        is_value = (value_heads < KEYS) & (value_at < V)
        values_from = value + token * value_token_stride + value_heads * value_head_stride
        values_to = (
            values + page * value_page_stride + place * value_place_stride + value_heads * value_pool_head_stride
        )
        new = narrowed(tl.load(values_from + value_at, mask=is_value), LARGEST)
        tl.store(values_to + value_at, new.to(values.dtype.element_ty), mask=is_value)
    else:
        heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
        is_query, is_key = heads < QUERIES, (heads >= QUERIES) & (heads < QUERIES + KEYS)
        queries = query + token * query_token_stride + heads * query_head_stride
        keys_from = key + token * key_token_stride + (heads - QUERIES) * key_head_stride
        new_queries = new_query + (token * QUERIES + heads) * D
        keys_to = keys + page * key_page_stride + place * key_place_stride + (heads - QUERIES) * key_pool_head_stride

        at = tl.arange(0, HALF_PADDED)[None, :]
        is_dim = at < HALF
        cosine, sine = cosines + token * cosine_stride, sines + token * sine_stride
        left, right = rotated(queries, keys_from, cosine, sine, is_query, is_key, HALF, HALF_PADDED)
        tl.store(new_queries + at, left, mask=is_query & is_dim)
        tl.store(new_queries + HALF + at, right, mask=is_query & is_dim)
        left, right = narrowed(left, LARGEST), narrowed(right, LARGEST)
        tl.store(keys_to + at, left.to(keys.dtype.element_ty), mask=is_key & is_dim)
        tl.store(keys_to + HALF + at, right.to(keys.dtype.element_ty), mask=is_key & is_dim)
        if REST > 0:
            at = tl.arange(0, REST_PADDED)[None, :]
            is_dim = at < REST
            rest = tl.load(queries + 2 * HALF + at, mask=is_query & is_dim, other=0.0)
            tl.store(new_queries + 2 * HALF + at, rest, mask=is_query & is_dim)
            rest = tl.load(keys_from + 2 * HALF + at, mask=is_key & is_dim, other=0.0)
            rest = narrowed(rest, LARGEST).to(keys.dtype.element_ty)
            tl.store(keys_to + 2 * HALF + at, rest, mask=is_key & is_dim)

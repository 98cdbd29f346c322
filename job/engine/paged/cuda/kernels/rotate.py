"""Rotates queries and keys by their positions (rotary embedding).

Computed in float32, and rounded once.

Letters: T tokens, D head size, R numbers that are rotated.
"""

import triton
import triton.language as tl


@triton.jit
def rotated(queries, keys, cosine, sine, is_query, is_key, HALF: tl.constexpr, HALF_PADDED: tl.constexpr):
    """Return the first and the second halves [HEADS, HALF_PADDED] of rotated heads, each a query or a key."""
    at = tl.arange(0, HALF_PADDED)[None, :]
    is_dim = at < HALF
    left_cosine = tl.load(cosine + at, mask=is_dim, other=0.0).to(tl.float32)
    left_sine = tl.load(sine + at, mask=is_dim, other=0.0).to(tl.float32)
    right_cosine = tl.load(cosine + HALF + at, mask=is_dim, other=0.0).to(tl.float32)
    right_sine = tl.load(sine + HALF + at, mask=is_dim, other=0.0).to(tl.float32)
    # A head is a query or a key, so one of the two loads gives zeros.
    left = tl.load(queries + at, mask=is_query & is_dim, other=0.0)
    left += tl.load(keys + at, mask=is_key & is_dim, other=0.0)
    right = tl.load(queries + HALF + at, mask=is_query & is_dim, other=0.0)
    right += tl.load(keys + HALF + at, mask=is_key & is_dim, other=0.0)
    new_left = left.to(tl.float32) * left_cosine - right.to(tl.float32) * left_sine
    new_right = right.to(tl.float32) * right_cosine + left.to(tl.float32) * right_sine
    return new_left.to(left.dtype), new_right.to(left.dtype)


@triton.jit
def rotate_kernel(
    new_query,  # [T, QUERIES, D], dense
    new_key,  # [T, KEYS, D], dense
    query,  # [T, QUERIES, D]
    key,  # [T, KEYS, D]
    cosines,  # [T, R]
    sines,  # [T, R]
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    cosine_stride,
    sine_stride,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Rotate HEADS heads of one token by halves of R; the last REST numbers stay. Grid: (T, blocks of heads)."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    is_query, is_key = heads < QUERIES, (heads >= QUERIES) & (heads < QUERIES + KEYS)
    queries = query + token * query_token_stride + heads * query_head_stride
    keys = key + token * key_token_stride + (heads - QUERIES) * key_head_stride
    new_queries = new_query + (token * QUERIES + heads) * D
    new_keys = new_key + (token * KEYS + heads - QUERIES) * D

    at = tl.arange(0, HALF_PADDED)[None, :]
    is_dim = at < HALF
    cosine, sine = cosines + token * cosine_stride, sines + token * sine_stride
    left, right = rotated(queries, keys, cosine, sine, is_query, is_key, HALF, HALF_PADDED)
    tl.store(new_queries + at, left, mask=is_query & is_dim)
    tl.store(new_queries + HALF + at, right, mask=is_query & is_dim)
    tl.store(new_keys + at, left, mask=is_key & is_dim)
    tl.store(new_keys + HALF + at, right, mask=is_key & is_dim)
    if REST > 0:
        at = tl.arange(0, REST_PADDED)[None, :]
        is_dim = at < REST
        rest = tl.load(queries + 2 * HALF + at, mask=is_query & is_dim, other=0.0)
        rest += tl.load(keys + 2 * HALF + at, mask=is_key & is_dim, other=0.0)
        tl.store(new_queries + 2 * HALF + at, rest, mask=is_query & is_dim)
        tl.store(new_keys + 2 * HALF + at, rest, mask=is_key & is_dim)

"""Attention over the paged cache: one kernel for ragged batches, of prompts and of single tokens.

What a step is, to the kernels, is a list of tiles. A tile is some consecutive queries of one sequence, as four numbers:

    slot      row of the block table
    first     index of the tile's first query among the step's tokens
    count     number of queries; 0: nothing to do (padding of a recorded step)
    position  of the first query in its sequence; it sees the keys 0 to position

So a kernel needs no sequence lengths, no cumulative starts, and no search for the sequence that it works on: the host,
which knows all of that, says it in 16 bytes. Decode is one tile per row.

The softmax is computed online (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention"), with sums in float32.

Letters: T tokens of the step, H key-value heads, G queries per key-value head, K and V head sizes of keys and values,
P tokens per page, M rows of a tile, N keys of one iteration. Rows of a tile are (query, head of the group): row r is
query r // G, head r % G. So a key is read once for all heads that share it, and a tensor core's 16 rows are filled by
a group before they are filled by zeros.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""exp2 is one instruction; exp is two."""


@triton.jit
def _capped(scores, cap):
    """Return cap * tanh(scores / cap), by exp alone: right at both ends, where exp is 0 or infinite."""
    return cap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E / cap)) + 1.0))


@triton.jit
def _page_of(table, start, end, P: tl.constexpr, N: tl.constexpr):
    """Return the page of the N keys from ``start`` on: one number if it holds them all, else [N]."""
    if P % N == 0:
        return tl.load(table + start // P, mask=start < end, other=0).to(tl.int64)
    else:
        at = start + tl.arange(0, N)
        return tl.load(table + at // P, mask=at < end, other=0).to(tl.int64)


@triton.jit
def _attend_to(
    acc,  # [M, V] float32: sum of weighted values so far
    total,  # [M] float32: sum of weights so far
    top,  # [M] float32: largest score so far, times log2(e)
    query,  # [M, K]
    own,  # [M]: positions of the queries
    start,  # first key of this tile of keys
    end,  # no key from here on is looked at
    page,  # of the keys: a number, or [N] of them if they lie in several
    keys,  # of this head
    values,
    key_page_stride,
    value_page_stride,
    key_place_stride: tl.constexpr,
    value_place_stride: tl.constexpr,
    scale,
    cap,
    P: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    K_PADDED: tl.constexpr,
    V_PADDED: tl.constexpr,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to N keys: update the sums of the online softmax."""
    at = start + tl.arange(0, N)
    key_dims, value_dims = tl.arange(0, K_PADDED), tl.arange(0, V_PADDED)
    key_lines = page * key_page_stride + (at % P) * key_place_stride
    value_lines = page * value_page_stride + (at % P) * value_place_stride

    # What is after the end is never read: it may be NaN of a former holder, and 0 * NaN is NaN.
    if MASKED:
        key = tl.load(
            keys + key_lines[None, :] + key_dims[:, None],
            mask=(at < end)[None, :] & (key_dims < K)[:, None],
            other=0.0,
        )
        value = tl.load(
            values + value_lines[:, None] + value_dims[None, :],
            mask=(at < end)[:, None] & (value_dims < V)[None, :],
            other=0.0,
        )
    else:
        if K == K_PADDED:
            key = tl.load(keys + key_lines[None, :] + key_dims[:, None])
        else:
            key = tl.load(keys + key_lines[None, :] + key_dims[:, None], mask=(key_dims < K)[:, None], other=0.0)
        if V == V_PADDED:
            value = tl.load(values + value_lines[:, None] + value_dims[None, :])
        else:
            value = tl.load(
                values + value_lines[:, None] + value_dims[None, :], mask=(value_dims < V)[None, :], other=0.0
            )

    # Pages may have a narrower dtype than the model.
    key, value = key.to(query.dtype), value.to(query.dtype)
    scores = tl.dot(query, key, input_precision=PRECISION)
    if CAPPED:
        scores = _capped(scores * scale, cap) * LOG2_E
    else:
        scores = scores * (scale * LOG2_E)
    if MASKED:
        visible = at[None, :] <= own[:, None]
        if WINDOW > 0:
            visible = visible & (at[None, :] > own[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    if MASKED:  # a query that has seen no key yet: -inf - -inf would be NaN
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    else:
        base = new_top
    weights = tl.exp2(scores - base[:, None])
    shrunk = tl.exp2(top - base)
    total = total * shrunk + tl.sum(weights, axis=1)
    acc = acc * shrunk[:, None]
    acc = tl.dot(weights.to(value.dtype), value, acc, input_precision=PRECISION)
    return acc, total, new_top


# Numbers that change from step to step: specialized, a width of 16 pages or of 1 would compile the kernel anew mid-run.
@triton.jit(do_not_specialize=["split_tokens", "table_stride"])
def attend_kernel(
    output,  # [T, H * G, V]
    partial,  # [tiles, H * G, splits, V] float32
    weight,  # [tiles, H * G, splits] float32: log2 of each split's sum of weights
    query,  # [T, H * G, K]
    keys,  # the pool of pages
    values,
    tiles,  # [., 4] int32
    tables,  # [slots, width] int32
    sinks,  # [H * G]
    scale,
    cap,
    split_tokens,
    table_stride,
    query_token_stride,
    query_head_stride,
    output_token_stride,
    output_head_stride,
    key_page_stride,
    key_head_stride,
    value_page_stride,
    value_head_stride,
    key_place_stride: tl.constexpr,
    value_place_stride: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    K_PADDED: tl.constexpr,
    V_PADDED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attend with one tile's queries of one key-value head's group; over all their keys, or over one split of them.

    Grid: (tiles, H, splits). With ``SPLIT``, split s of a tile takes the keys of the s-th block of ``split_tokens``
    that the tile sees, counted from position 0 of the sequence: where a row's keys are cut depends on the row alone,
    so its result does not depend on its batch. ``split_tokens`` must be a multiple of N.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tiles + tile * 4)
    first = tl.load(tiles + tile * 4 + 1)
    count = tl.load(tiles + tile * 4 + 2)
    position = tl.load(tiles + tile * 4 + 3)
    if count == 0:
        return
    end = position + count  # of the keys that the last query sees
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0)
    if SPLIT:
        block = begin // split_tokens + tl.program_id(2)
        begin = tl.maximum(begin, block * split_tokens)
        end = tl.minimum(end, (block + 1) * split_tokens)
        if begin >= end:
            return
    begin = begin // N * N

    rows = tl.arange(0, M)
    key_dims, value_dims = tl.arange(0, K_PADDED), tl.arange(0, V_PADDED)
    own = position + rows // G
    heads = head * G + rows % G
    is_real = rows // G < count
    tokens = (first + rows // G).to(tl.int64)
    lines = tokens * query_token_stride + heads * query_head_stride
    queries = tl.load(
        query + lines[:, None] + key_dims[None, :], mask=is_real[:, None] & (key_dims < K)[None, :], other=0.0
    )

    table = tables + slot.to(tl.int64) * table_stride
    keys += head * key_head_stride
    values += head * value_head_stride
    acc = tl.zeros([M, V_PADDED], tl.float32)
    total = tl.zeros([M], tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)

    # Keys that all queries of the tile see, without masks; then the few that only some see.
    if WINDOW > 0:
        open_end = begin
    else:
        open_end = tl.maximum(tl.minimum(end, position + 1) // N * N, begin)
    # A tile's page is asked for one tile ahead. Asked for in its own turn, the loads of keys and values would wait for
    # another load, and Triton's pipeline would spend its stages on the page numbers: with 4 of them, it keeps no more
    # than one tile of keys in flight.
    page = _page_of(table, begin, end, P, N)
    for start in tl.range(begin, open_end, N, num_stages=STAGES):
        next_page = _page_of(table, start + N, end, P, N)
        acc, total, top = _attend_to(
            acc, total, top, queries, own, start, end, page, keys, values, key_page_stride, value_page_stride,
            key_place_stride, value_place_stride, scale, cap,
            P, K, V, K_PADDED, V_PADDED, N, WINDOW, CAPPED, False, PRECISION,
        )  # fmt: skip
        page = next_page
    for start in tl.range(open_end, end, N, num_stages=STAGES):
        next_page = _page_of(table, start + N, end, P, N)
        acc, total, top = _attend_to(
            acc, total, top, queries, own, start, end, page, keys, values, key_page_stride, value_page_stride,
            key_place_stride, value_place_stride, scale, cap,
            P, K, V, K_PADDED, V_PADDED, N, WINDOW, CAPPED, True, PRECISION,
        )  # fmt: skip
        page = next_page

    is_stored = is_real[:, None] & (value_dims < V)[None, :]
    if SPLIT:
        acc = acc / total[:, None]
        split = tl.program_id(2)
        lines = (tile.to(tl.int64) * (tl.num_programs(1) * G) + heads) * tl.num_programs(2) + split
        tl.store(partial + lines[:, None] * V + value_dims[None, :], acc, mask=is_stored)
        tl.store(weight + lines, top + tl.log2(total), mask=is_real)
    else:
        if SINKS:
            sink = tl.load(sinks + heads).to(tl.float32) * LOG2_E
            base = tl.maximum(top, sink)
            shrunk = tl.exp2(top - base)
            acc = acc * shrunk[:, None]
            total = total * shrunk + tl.exp2(sink - base)
        lines = tokens * output_token_stride + heads * output_head_stride
        acc = acc / total[:, None]
        tl.store(output + lines[:, None] + value_dims[None, :], acc.to(output.dtype.element_ty), mask=is_stored)

"""RMSNorm, with the addition of the residual before it.

Computed in float32, and rounded where transformers rounds.

Letters: C numbers of a row.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "num_inner"])
def norm_kernel(
    output,  # [rows, C], dense
    summed,  # [rows, C], dense: values + residual; written if there is a residual
    values,  # [outer, inner, C]
    residual,  # [rows, C], dense
    weight,  # [C]
    num_rows,
    num_inner,
    outer_stride,
    inner_stride,
    epsilon,
    OFFSET: tl.constexpr,
    WIDE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    C: tl.constexpr,
    C_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """RMSNorm (Zhang and Sennrich 2019) of ROWS rows, after the residual is added. Grid: (blocks of rows,).

    OFFSET is what the weight counts from: 1 in Gemma's. WIDE: the weight is applied before the result is rounded.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, C_PADDED)[None, :]
    is_real = (rows < num_rows)[:, None] & (at < C)
    begins = (rows // num_inner).to(tl.int64) * outer_stride + (rows % num_inner).to(tl.int64) * inner_stride
    dense = rows.to(tl.int64)[:, None] * C + at
    own = tl.load(values + begins[:, None] + at, mask=is_real, other=0.0)
    if RESIDUAL:
        own = own + tl.load(residual + dense, mask=is_real, other=0.0)
        tl.store(summed + dense, own, mask=is_real)
    wide = own.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / C + epsilon)
    factor = tl.load(weight + at, mask=at < C, other=0.0)
    normed = wide * scale[:, None]
    normed = normed * (factor.to(tl.float32) + OFFSET) if WIDE else normed.to(own.dtype) * factor
    tl.store(output + dense, normed.to(output.dtype.element_ty), mask=is_real)

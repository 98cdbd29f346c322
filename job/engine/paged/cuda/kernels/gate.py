"""The gate of an MLP: one half of a product, through an activation, times the other half.

Computed in float32, and rounded where transformers rounds.

Letters: T tokens, C numbers of a half.
"""

import triton
import triton.language as tl


@triton.jit
def gate_kernel(
    output,  # [T, C], dense
    both,  # [T, 2 C]: gate, then up
    stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """silu(gate) * up, or gelu by its approximation with tanh. Grid: (T, blocks of C)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_real = at < C
    gate = tl.load(both + token * stride + at, mask=is_real, other=0.0)
    up = tl.load(both + token * stride + C + at, mask=is_real, other=0.0)
    wide = gate.to(tl.float32)
    inner = wide
    if ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(y)) is the logistic function of 2 y
        inner = 1.5957691216057308 * (wide + 0.044715 * wide * wide * wide)
    wide = wide / (1.0 + tl.exp(-inner))
    tl.store(output + token * C + at, wide.to(gate.dtype) * up, mask=is_real)

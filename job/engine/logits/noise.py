"""Gumbel noise for draws: SplitMix64 (Steele et al., OOPSLA 2014) turns a row's 64 bits (``job.draws``) into a number
for every candidate, and a logarithm of its logarithm is the candidate's noise.

Letters: B rows, N candidates.
"""

import torch

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""SplitMix64's constants, as the negative numbers that they are in int64 arithmetic."""


def gumbel_noise(bits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise for tokens.

    Args:
        bits: [B] int64, as from ``row_bits``.
        token_ids: [N] or [B, N] int64.

    Returns:
        [B, N] float32: -log(-log(u)). A u that wins is close to 1; it keeps its precision since 1 - u is drawn.
    """
    mixed = bits[:, None] + token_ids * _GOLDEN
    mixed = (mixed ^ _shift_right(mixed, 30)) * _MIX_1
    mixed = (mixed ^ _shift_right(mixed, 27)) * _MIX_2
    mixed = mixed ^ _shift_right(mixed, 31)
    # Keep this below 1, to which float32 rounds one number in 30 million: it would make the noise minus infinity, and
    # then a token that is ruled out could win.
    one_minus_u = ((_shift_right(mixed, 11).float() + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-24)
    return -(-torch.log1p(-one_minus_u)).log()


def _shift_right(values: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Shift without copying the sign: torch has no unsigned 64-bit arithmetic."""
    return (values >> num_bits) & ((1 << (64 - num_bits)) - 1)

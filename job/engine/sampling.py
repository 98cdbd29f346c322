"""From logits to tokens. Runs on the leader alone; the followers are told the tokens.

A draw depends on (seed, row_idx, sample_idx, position) and on the logits, on nothing else (law 5). A counter-based
generator, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), whose key is the seed
and whose counter is the other three, gives a row 64 bits; SplitMix64 (Steele et al., OOPSLA 2014) makes of them a
number for every token of the vocabulary; the largest logit plus Gumbel noise wins (Maddison et al., NeurIPS 2014).

Why not one number and the cumulative distribution: rounding errors of 1e-7 move each of 50,000 borders of that, and a
draw near any of them flips with the shape of the batch. (Seen: 1 row of 6 in float32.) Here a draw flips only if the
two best tokens, noise included, are that close.

Letters: B rows, V vocabulary, N candidates, L ids seen so far (prompt and completion, padded).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from job.config import SamplingParams
from job.records import SampleKey

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""SplitMix64's constants, as the negative numbers that int64 arithmetic takes them for."""


def philox4x32(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Return four random 32-bit words for each counter.

    Args:
        counter: [4, B], words below 2**32.
        key: two words below 2**32.

    Returns:
        [4, B] uint64, words below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3])


def row_bits(seed: int, keys: Sequence[SampleKey], position: int) -> npt.NDArray[np.int64]:
    """Return 64 random bits for each row: its draw at this position of the completion.

    Args:
        position: 0 for the first generated token.

    Returns:
        [B] int64.
    """
    rows = np.array([row_idx for row_idx, _ in keys], np.uint64)
    samples = np.array([sample_idx for _, sample_idx in keys], np.uint64)
    counter = np.stack([rows & _LOW, rows >> _SHIFT, samples, np.full_like(rows, position)])
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits: npt.NDArray[np.int64] = ((words[0] << _SHIFT) | words[1]).view(np.int64)
    return bits


def gumbel_noise(bits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise for tokens.

    Args:
        bits: [B] int64, as from ``row_bits``.
        token_ids: [N] or [B, N] int64.

    Returns:
        [B, N] float32: -log(-log(u)). The number u near 1 that wins races keeps its precision, since 1 - u is drawn.
    """
    mixed = bits[:, None] + token_ids * _GOLDEN
    mixed = (mixed ^ _shift_right(mixed, 30)) * _MIX_1
    mixed = (mixed ^ _shift_right(mixed, 27)) * _MIX_2
    mixed = mixed ^ _shift_right(mixed, 31)
    one_minus_u = (_shift_right(mixed, 11).float() + 0.5) * 2.0**-53
    return -(-torch.log1p(-one_minus_u)).log()


def _shift_right(values: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Shift without copying the sign: torch has no unsigned 64-bit arithmetic."""
    return (values >> num_bits) & ((1 << (64 - num_bits)) - 1)


def penalize_repetition(
    logits: torch.Tensor, seen_ids: torch.Tensor, seen_mask: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Make tokens that occurred less likely (Keskar et al. 2019, "CTRL").

    Args:
        logits: [B, V] float32.
        seen_ids: [B, L] int64.
        seen_mask: [B, L] bool, False at padding: padding is no token that occurred.
    """
    seen = torch.zeros_like(logits, dtype=torch.bool)
    rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(seen_ids)
    seen[rows[seen_mask], seen_ids[seen_mask]] = True
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose_tokens(
    logits: torch.Tensor, params: SamplingParams, keys: Sequence[SampleKey], position: int
) -> torch.Tensor:
    """Choose a token for each row.

    Args:
        logits: [B, V] float32, finite.
        keys: (row_idx, sample_idx) of each row.
        position: 0 for the first generated token.

    Returns:
        [B] int64.
    """
    if params.temperature == 0:
        return logits.argmax(dim=-1)
    logits, ids = _candidates(logits / params.temperature, params)
    bits = torch.from_numpy(row_bits(params.seed, keys, position)).to(logits.device)
    token_ids = torch.arange(logits.shape[-1], device=logits.device) if ids is None else ids
    winner = (logits + gumbel_noise(bits, token_ids)).argmax(dim=-1, keepdim=True)
    return (winner if ids is None else ids.gather(-1, winner)).squeeze(-1)


def _candidates(logits: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits that top-k, top-p and min-p leave (-inf for the others) and their ids, most likely first.

    Without any of the three, all logits in the order of the vocabulary, and None: sorting is what costs.
    Order of the filters as in transformers: each works on what the one before has left, renormalized.
    """
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return logits, None
    if params.top_k:
        values, ids = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1)
    else:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
    probs = values.softmax(dim=-1)
    if params.top_p < 1:
        before = probs.cumsum(dim=-1) - probs
        values = values.masked_fill(before >= params.top_p, -torch.inf)
    if params.min_p:
        values = values.masked_fill(probs < params.min_p * probs[:, :1], -torch.inf)
    return values, ids

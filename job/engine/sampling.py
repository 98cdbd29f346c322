"""From logits to tokens. Runs on the leader alone; the followers are told the tokens.

A draw depends on (seed, row_idx, sample_idx, position) and on the logits, on nothing else (law 5): the uniform number
comes from a counter-based generator, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), whose key is the seed and whose counter is the other three.

Letters: B rows, V vocabulary, L ids seen so far (prompt and completion, padded).
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


def uniforms(seed: int, keys: Sequence[SampleKey], position: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each row: its draw at this position of the completion.

    Args:
        position: 0 for the first generated token.

    Returns:
        [B] float64, multiples of 2**-53.
    """
    rows = np.array([row_idx for row_idx, _ in keys], np.uint64)
    samples = np.array([sample_idx for _, sample_idx in keys], np.uint64)
    counter = np.stack([rows & _LOW, rows >> _SHIFT, samples, np.full_like(rows, position)])
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = (words[0] << np.uint64(21)) | (words[1] >> np.uint64(11))
    draws: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return draws


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
    probs, ids = _candidates(logits / params.temperature, params)
    cumulative = probs.double().cumsum(dim=-1)
    draws = torch.from_numpy(uniforms(params.seed, keys, position)).to(logits.device)[:, None]
    chosen = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    # A draw next to 1 may round up to the total: the last candidate with a probability is meant.
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1 if ids is not None else chosen.new_tensor(logits.shape[-1] - 1)
    chosen = torch.minimum(chosen, last)
    return (chosen if ids is None else ids.gather(-1, chosen)).squeeze(-1)


def _candidates(logits: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the probabilities that are left after top-k, top-p and min-p, and their ids, most likely first.

    Without any of the three, all probabilities in the order of the vocabulary, and None: sorting is what costs.
    Order of the filters as in transformers: each works on what the one before has left, renormalized.
    """
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return logits.softmax(dim=-1), None
    if params.top_k:
        values, ids = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1)
    else:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
    probs = values.softmax(dim=-1)
    if params.top_p < 1:
        before = probs.cumsum(dim=-1) - probs
        probs = probs.where(before < params.top_p, 0)
    if params.min_p:
        probs = probs.where(probs >= params.min_p * probs[:, :1], 0)
    return probs, ids

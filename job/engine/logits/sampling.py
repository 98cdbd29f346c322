"""From logits to tokens. Runs on the leader only; the followers receive the tokens.

A draw depends on (seed, row_idx, sample_idx, position) and the logits, and on nothing else (law 5): SplitMix64 (Steele
et al., OOPSLA 2014) turns the row's 64 bits (``job.draws``) into a number for every candidate, which becomes Gumbel
noise; the candidate with the largest logit plus noise wins (Maddison et al., NeurIPS 2014).

Why not use one random number and the cumulative distribution? Rounding errors of 1e-7 move each of its 50,000 borders,
and a draw near any of them flips with the shape of the batch (1 row of 6 did, in float32). Here a draw flips only if
the two best candidates, noise included, are that close.

Noise for a whole vocabulary is expensive (50,000 64-bit numbers per row), so the race is run in two rounds: first,
blocks of 64 tokens race with the logarithm of their total weight; then the tokens of the winning block race with their
logits. This is exact: the maximum of a block's noisy logits is distributed like the logarithm of its total weight plus
the same noise.

Letters: B rows, V vocabulary, N candidates.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from job.draws import row_bits
from job.records import SampleKey
from job.tasks import MAX_PENALTY, MAX_TEMPERATURE, MIN_PENALTY, MIN_TEMPERATURE, SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""SplitMix64's constants, as the negative numbers that they are in int64 arithmetic."""

_BLOCK = 64
"""Tokens per block of the first round."""

_CPU_PIECE, _CUDA_PIECE = 2**18, 2**27
"""How many logits are processed together: as many as fit into a core's cache, or are negligible in a GPU's memory."""

LIMITS = {"temperature": (MIN_TEMPERATURE, MAX_TEMPERATURE), "repetition_penalty": (MIN_PENALTY, MAX_PENALTY)}

NUM_CANDIDATES = 512
"""How many of the most likely tokens top-p tries first: sorting a vocabulary of 50,000 takes twelve times as long."""


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


def penalize_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make tokens that have occurred less likely (Keskar et al. 2019, "CTRL").

    Args:
        logits: [B, V] float32.
        seen: [B, V] bool, True for tokens of the prompt and of the completion so far.
        penalty: [B, 1] float32.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logit of each row and its first index, both [B]. The logit is NaN if the row has a NaN.

    Works in two rounds: torch's ``argmax`` over [256, 49152] bfloat16 takes a CPU 23 ms, this takes 3 ms.
    """
    num_rows, vocab_size = logits.shape
    width = next((width for width in (256, 128, 64) if vocab_size % width == 0), vocab_size)
    blocks = logits.view(num_rows, -1, width)
    value, block = blocks.amax(dim=-1).float().max(dim=-1)
    inside = blocks[torch.arange(num_rows, device=logits.device), block].float().argmax(dim=-1)
    return value, block * width + inside


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return [B] float32: natural logarithms of the probabilities of ``tokens`` [B] under logits [B, V]."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1).float() - log_totals(logits)


def log_totals(logits: torch.Tensor) -> torch.Tensor:
    """Return [B] float32: the logarithm of each row's sum of exponentials, for logits [B, V] of any floating dtype.

    Converts a few rows at a time, so that the float32 copies stay in a CPU's cache: this halves the time for
    [256, 49152] bfloat16.
    """
    num_rows = max(1, (_CPU_PIECE if logits.device.type == "cpu" else _CUDA_PIECE) // logits.shape[-1])
    return torch.cat([piece.float().logsumexp(dim=-1) for piece in torch.split(logits, num_rows)])


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How the next tokens of B rows are chosen. Rows may differ in everything."""

    params: Sequence[SamplingParams]
    """One per row."""
    keys: Sequence[SampleKey]
    positions: Sequence[int]
    """The token's position in each row's completion; 0 for the first one."""

    def __len__(self) -> int:
        return len(self.params)

    @property
    def distinct_params(self) -> Sequence[SamplingParams]:
        """Each object among the parameters once: a run whose rows are all alike has a single one."""
        return list({id(params): params for params in self.params}.values())

    def select(self, rows: Sequence[int]) -> "SamplingBatch":
        """Return some of the rows."""
        return SamplingBatch(
            params=[self.params[row] for row in rows],
            keys=[self.keys[row] for row in rows],
            positions=[self.positions[row] for row in rows],
        )

    def rows_where(self, condition: Callable[[SamplingParams], bool]) -> list[int]:
        """Return the rows whose parameters meet a condition."""
        found = {id(params): condition(params) for params in self.distinct_params}
        return [row for row, params in enumerate(self.params) if found[id(params)]]

    def numbers(self, name: str, device: torch.device) -> torch.Tensor:
        """Return a parameter of each row, within its limits: [B, 1] float32, or [1, 1] if it is the same for all."""
        distinct = self.distinct_params
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        values = [min(max(getattr(p, name), low), high) for p in (distinct if len(distinct) == 1 else self.params)]
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    def groups(self) -> Sequence[Sequence[int]]:
        """Return the rows in groups: one algorithm, on tensors of one shape, can choose for a whole group."""
        if len(self.distinct_params) == 1:
            return [range(len(self))]
        groups: dict[Hashable, list[int]] = {}
        for row, params in enumerate(self.params):
            groups.setdefault(_algorithm(params), []).append(row)
        return list(groups.values())


def _algorithm(params: SamplingParams) -> Hashable:
    """Return what identifies the algorithm that chooses a row's token.

    Each K of top-k is a group of its own. One ``topk`` with the largest K could serve all rows, but which of several
    equal logits it returns depends on K, so a row's candidates would depend on the other rows (law 5).
    """
    if params.temperature == 0:
        return "greedy"
    if params.top_k:
        return params.top_k
    return "top_p" if params.top_p < 1 else "race"


def choose_tokens(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Choose a token for each row.

    Args:
        logits: [B, V], finite, of any floating dtype.

    Returns:
        [B] int64.
    """
    groups = batch.groups()
    if len(groups) == 1:
        return _choose_alike(logits, batch)
    tokens = torch.empty(len(batch), dtype=torch.int64, device=logits.device)
    for rows in groups:
        index = torch.tensor(rows, device=logits.device)
        tokens[index] = _choose_alike(logits.index_select(0, index), batch.select(rows))
    return tokens


def _choose_alike(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Choose for rows of one group."""
    algorithm = _algorithm(batch.params[0])
    if algorithm == "greedy":
        return largest(logits)[1]
    seeds = [params.seed for params in batch.params]
    bits = torch.from_numpy(row_bits(seeds, batch.keys, batch.positions)).to(logits.device)
    logits = logits.float() / batch.numbers("temperature", logits.device)
    if algorithm == "race":
        return _race_in_two_rounds(_above_min_p(logits, batch), bits)
    if algorithm == "top_p":
        return _draw_from_nucleus(logits, batch, bits)
    values, ids = logits.topk(min(batch.params[0].top_k, logits.shape[-1]), dim=-1)
    return _race(_filter(values, values.logsumexp(dim=-1, keepdim=True), batch), ids, bits)


def _above_min_p(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Set the logits of tokens that are less likely than ``min_p`` times the most likely one to -inf."""
    if not any(params.min_p for params in batch.distinct_params):
        return logits
    floors = [math.log(params.min_p) if params.min_p else -math.inf for params in batch.params]
    floor = torch.tensor(floors, dtype=torch.float32, device=logits.device)[:, None]
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + floor, -torch.inf)


def _race_in_two_rounds(logits: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Draw from all tokens of [B, V] float32: first a block, then a token in it."""
    num_rows, vocab_size = logits.shape
    blocks = F.pad(logits, (0, -vocab_size % _BLOCK), value=-torch.inf).view(num_rows, -1, _BLOCK)
    block_ids = torch.arange(blocks.shape[1], device=logits.device)
    block = (_log_weights(blocks) + gumbel_noise(bits, -1 - block_ids)).argmax(dim=-1)
    inside = blocks[torch.arange(num_rows, device=logits.device), block]
    ids = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    return ids.gather(-1, (inside + gumbel_noise(bits, ids)).argmax(dim=-1, keepdim=True)).squeeze(-1)


def _log_weights(blocks: torch.Tensor) -> torch.Tensor:
    """Return [B, blocks]: the logarithm of the sum of exponentials of each block, minus the row's largest logit."""
    top = blocks.amax(dim=(1, 2), keepdim=True)
    return (blocks - top).exp_().sum(dim=-1).log_()


def _draw_from_nucleus(logits: torch.Tensor, batch: SamplingBatch, bits: torch.Tensor) -> torch.Tensor:
    """Draw from the tokens that top-p and min-p leave in logits [B, V]."""
    total = log_totals(logits)[:, None]
    values, ids = logits.topk(min(NUM_CANDIDATES, logits.shape[-1]), dim=-1)
    tokens = _race(_filter(values, total, batch), ids, bits)
    is_wide = (values - total).exp().sum(dim=-1) < batch.numbers("top_p", logits.device)[:, 0]
    # Sort only the rows that need it: topk and sort order equal logits differently, so a row that was sorted because of
    # its neighbor would have other tokens at the border of its nucleus (law 5).
    if len(rows := is_wide.nonzero()[:, 0]):
        values, ids = logits[rows].sort(dim=-1, descending=True, stable=True)
        tokens[rows] = _race(_filter(values, total[rows], batch.select(rows.tolist())), ids, bits[rows])
    return tokens


def _race(values: torch.Tensor, ids: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Draw one of the tokens ``ids`` [B, N] by their logits [B, N]."""
    winner = (values + gumbel_noise(bits, ids)).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, winner).squeeze(-1)


def _filter(values: torch.Tensor, total: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Apply top-p and min-p to sorted logits [B, N], given the logarithm of their total weight [B, 1].

    Each filter works on what the previous one left, renormalized. The order is transformers': top-k, top-p, min-p.
    """
    probs, distinct = (values - total).exp(), batch.distinct_params
    if any(params.top_p < 1 for params in distinct):
        before = probs.cumsum(dim=-1) - probs
        top_p = batch.numbers("top_p", values.device)
        is_off = top_p == 1  # a sum of probabilities may round to 1 before the last token
        values = values.masked_fill((before >= top_p) & ~is_off, -torch.inf)
    if any(params.min_p for params in distinct):
        min_p = batch.numbers("min_p", values.device)
        values = values.masked_fill(probs < min_p * probs[:, :1], -torch.inf)
    return values

"""From scores to tokens: the most likely one, or a draw. Runs on the leader only; the followers receive the tokens.

A draw depends on (seed, row_idx, sample_idx, position) and the logits, and on nothing else (law 5): every candidate
gets noise of its own (``noise``), and the one with the largest logit plus noise wins (Maddison et al., NeurIPS 2014).

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
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from job.draws import row_bits
from job.engine.logits.noise import gumbel_noise
from job.engine.logits.reductions import largest, log_totals
from job.engine.transfers import Parcel, Sent, may_read
from job.records import SampleKey
from job.tasks import MAX_PENALTY, MAX_TEMPERATURE, MIN_PENALTY, MIN_TEMPERATURE, SamplingParams

_BLOCK = 64
"""Tokens per block of the first round."""

LIMITS = {"temperature": (MIN_TEMPERATURE, MAX_TEMPERATURE), "repetition_penalty": (MIN_PENALTY, MAX_PENALTY)}

NUM_CANDIDATES = 512
"""How many of the most likely tokens top-p tries first: sorting a vocabulary of 50,000 takes twelve times as long."""


@dataclass(frozen=True)
class SamplingBatch:
    """How the next tokens of B rows are chosen. Rows may differ in everything."""

    params: Sequence[SamplingParams]
    """One per row."""
    keys: Sequence[SampleKey]
    positions: Sequence[int]
    """The token's position in each row's completion; 0 for the first one."""
    wide: Collection[int] = ()
    """Rows whose nucleus may be wider than ``NUM_CANDIDATES``: all their logits are sorted. See ``Drawn.is_exact``."""
    eos_token_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens."""

    def __len__(self) -> int:
        return len(self.params)

    @cached_property
    def distinct_params(self) -> Sequence[SamplingParams]:
        """Each object among the parameters once: a run whose rows are all alike has a single one."""
        return list({id(params): params for params in self.params}.values())

    def select(self, rows: Sequence[int]) -> "SamplingBatch":
        """Return some of the rows."""
        return replace(
            self,
            params=[self.params[row] for row in rows],
            keys=[self.keys[row] for row in rows],
            positions=[self.positions[row] for row in rows],
            wide=[idx for idx, row in enumerate(rows) if row in self.wide] if self.wide else (),
        )

    def rows_where(self, condition: Callable[[SamplingParams], bool]) -> Sequence[int]:
        """Return the rows whose parameters meet a condition."""
        found = {id(params): condition(params) for params in self.distinct_params}
        if len(found) == 1:
            return range(len(self)) if all(found.values()) else ()
        return [row for row, params in enumerate(self.params) if found[id(params)]]

    def numbers(self, name: str) -> npt.NDArray[np.float32]:
        """Return a parameter of each row, within its limits: [B, 1], or [1, 1] if it is the same for all."""
        distinct = self.distinct_params
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        values = np.fromiter(map(attrgetter(name), distinct if len(distinct) == 1 else self.params), np.float64)
        return values.clip(low, high).astype(np.float32)[:, None]

    def groups(self) -> Sequence[Sequence[int]]:
        """Return the rows in groups: one algorithm, on tensors of one shape, can choose for a whole group."""
        if len(self.distinct_params) == 1 and not self.wide:
            return [range(len(self))]
        groups: dict[Hashable, list[int]] = {}
        for row, params in enumerate(self.params):
            groups.setdefault((_algorithm(params), row in self.wide), []).append(row)
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of B rows, on the device."""

    tokens: torch.Tensor
    """[B] int64."""
    is_exact: torch.Tensor | None = None
    """[B] bool: whether the token is the right one; None if all are. It is not if the row's nucleus has more than
    ``NUM_CANDIDATES`` tokens: the row must be chosen for once more, as one of the batch's ``wide`` rows.
    """


Algorithm = Callable[[torch.Tensor], Drawn]
"""Chooses from logits [B, V] of any floating dtype, all finite, for rows whose parameters ask for it."""


class Sampler:
    """Chooses a token for each row of a batch.

    The host's numbers are collected when it is made, so that they travel together; a call then waits for nothing.
    """

    def __init__(self, batch: SamplingBatch, parcel: Parcel) -> None:
        """Add the numbers that the batch needs to a parcel."""
        groups = batch.groups()
        self._num_rows = len(batch)
        self._of_all = _algorithm_of(batch, parcel) if len(groups) == 1 else None
        self._of_groups = [
            (parcel.add(np.array(rows, np.int64)), _algorithm_of(batch.select(rows), parcel))
            for rows in (groups if self._of_all is None else ())
        ]

    def __call__(self, logits: torch.Tensor) -> Drawn:
        """Choose from logits [B, V] of any floating dtype, all finite."""
        if self._of_all is not None:
            return self._of_all(logits)
        tokens = torch.empty(self._num_rows, dtype=torch.int64, device=logits.device)
        is_exact: torch.Tensor | None = None
        for rows, algorithm in self._of_groups:
            drawn = algorithm(logits.index_select(0, rows()))
            tokens.index_copy_(0, rows(), drawn.tokens)
            if drawn.is_exact is not None:
                is_exact = torch.ones_like(tokens, dtype=torch.bool) if is_exact is None else is_exact
                is_exact.index_copy_(0, rows(), drawn.is_exact)
        return Drawn(tokens, is_exact)


def _algorithm_of(batch: SamplingBatch, parcel: Parcel) -> Algorithm:
    """Return the algorithm for rows of one group."""
    name = _algorithm(batch.params[0])
    if name == "greedy":
        return lambda logits: Drawn(largest(logits)[1])
    seeds = {params.seed for params in batch.distinct_params}
    seed = seeds.pop() if len(seeds) == 1 else [params.seed for params in batch.params]
    bits = parcel.add(row_bits(seed, batch.keys, batch.positions))
    temperature = parcel.add(batch.numbers("temperature"))
    kind: Callable[[SamplingBatch, Parcel], Callable[[torch.Tensor, torch.Tensor], Drawn]]
    kind = _Race if name == "race" else _Nucleus if name == "top_p" else _TopK
    draw = kind(batch, parcel)
    return lambda logits: draw(logits.float() / temperature(), bits())


class _Race:
    """Draws from all tokens, or from those that min-p leaves."""

    def __init__(self, batch: SamplingBatch, parcel: Parcel) -> None:
        self._floor: Sent | None = None
        if any(params.min_p for params in batch.distinct_params):
            floors = [math.log(params.min_p) if params.min_p else -math.inf for params in batch.params]
            self._floor = parcel.add(np.array(floors, np.float32)[:, None])

    def __call__(self, logits: torch.Tensor, bits: torch.Tensor) -> Drawn:
        if self._floor is not None:
            is_below = logits < logits.amax(dim=-1, keepdim=True) + self._floor()
            logits = logits.masked_fill(is_below, -torch.inf)
        return Drawn(_race_in_two_rounds(logits, bits))


class _TopK:
    """Draws from the K most likely tokens, or from those that top-p and min-p leave of them."""

    def __init__(self, batch: SamplingBatch, parcel: Parcel) -> None:
        self._top_k, self._filters = batch.params[0].top_k, _Filters(batch, parcel)

    def __call__(self, logits: torch.Tensor, bits: torch.Tensor) -> Drawn:
        values, ids = logits.topk(min(self._top_k, logits.shape[-1]), dim=-1)
        return Drawn(_race(self._filters(values, values.logsumexp(dim=-1, keepdim=True)), ids, bits))


class _Nucleus:
    """Draws from the tokens that top-p and min-p leave."""

    def __init__(self, batch: SamplingBatch, parcel: Parcel) -> None:
        self._filters, self._is_wide = _Filters(batch, parcel), bool(batch.wide)

    def __call__(self, logits: torch.Tensor, bits: torch.Tensor) -> Drawn:
        total = log_totals(logits)[:, None]
        values, ids = logits.topk(min(NUM_CANDIDATES, logits.shape[-1]), dim=-1)
        tokens = _race(self._filters(values, total), ids, bits)
        is_exact = ~((values - total).exp().sum(dim=-1) < self._filters.top_p[:, 0])
        # Sort only the rows that need it: topk and sort order equal logits differently, so a row that was sorted
        # because of its neighbor would have other tokens at the border of its nucleus (law 5).
        if self._is_wide:
            return Drawn(torch.where(is_exact, tokens, self._from_all(logits, total, bits)))
        if not may_read(logits.device):
            return Drawn(tokens, is_exact)
        if len(rows := (~is_exact).nonzero()[:, 0]):
            tokens[rows] = self._from_all(logits[rows], total[rows], bits[rows], rows)
        return Drawn(tokens)

    def _from_all(
        self, logits: torch.Tensor, total: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return _race(self._filters(values, total, rows), ids, bits)


class _Filters:
    """Top-p and min-p on sorted logits.

    Each works on what the previous one left, renormalized. The order is transformers': top-k, top-p, min-p.
    """

    def __init__(self, batch: SamplingBatch, parcel: Parcel) -> None:
        distinct = batch.distinct_params
        self._top_p = parcel.add(batch.numbers("top_p")) if any(params.top_p < 1 for params in distinct) else None
        self._min_p = parcel.add(batch.numbers("min_p")) if any(params.min_p for params in distinct) else None

    @property
    def top_p(self) -> torch.Tensor:
        """[B, 1] or [1, 1] float32."""
        assert self._top_p is not None
        return self._top_p()

    def __call__(self, values: torch.Tensor, total: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, N] with minus infinity for the tokens that are filtered out.

        Args:
            total: [B, 1]: the logarithms of the logits' total weights.
            rows: [B] int64: which of the batch's rows these are; None: all.
        """
        probs = (values - total).exp()
        if self._top_p is not None:
            before = probs.cumsum(dim=-1) - probs
            top_p = _rows_of(self._top_p(), rows)
            is_off = top_p == 1  # a sum of probabilities may round to 1 before the last token
            values = values.masked_fill((before >= top_p) & ~is_off, -torch.inf)
        if self._min_p is not None:
            values = values.masked_fill(probs < _rows_of(self._min_p(), rows) * probs[:, :1], -torch.inf)
        return values


def _rows_of(numbers: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return the numbers of some rows, from [B, 1], or from [1, 1] for rows that are alike."""
    return numbers if rows is None or len(numbers) == 1 else numbers[rows]


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


def _race(values: torch.Tensor, ids: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Draw one of the tokens ``ids`` [B, N] by their logits [B, N]."""
    winner = (values + gumbel_noise(bits, ids)).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, winner).squeeze(-1)

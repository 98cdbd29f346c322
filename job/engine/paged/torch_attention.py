"""Attention over the paged cache in plain torch operations. Runs everywhere, in any dtype; what CPUs use.

Decode multiplies each page with the queries of its rows, in the order of memory (see ``layout``), which on a CPU runs
at the speed at which memory can be read: 25 GB/s of 26, where a product over windows of 160 to 224 tokens reached 12
to 19, and ``scaled_dot_product_attention`` 7. A row's pages are put together with the softmax over their sums of
exponentials, as in flash decoding (Dao et al. 2023); ``embedding_bag`` does the weighted sum in one pass.

Letters: T tokens, P tokens per page, H key-value heads, G queries per head, D head size, n sequences, q tokens of each.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from job.engine.paged.attention import AttentionArgs
from job.engine.paged.cache import KVCache, Placement
from job.engine.paged.layout import DecodeItems, Layout, PrefillGroup

PAGE_TOKENS = 32
"""Products with pages of 16 run at two thirds of the speed; larger ones waste more of a row's last page."""

MAX_SCORES = 2**26
"""More scores than this at once would take too much memory."""


@dataclass(slots=True)
class DecodeIndices:
    """``DecodeItems`` as tensors, for the number of heads of a layer."""

    pages: slice | torch.Tensor
    rows: torch.Tensor
    bias: torch.Tensor
    """[private, 1, 1, P]: 0 or -inf."""
    shared_pages: torch.Tensor
    shared_rows: torch.Tensor
    shared_bias: torch.Tensor
    """[shared, 1, R, 1, P]."""
    partials: torch.Tensor
    """[most pages of a row, N * H * G]: see ``DecodeItems.partial_indices``. Pages first: softmax over the first
    dimension of so narrow a matrix is 13 times as fast as over the last."""
    bags: torch.Tensor
    """[.]: the real ones of ``partials``, one row after the other."""
    bag_places: torch.Tensor
    """[.]: where they stand in ``partials``."""
    bag_starts: torch.Tensor
    """[N * H * G]: where each row's begin in ``bags``."""


class TorchAttention:
    """Implements ``Attend`` for one step."""

    def __init__(self, cache: KVCache, layout: Layout, device: torch.device) -> None:
        """Attend in a step whose fresh pages are clear."""
        self._cache, self._layout, self._device = cache, layout, device
        self._placement = Placement.of(cache, layout, device)
        self._decode_indices: dict[tuple[int | None, int, int], DecodeIndices] = {}
        self._prefill_indices: dict[tuple[int, int | None, int], tuple[torch.Tensor, ...]] = {}

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """See ``Attend``."""
        self._placement.write(layer_idx, key, value)
        keys, values = self._cache.keys[layer_idx], self._cache.values[layer_idx]
        num_tokens, num_heads, group = len(query), key.shape[1], query.shape[1] // key.shape[1]
        query = (query * args.scale).view(num_tokens, num_heads, group, query.shape[-1])
        num_decode = self._layout.num_decode
        if num_decode == num_tokens:
            return self._decode(query, keys, values, args)
        output = query.new_empty(num_tokens, num_heads * group, values.shape[-1])
        if num_decode:
            output[:num_decode] = self._decode(query[:num_decode], keys, values, args)
        for group_idx, prefill in enumerate(self._layout.prefill_groups):
            output.index_copy_(0, *self._prefill(group_idx, prefill, query, keys, values, args))
        return output

    def _decode(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """Attend with one token per sequence: [N, H, G, D] to [N, H * G, D of value]."""
        num_rows, num_heads, group, _ = query.shape
        at = self._indices_of(args.window, num_heads, group)
        flat = query.reshape(num_rows, -1)
        size, value_size = keys.shape[-1], values.shape[-1]
        sums: list[torch.Tensor] = []
        partials: list[torch.Tensor] = []
        if len(at.rows):
            met = flat.index_select(0, at.rows).view(-1, group, size)
            self._multiply(met, keys[at.pages], values[at.pages], at.bias, args, (num_heads, group), sums, partials)
        if len(at.shared_pages):
            met = flat.index_select(0, at.shared_rows.view(-1)).view(*at.shared_rows.shape, num_heads, group, size)
            met = met.transpose(1, 2).reshape(len(met) * num_heads, -1, size)
            shape = (num_heads, at.shared_rows.shape[1], group)
            pages = at.shared_pages
            self._multiply(met, keys[pages], values[pages], at.shared_bias, args, shape, sums, partials)
        weights = torch.cat([*sums, sums[0].new_full((1,), -torch.inf)]).take(at.partials)
        if args.sinks is not None:
            weights = torch.cat([weights, args.sinks.float().repeat(num_rows)[None]])
        weights = weights.softmax(dim=0).view(-1).index_select(0, at.bag_places)
        rows = F.embedding_bag(
            at.bags,
            partials[0] if len(partials) == 1 else torch.cat(partials),
            at.bag_starts,
            mode="sum",
            per_sample_weights=weights.to(query.dtype),
        )
        return rows.view(num_rows, num_heads * group, value_size)

    @staticmethod
    def _multiply(
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor,
        args: AttentionArgs,
        shape: tuple[int, ...],
        sums: list[torch.Tensor],
        partials: list[torch.Tensor],
    ) -> None:
        """Attend within pages, and append the logarithms of the sums of exponentials [.] and the results [., D].

        Args:
            query: [items * H, queries, D].
            keys: [items, H, P, D]. ``values`` alike.
            bias: broadcasts over [items, *shape, P].
            shape: what H and queries are made of.
        """
        num_items, num_heads, page_tokens, size = keys.shape
        scores = torch.bmm(query, keys.view(num_items * num_heads, page_tokens, size).transpose(1, 2)).float()
        if args.softcap is not None:
            scores = torch.tanh(scores / args.softcap) * args.softcap
        scores.view(num_items, *shape, page_tokens).add_(bias)
        probs = scores.softmax(dim=-1)
        # The largest probability is exp(largest score - log of the sum).
        sums.append((scores.amax(dim=-1) - probs.amax(dim=-1).log()).view(-1))
        value_pages = values.view(num_items * num_heads, page_tokens, -1)
        partials.append(torch.bmm(probs.to(values.dtype), value_pages).view(-1, value_pages.shape[-1]))

    def _prefill(
        self,
        group_idx: int,
        prefill: PrefillGroup,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        args: AttentionArgs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend with several tokens per sequence.

        Returns:
            Which of the step's tokens are answered [.], and the answers [., H * G, D of value].
        """
        _, num_heads, group, size = query.shape
        tokens, pages, bias, real, places = self._prefill_tensors(group_idx, prefill, args.window, group, query.dtype)
        num_rows, width = tokens.shape
        # The queries of a head's group are laid end to end: so keys need not be repeated for each of them.
        met = query[tokens].permute(0, 2, 3, 1, 4).reshape(num_rows, num_heads, group * width, size)
        key, value = (_windows(pool, pages, prefill.num_keys) for pool in (keys, values))
        num_scores = met.shape[:-1].numel() * prefill.num_keys
        is_plain = args.softcap is None and args.sinks is None
        if is_plain and (self._device.type != "cpu" or num_scores > MAX_SCORES):
            attended = F.scaled_dot_product_attention(met, key, value, attn_mask=bias, scale=1.0)
        else:
            attended = _attend(met, key, value, bias, args, group)
        attended = attended.view(num_rows, num_heads, group, width, -1).permute(0, 3, 1, 2, 4)
        return real, attended.reshape(num_rows * width, num_heads * group, -1).index_select(0, places)

    def _prefill_tensors(
        self, group_idx: int, prefill: PrefillGroup, window: int | None, group: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        key = (group_idx, window, group)
        if key not in self._prefill_indices:
            is_real = prefill.is_real
            arrays = (prefill.tokens, prefill.pages, prefill.tokens[is_real], np.flatnonzero(is_real))
            tokens, pages, real, places = (torch.from_numpy(array).to(self._device) for array in arrays)
            bias = _bias(np.tile(prefill.hidden(window), (1, group, 1))[:, None], self._device).to(dtype)
            self._prefill_indices[key] = (tokens, pages, bias, real, places)
        return self._prefill_indices[key]

    def _indices_of(self, window: int | None, num_heads: int, group: int) -> DecodeIndices:
        key = (window, num_heads, group)
        if key not in self._decode_indices:
            items = self._layout.decode_items(window)
            self._decode_indices[key] = _decode_indices(items, num_heads, group, self._device)
        return self._decode_indices[key]


def _decode_indices(items: DecodeItems, num_heads: int, group: int, device: torch.device) -> DecodeIndices:
    partials = items.partial_indices(num_heads, group).reshape(-1, items.bases.shape[1])
    is_real = np.repeat(items.is_real, num_heads * group, axis=0)
    counts = is_real.sum(axis=1)
    rows_of_bags, pages_of_bags = np.nonzero(is_real)
    arrays = (
        items.rows,
        items.shared_pages,
        items.shared_rows,
        partials.T,
        partials[is_real],
        pages_of_bags * len(partials) + rows_of_bags,
        np.cumsum(counts) - counts,
    )
    rows, shared_pages, shared_rows, table, bags, bag_places, bag_starts = (
        torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays
    )
    pages: slice | torch.Tensor = slice(items.first_page, items.first_page + len(items.rows))
    if items.pages is not None:
        pages = torch.from_numpy(items.pages).to(device)
    return DecodeIndices(
        pages=pages,
        rows=rows,
        bias=_bias(items.hidden[:, None, None], device),
        shared_pages=shared_pages,
        shared_rows=shared_rows,
        shared_bias=_bias(items.shared_hidden[:, None, :, None], device),
        partials=table,
        bags=bags,
        bag_places=bag_places,
        bag_starts=bag_starts,
    )


def _bias(hidden: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return float32: -inf where hidden, else 0."""
    return torch.zeros(hidden.shape, device=device).masked_fill_(torch.from_numpy(hidden).to(device), -torch.inf)


def _windows(pool: torch.Tensor, pages: torch.Tensor, num_keys: int) -> torch.Tensor:
    """Copy sequences' pages [n, k] out of [pages, H, P, D] into [n, H, num_keys, D]."""
    num_rows, num_pages = pages.shape
    _, num_heads, page_tokens, size = pool.shape
    windows = pool[pages.view(-1)].view(num_rows, num_pages, num_heads, page_tokens, size).transpose(1, 2)
    return windows.reshape(num_rows, num_heads, num_pages * page_tokens, size)[:, :, :num_keys]


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, args: AttentionArgs, group: int
) -> torch.Tensor:
    """Attend step by step: twice as fast on a CPU as ``scaled_dot_product_attention``, which knows no soft-capping and
    no sinks either.
    """
    scores = (query @ key.transpose(-1, -2)).float()
    if args.softcap is not None:
        scores = torch.tanh(scores / args.softcap) * args.softcap
    scores.add_(bias)
    if args.sinks is None:
        return scores.softmax(dim=-1).to(value.dtype) @ value
    sinks = args.sinks.float().view(1, -1, group, 1).repeat_interleave(query.shape[2] // group, dim=2).flatten(2, 3)
    probs = torch.cat([scores, sinks.expand(len(scores), -1, -1)[..., None]], dim=-1).softmax(dim=-1)[..., :-1]
    return probs.to(value.dtype) @ value

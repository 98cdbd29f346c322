"""Which attention serves a model on a device: torch's kernel where it can be trusted, plain operations elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from job.engine.paged import torch_attention, varlen_attention
from job.engine.paged.attention import Attend
from job.engine.paged.cache import KVCache, LayerShape
from job.engine.paged.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """An attention and the cache that it reads."""

    page_tokens: int
    tokens_first: bool
    """Whether pages are [tokens, heads, size] instead of [heads, tokens, size]."""
    attend: Callable[[KVCache, Layout, torch.device], Attend]
    """Makes what attends in one step."""

    def allocate(self, shapes: dict[int, LayerShape], num_pages: int, device: torch.device) -> KVCache:
        """Allocate a cache of so many pages."""
        return KVCache(
            shapes, num_pages=num_pages, page_tokens=self.page_tokens, tokens_first=self.tokens_first, device=device
        )


TORCH = Backend(page_tokens=torch_attention.PAGE_TOKENS, tokens_first=False, attend=torch_attention.TorchAttention)
VARLEN = Backend(
    page_tokens=varlen_attention.PAGE_TOKENS,
    tokens_first=True,
    attend=varlen_attention.VarlenAttention.for_step,
)


def choose_backend(problems: list[str | None]) -> Backend:
    """Return the backend for a replica, given ``kernel_problem`` of each of its ranks: they must agree."""
    return TORCH if any(problems) else VARLEN

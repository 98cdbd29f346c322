"""The seam between transformers' models and our attention: an attention function that is registered under its own name.

Models call it through transformers' ``AttentionInterface`` with the queries, keys and values of the whole ragged batch,
and it passes them on to the ``Attend`` of the current step. Head counts are read from the tensors, since AutoTP decides
how many heads are left on this rank.

Letters: T tokens of the step, H key-value heads, G queries per key-value head, D head size.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

NAME = "job_paged"

HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_router_logits",
        "is_causal",
        "training",
    }
)
"""Arguments that models pass and that make no difference here."""


class Unsupported(Exception):
    """The model needs something that this attention cannot do."""


@dataclass(frozen=True, slots=True)
class AttentionArgs:
    """What a layer needs besides queries, keys and values."""

    scale: float
    window: int | None = None
    """A query sees this many keys, counted back from its own. None: it sees all."""
    softcap: float | None = None
    """Scores s become c tanh(s / c) (Gemma 2)."""
    sinks: torch.Tensor | None = None
    """[H * G]: one extra score per query head, without a value (gpt-oss)."""


class Attend(Protocol):
    """The owner of the cache: it stores the keys and values of the step's tokens, then attends."""

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """Return [T, H * G, D of value] from [T, H * G, D], [T, H, D] and [T, H, D of value]."""


class RotatingAttend(Attend, Protocol):
    """An ``Attend`` that can rotate queries and keys itself, in the pass that stores the keys."""

    def rotate_next(self, rotation: "DelayedRotation") -> None:
        """Rotate what the next call gets."""


@dataclass(frozen=True, slots=True)
class DelayedRotation:
    """A rotation (RoPE) that has not been done yet. R numbers of each head are rotated, by halves."""

    query: torch.Tensor
    """[T, H * G, D]."""
    key: torch.Tensor
    """[T, H, D]."""
    cosines: torch.Tensor
    """[T, R]."""
    sines: torch.Tensor
    """[T, R]."""

    def is_of(self, query: torch.Tensor, key: torch.Tensor) -> bool:
        """Whether queries and keys are the ones to be rotated: not copies, nor anything computed from them."""
        pairs = ((self.query, query), (self.key, key))
        return all(
            own.data_ptr() == other.data_ptr() and own.shape == other.shape and own.stride() == other.stride()
            for own, other in pairs
        )


_attend: ContextVar[Attend] = ContextVar("attend")


@contextlib.contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Use ``attend`` as the attention of models that are called inside."""
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def rotating() -> RotatingAttend | None:
    """Return the attention of models that are called now, if it can rotate."""
    attend: Any = _attend.get(None)
    return attend if hasattr(attend, "rotate_next") else None


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do: [1, heads, T, D] in, [1, T, heads, D] out.

    Raises:
        Unsupported: an argument is unknown here; ignoring it might change the answer.
    """
    unknown = [name for name, argument in others.items() if argument is not None and name not in HARMLESS]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown or not getattr(module, "is_causal", True):
        raise Unsupported(f"its attention uses {', '.join(unknown) or 'tokens that come later'}")
    if not isinstance(layer_idx := getattr(module, "layer_idx", None), int):
        raise Unsupported("its attention layers are not numbered")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    args = AttentionArgs(scale, sliding_window or None, softcap, s_aux)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return _attend.get()(layer_idx, query, key, value, args)[None], None


AttentionInterface.register(NAME, paged_attention)

"""Trials of what is fused: the same random numbers through a module's own forward and through what would replace it.

Letters: C numbers of a token.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from job.engine.logits.reductions import in_two_rounds
from job.engine.model.quantized import QuantizedLinear
from job.engine.paged.attention.interface import NAME, DelayedRotation, attending
from job.engine.paged.cuda.fused_launches import ACTIVATIONS, Scaling, gate, largest, rotate_and_store
from job.engine.paged.cuda.fused_modules import AddingLayer, GatedMLP, Norm, Rotation
from job.engine.paged.cuda.launches import Pool

SCALINGS = (Scaling(), Scaling(is_wide=True), Scaling(offset=1.0, is_wide=True))
"""Llama's, OLMo 2's and Gemma's."""

SCALES = torch.tensor([1.0, 0.001, 30.0])
"""Of the rows on which norms are compared. The second shows another epsilon."""


def largest_agrees(like: torch.Tensor) -> bool:
    """Whether the kernel for the largest logit works, on the device and in the dtype of a tensor."""
    logits = _numbers(like, 4, 5000)
    logits[1, 4999] = logits[1, 17] = 9  # the first of two
    logits[2, 3] = torch.nan
    logits[3] = -torch.inf
    with contextlib.suppress(Exception):  # whatever a kernel that cannot run raises
        (top, best), (expected_top, expected_best) = largest(logits), in_two_rounds(logits)
        has_number = ~expected_top.isnan()
        same = torch.equal(top.nan_to_num(7), expected_top.nan_to_num(7))
        return same and torch.equal(best[has_number], expected_best[has_number])
    return False


def _numbers(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(like.device, dtype or like.dtype)


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return the largest difference of a row, relative to its largest value."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return torch.inf
    expected, found = expected.float(), found.float()
    rows = (expected - found).abs().amax(dim=-1) / expected.abs().amax(dim=-1)
    largest = float(rows.max())
    return torch.inf if largest != largest else largest


def _agree(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two results differ by roundings only: a few in the last place, or by the order of a sum in float32."""
    return _difference(expected, found) <= max(1e-4, 4 * torch.finfo(expected.dtype).eps)


def scaling_of(norm: Any) -> Scaling | None:
    """Return the scaling with which ``Norm`` computes what a module does: in float32, and best in its own dtype."""
    weight = norm.weight
    exact = _numbers(weight, 1, 3, len(weight), dtype=torch.float32) * SCALES.to(weight.device)[:, None]
    rounded = exact.to(weight.dtype)
    own = type(norm).forward
    found = []
    for idx, scaling in enumerate(SCALINGS):
        faster = Norm(norm, scaling)
        if _difference(own(norm, exact).float(), faster(exact).float()) <= 1e-5:
            found.append((_difference(own(norm, rounded), faster(rounded)), idx))
    best, idx = min(found, default=(torch.inf, 0))
    return SCALINGS[idx] if best <= max(1e-5, 4 * torch.finfo(weight.dtype).eps) else None


def activation_of(module: Any, device: torch.device) -> str | None:
    """Return the name of an activation that ``gate`` computes. In float32, where gelu differs from gelu by tanh."""
    points = torch.linspace(-8, 8, 128, device=device)[None]
    both = torch.cat([points, torch.ones_like(points)], dim=-1)
    expected = module(points)
    return next((name for name in ACTIVATIONS if float((gate(both, name) - expected).abs().max()) <= 1e-5), None)


def mlps_agree(module: Any, mlp: GatedMLP) -> bool:
    """Whether the values before the last product, which may reduce over ranks, agree."""
    like = input_of(next(iter(module.children())))
    numbers = _numbers(like, 1, 5, like.shape[1])
    with _as_forward(module.down_proj, lambda values: values):
        return _agree(type(module).forward(module, numbers), mlp(numbers))


def linears_agree(linears: list[Any], forwards: list[Callable[[torch.Tensor], torch.Tensor]]) -> bool:
    like = input_of(linears[0])
    numbers = _numbers(like, 1, 5, like.shape[1])
    pairs = zip(linears, forwards, strict=True)
    return all(_agree(type(linear).forward(linear, numbers), forward(numbers)) for linear, forward in pairs)


def rotation_for(own: Callable[..., Any], like: torch.Tensor) -> Rotation | None:
    """Return what rotates as a function does, or None. The halves of the angles differ, as no model's do."""
    found = None
    for num_angles in (32, 16):
        rotation = Rotation(own, may_be_partial=num_angles < 32)
        q, k = (_numbers(like, 1, heads, 5, 32) for heads in (4, 2))
        cos, sin = _numbers(like, 2, 1, 5, num_angles)
        try:
            pairs = list(zip(own(q, k, cos, sin), rotation(q, k, cos, sin), strict=True))
        except Exception:
            return found  # of whole heads only
        if not all(_agree(*pair) for pair in pairs):
            return found
        found = rotation
    return found


def attentions_agree(module: Any, at_once: Callable[..., Any], delayed: Callable[..., Any]) -> bool:
    """Whether an attention does nothing with rotated queries and keys but attend, so that its rotation can wait.

    Args:
        at_once: its forward.
        delayed: the same, but the rotation is left to an ``Attend`` that can do it.
    """
    if module.config._attn_implementation != NAME:
        return False
    like = input_of(module)
    cos, sin = _numbers(like, 2, 1, 5, module.head_dim)
    options = {"position_embeddings": (cos, sin), "attention_mask": None}
    last = next(part for name, part in module.named_children() if name in ("o_proj", "out_proj", "dense"))
    found: list[torch.Tensor] = []
    with _as_forward(last, lambda values: values):  # which may reduce over ranks
        for forward, attend in ((at_once, _sum), (delayed, _Rotating())):
            with attending(attend):
                found.append(forward(hidden_states=_numbers(like, 1, 5, like.shape[1]), **options)[0])
    return torch.equal(*found)


def input_of(module: torch.nn.Module) -> Any:
    """Return a tensor [..., K] with the size, dtype and device of what a module's first product takes; None if it has
    no products.
    """
    for part in module.modules():
        if isinstance(part, QuantizedLinear):
            return part.input_like()
        for parameter in part.parameters(recurse=False):
            if parameter.dim() == 2 and parameter.is_floating_point() and parameter.itemsize > 1:
                return parameter
    return None


def _sum(layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: Any) -> torch.Tensor:
    """Implement ``Attend`` with something that depends on all that it gets."""
    group = query.shape[1] // key.shape[1]
    return query + key.repeat_interleave(group, dim=1).roll(1, -1) + value.repeat_interleave(group, dim=1).roll(2, -1)


class _Rotating:
    """Implements ``RotatingAttend`` like ``_sum``, of what has been stored."""

    def __init__(self) -> None:
        self._rotation: DelayedRotation | None = None

    def rotate_next(self, rotation: DelayedRotation) -> None:
        self._rotation = rotation

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: Any
    ) -> torch.Tensor:
        rotation, self._rotation = self._rotation, None
        assert rotation is not None and rotation.is_of(query, key)
        pool = Pool(*(new.new_zeros(1, new.shape[1], 16, new.shape[2]) for new in (key, value)))
        places = torch.arange(len(key), dtype=torch.int32, device=key.device)
        query = rotate_and_store(pool, rotation, value, places)
        key, value = (pages[0, :, : len(key)].transpose(0, 1) for pages in (pool.keys, pool.values))
        return _sum(layer_idx, query, key, value, args)


def layers_agree(module: Any, layer: AddingLayer) -> bool:
    """Whether two forwards of a decoder layer agree, and pass the same arguments to its attention."""
    weight = module.post_attention_layernorm.weight
    numbers = _numbers(weight, 1, 5, len(weight))
    options = {"attention_mask": None, "position_ids": numbers, "position_embeddings": (numbers, numbers)}
    seen: list[dict[str, Any]] = []

    def attend(hidden_states: torch.Tensor, **others: Any) -> tuple[torch.Tensor, None]:
        seen.append({name: id(value) for name, value in others.items()})
        return hidden_states * 0.5 + 1, None

    with _as_forward(module.self_attn, attend), _as_forward(module.mlp, lambda values: values.roll(1, -1)):
        expected, found = type(module).forward(module, numbers, **options), layer(numbers, **options)
    return seen[0] == seen[1] and _agree(expected, found)


@contextlib.contextmanager
def _as_forward(module: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else for a while."""
    before = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before

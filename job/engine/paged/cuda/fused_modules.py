"""What takes the place of the ``forward`` of transformers' modules. The modules stay, with their weights.

Letters: T tokens, C numbers of a token, H heads, D head size, R numbers that are rotated.
"""

import inspect
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from job.engine.model.quantized import QuantizedLinear
from job.engine.paged.attention.interface import DelayedRotation, rotating
from job.engine.paged.cuda.fused_launches import Scaling, add_and_norm, gate, rotate

ROTATION = "apply_rotary_pos_emb"
"""The name of the function that rotates queries and keys in transformers' modeling files."""


class Norm:
    """RMSNorm as one kernel."""

    def __init__(self, norm: Any, scaling: Scaling) -> None:
        """Compute what ``norm`` does."""
        self._norm, self._scaling = norm, scaling
        self._epsilon = float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Normalize [..., C]."""
        return self.after_adding(values, None)[0]

    def after_adding(self, values: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of values [..., C] plus a residual, and their sum."""
        return add_and_norm(values, residual, self._norm.weight, self._epsilon, self._scaling)


class MergedLinear:
    """Linear layers of one input as one product."""

    def __init__(self, linears: Sequence[Any]) -> None:
        """Merge the weights. Those of the layers become views of the merged ones, so that they take no memory twice.

        Args:
            linears: all of them quantized in the same way, or none.
        """
        self._product: Callable[[torch.Tensor], torch.Tensor]
        if isinstance(linears[0], QuantizedLinear):
            self.sizes = [linear.out_features for linear in linears]
            self._product = QuantizedLinear.merged(linears)
        else:
            self.sizes = [linear.weight.shape[0] for linear in linears]
            weight = _merge([linear.weight for linear in linears])
            bias = None if linears[0].bias is None else _merge([linear.bias for linear in linears])
            self._product = partial(nn.functional.linear, weight=weight, bias=bias)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in] to [..., sum of out]."""
        return self._product(values)


def _merge(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        merged = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, torch.split(merged, [len(each) for each in parameters]), strict=True):
            parameter.data = part
    return merged


class Siblings:
    """Layers that an attention calls one after the other on one tensor: the first call computes for all of them.

    A call on another tensor than the last computes anew, so nothing can be mixed up.
    """

    def __init__(self, merged: MergedLinear) -> None:
        """Serve the layers that were merged."""
        self._merged = merged
        self._values: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}

    def forward_of(self, idx: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the forward of a layer."""

        def forward(values: torch.Tensor) -> torch.Tensor:
            if self._values is not values or idx not in self._parts:
                self._values = values
                self._parts = dict(enumerate(torch.split(self._merged(values), self._merged.sizes, dim=-1)))
            part = self._parts.pop(idx)
            if not self._parts:
                self._values = None  # keeps no activation alive
            return part

        return forward


class GatedMLP:
    """down(activation(gate(x)) * up(x)), with gate and up from one product."""

    def __init__(self, gate_and_up: Callable[[torch.Tensor], torch.Tensor], down: nn.Module, activation: str) -> None:
        """Put the parts together; ``down`` may be DeepSpeed's, which reduces over the ranks."""
        self._gate_and_up, self._down, self._activation = gate_and_up, down, activation

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Compute [..., C] from [..., C]."""
        result: torch.Tensor = self._down(gate(self._gate_and_up(values), self._activation))
        return result


class Rotation:
    """Takes the place of a modeling file's rotation of queries and keys."""

    def __init__(self, own: Callable[..., Any], *, may_be_partial: bool, is_delayed: bool = False) -> None:
        """Keep the original for what the kernel does not serve.

        Args:
            is_delayed: whether an attention that can rotate is to do it. The caller must do nothing with queries and
                keys but pass them on.
        """
        self._own, self._may_be_partial, self._is_delayed = own, may_be_partial, is_delayed

    def delayed(self) -> "Rotation":
        """Return the rotation that leaves the work to the attention."""
        return Rotation(self._own, may_be_partial=self._may_be_partial, is_delayed=True)

    def __call__(self, q: Any, k: Any, cos: Any, sin: Any, *rest: Any, **options: Any) -> Any:
        """Rotate [1, H, T, D] by angles [1, T, R]."""
        if rest or options or not self._serves(q, k, cos, sin):
            return self._own(q, k, cos, sin, *rest, **options)
        query, key = q[0].transpose(0, 1), k[0].transpose(0, 1)
        if self._is_delayed and (attend := rotating()) is not None:
            attend.rotate_next(DelayedRotation(query, key, cos[0], sin[0]))
            return q, k
        query, key = rotate(query, key, cos[0], sin[0])
        return query.transpose(0, 1)[None], key.transpose(0, 1)[None]

    def _serves(self, q: Any, k: Any, cos: Any, sin: Any) -> bool:
        tensors, size, num_angles = (q, k, cos, sin), q.shape[-1], cos.shape[-1]
        return bool(
            q.dim() == k.dim() == 4
            and cos.dim() == sin.dim() == 3
            and all(len(tensor) == 1 and tensor.stride(-1) == 1 and tensor.dtype == q.dtype for tensor in tensors)
            and k.shape[-1] == size
            and num_angles % 2 == 0
            and (num_angles == size or (self._may_be_partial and num_angles < size))
        )


def with_rotation(attention: Any, rotation: Rotation) -> Callable[..., Any]:
    """Return the forward of an attention, but with another rotation. Others that use its modeling file keep theirs."""
    own: Any = type(attention).forward
    names = {**own.__globals__, ROTATION: rotation}
    forward = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return types.MethodType(forward, attention)


class AddingLayer:
    """A decoder layer whose first addition of the residual is part of the norm that follows it."""

    def __init__(self, layer: Any, norm: Norm) -> None:
        """Compute what ``layer`` does: attention after a norm, MLP after a norm, each added to its input.

        Args:
            norm: the one before the MLP.
        """
        self._layer, self._norm = layer, norm
        _, *parameters = inspect.signature(type(layer).forward).parameters.values()
        named = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        self._names = [parameter.name for parameter in named]
        self._defaults = {each.name: each.default for each in named if each.default is not each.empty}

    def __call__(self, *positional: Any, **options: Any) -> torch.Tensor:
        """Compute [..., C] from [..., C]; the attention gets all other arguments, as from the layer."""
        options = {**self._defaults, **dict(zip(self._names, positional, strict=False)), **options}
        values = options.pop("hidden_states")
        attended, _ = self._layer.self_attn(hidden_states=self._layer.input_layernorm(values), **options)
        normed, summed = self._norm.after_adding(attended, values)
        result: torch.Tensor = summed + self._layer.mlp(normed)
        return result

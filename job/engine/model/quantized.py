"""Linear layers in 8 bits, made of those of a model that was cut: each rank quantizes what it holds.

``fp8``: weights and activations in e4m3, one scale for each row of a weight and for each token (Micikevicius et al.
2022, "FP8 formats for deep learning"; the recipe of vLLM's dynamic quantization). The product is ``torch._scaled_mm``,
which GPUs have from compute capability 8.9 on.
``int8``: weights alone, with one scale for ``GROUP`` values; a layer is dequantized while it is used. This halves the
memory of 16-bit weights and is slower.

No scale depends on another row of a batch, so that a row's numbers do not. What is not finite stays so: a scale of it
is not finite either.

Letters: M tokens, K inputs, N outputs.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn

from job.engine.model.fp8 import MULTIPLE, from_fp8, product_dtype, scaled_product, to_fp8

GROUP = 64
"""Values with one scale in int8, where the inputs are a multiple of it; else each row has one scale."""

PART = 2**22
"""Weights that are quantized at once, or 16 rows: it takes several copies of them in float32."""


class QuantizedLinear(nn.Module):
    """A linear layer, of which this rank may have some inputs only. Its tensors are on the device already."""

    weight_q: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        values: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        num_inputs: int,
        num_outputs: int,
        dtype: torch.dtype,
        group: Any = None,
    ) -> None:
        """Hold a weight in 8 bits.

        Args:
            values: of the weight, as the class says.
            scale: by which they are to be multiplied, as the class says.
            bias: [N] in the run's dtype.
            num_inputs: K, without what is filled up; ``num_outputs`` is N.
            dtype: the run's, in which activations come and go.
            group: the processes over which results are summed, because each has some inputs only.
        """
        super().__init__()
        self.in_features, self.out_features = num_inputs, num_outputs
        self.dtype, self._group = dtype, group
        self.register_buffer("bias", bias, persistent=False)
        self.weight_q = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def of(cls, linear: Any, device: torch.device, dtype: torch.dtype) -> Self:
        """Quantize torch's layer, or one of AutoTP's, whose weight may be a view of a mapped file."""
        weight = linear.weight.detach().to(device)
        bias = None if linear.bias is None else linear.bias.detach().to(device).to(dtype)
        group = linear.mp_group if type(linear).__name__ == "LinearAllreduce" else None
        num_outputs, num_inputs = weight.shape
        rows = max(1, PART // num_inputs // MULTIPLE) * MULTIPLE
        parts = [cls.quantized(part, dtype) for part in torch.split(weight, rows)]
        values, scale = (torch.cat(list(tensors)) for tensors in zip(*parts, strict=True))
        return cls(values, scale, bias, num_inputs=num_inputs, num_outputs=num_outputs, dtype=dtype, group=group)

    @classmethod
    def merged(cls, layers: "Sequence[QuantizedLinear]") -> "QuantizedLinear":
        """Return layers of one input as one; see ``may_merge``. Each keeps its own scales.

        The tensors of the layers become views of the merged ones, so that they take no memory twice.
        """
        first, sizes = layers[0], [layer.out_features for layer in layers]
        values, scale = (torch.cat([getattr(layer, name).data for layer in layers]) for name in ("weight_q", "scale"))
        bias = None if first.bias is None else torch.cat([layer.bias for layer in layers if layer.bias is not None])
        for layer, rows, scales in zip(layers, torch.split(values, sizes), torch.split(scale, sizes), strict=True):
            layer.weight_q.data, layer.scale = rows, scales
        if bias is not None:
            for layer, part in zip(layers, torch.split(bias, sizes), strict=True):
                layer.bias = part
        num_inputs, dtype = first.in_features, first.dtype
        return type(first)(values, scale, bias, num_inputs=num_inputs, num_outputs=sum(sizes), dtype=dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Stay in place: a cast of the whole model must not reach the tensors here."""
        return self

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply [..., K] to [..., N], summed over the ranks if each has a part of the inputs."""
        result = self._product(values.reshape(-1, self.in_features)).reshape(*values.shape[:-1], self.out_features)
        if self._group is not None:
            dist.all_reduce(result, group=self._group)
        return result if self.bias is None else result + self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The weight [N, K] in the run's dtype, made anew: some models read those of their layers (T5, MLA)."""
        return self.dequantized()

    @property
    def num_params(self) -> int:
        """How many weights there are."""
        return self.in_features * self.out_features

    @property
    def num_bytes(self) -> int:
        """What they take, with their scales."""
        return self.weight_q.nbytes + self.scale.nbytes

    def input_like(self) -> torch.Tensor:
        """Return an empty tensor [0, K] with the dtype and the device of what the layer takes."""
        return torch.empty(0, self.in_features, dtype=self.dtype, device=self.weight_q.device)

    @classmethod
    def quantized(cls, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a weight [N, K] of any dtype in 8 bits, and its scales."""
        raise NotImplementedError

    def dequantized(self) -> torch.Tensor:
        """Return the weight [N, K] in the run's dtype."""
        raise NotImplementedError

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply [M, K] to [M, N]."""
        raise NotImplementedError


class Float8Linear(QuantizedLinear):
    """Weights and activations in fp8; ``weight_q`` is [N, K], filled up, ``scale`` [N, 1] float32."""

    @classmethod
    def quantized(cls, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``QuantizedLinear``."""
        return to_fp8(nn.functional.pad(weight, (0, -weight.shape[1] % MULTIPLE, 0, -weight.shape[0] % MULTIPLE)))

    rounds_activations = True
    """False while what surrounds the layers is compared: see ``exact_activations``."""

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        if not self.rounds_activations:
            return nn.functional.linear(values, self.dequantized())
        if self.in_features % MULTIPLE:
            values = nn.functional.pad(values, (0, -self.in_features % MULTIPLE))
        values_q, scale = to_fp8(values)
        dtype = product_dtype(self.dtype, values.device)
        product = scaled_product(values_q, self.weight_q, scale, self.scale, dtype)
        return product[:, : self.out_features].contiguous().to(self.dtype)

    def dequantized(self) -> torch.Tensor:
        """See ``QuantizedLinear``."""
        return from_fp8(self.weight_q, self.scale, self.dtype)[: self.out_features, : self.in_features]


class Int8Linear(QuantizedLinear):
    """Weights in int8; ``weight_q`` is [N, K / group, group], ``scale`` [N, K / group, 1] in the run's dtype."""

    @classmethod
    def quantized(cls, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``QuantizedLinear``."""
        return to_int8(weight, dtype)

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.dequantized())

    def dequantized(self) -> torch.Tensor:
        """See ``QuantizedLinear``."""
        return from_int8(self.weight_q, self.scale)


LAYERS: dict[str, type[QuantizedLinear]] = {"fp8": Float8Linear, "int8": Int8Linear}


@contextlib.contextmanager
def exact_activations(model: nn.Module) -> Iterator[None]:
    """Let the layers of a model take activations as they are, for comparisons of two ways to compute what is between.

    Otherwise a difference in the last bit, which makes another number in fp8 of one that lies between two, would grow
    to that of a whole step, and change the expert that a router chooses.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Float8Linear)]
    try:
        for layer in layers:
            layer.rounds_activations = False
        yield
    finally:
        for layer in layers:
            layer.rounds_activations = True


def may_merge(layers: Sequence[QuantizedLinear]) -> bool:
    """Whether layers, which have the same input, may be merged: none sums over ranks, and none is filled up."""
    kinds = {
        (
            type(layer),
            layer.in_features,
            layer.weight_q.shape[1:],
            layer.dtype,
            layer.weight_q.device,
            layer.bias is None,
        )
        for layer in layers
    }
    return len(kinds) == 1 and all(
        layer._group is None and len(layer.weight_q) == layer.out_features for layer in layers
    )


def to_int8(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [..., C] values as integers [..., C / group, group], and their scales [..., C / group, 1] in a dtype."""
    group = GROUP if values.shape[-1] % GROUP == 0 else values.shape[-1]
    wide = values.float().reshape(*values.shape[:-1], -1, group)
    # float16's smallest number, not its smallest normal one: many scales lie between them.
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp_min(smallest).to(dtype)
    return (wide / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


def from_int8(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Undo ``to_int8``, but for what was rounded."""
    return (values.to(scale.dtype) * scale).flatten(-2)

"""Experts in 8 bits: the 3-D tensors of a module of experts, of which a token uses a few.

Weights alone are quantized, with a scale for each expert and output (fp8) or group of inputs (int8). On a CPU, each
expert that is used is dequantized for its product. On a GPU, all experts of a layer are, for transformers' grouped
product, since a loop over those that are used would wait for the device in each layer.

Letters: E experts, N outputs, K inputs.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from job.engine.model.experts import Layout
from job.engine.model.fp8 import from_fp8, to_fp8
from job.engine.model.quantized import from_int8, to_int8


class QuantizedExperts(nn.Module):
    """A tensor [E, N, K], or [E, K, N] if ``is_transposed``, in 8 bits. It is read as a tensor is: by expert."""

    def __init__(self, values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, *, is_transposed: bool) -> None:
        """Hold what ``to_fp8`` or ``to_int8`` return for [E, N, K]; ``dtype`` is the run's."""
        super().__init__()
        self.dtype, self.is_transposed = dtype, is_transposed
        self.register_buffer("values_q", values, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def of(
        cls, tensor: torch.Tensor, scheme: str, device: torch.device, dtype: torch.dtype, *, is_transposed: bool
    ) -> "QuantizedExperts":
        """Quantize a tensor, expert by expert, so that no copy of it is made. It may be on the host."""
        values: list[torch.Tensor] = []
        scales: list[torch.Tensor] = []
        for expert in tensor.detach():
            expert = expert.to(device)
            expert = (expert.t() if is_transposed else expert).contiguous()
            quantized, scale = to_fp8(expert) if scheme == "fp8" else to_int8(expert, dtype)
            values.append(quantized)
            scales.append(scale)
        return cls(torch.stack(values), torch.stack(scales), dtype, is_transposed=is_transposed)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Stay in place: a cast of the whole model must not reach the tensors here."""
        return self

    @property
    def num_bytes(self) -> int:
        """What the weights take, with their scales."""
        return self.get_buffer("values_q").nbytes + self.get_buffer("scale").nbytes

    @property
    def num_params(self) -> int:
        """How many weights there are."""
        return self.get_buffer("values_q").numel()

    def __getitem__(self, idx: Any) -> torch.Tensor:
        """Return an expert, or several, in the run's dtype."""
        values, scale = self.get_buffer("values_q")[idx], self.get_buffer("scale")[idx]
        whole = from_int8(values, scale) if values.dtype == torch.int8 else from_fp8(values, scale, self.dtype)
        return whole.transpose(-1, -2) if self.is_transposed else whole


def quantize_experts(module: Any, layout: Layout, scheme: str, device: torch.device, dtype: torch.dtype) -> None:
    """Quantize a module of experts in place. Its own forward stays, and so do its hooks."""
    names = (layout.first, "down_proj")
    for name in names:
        tensor = getattr(module, name).data
        delattr(module, name)
        experts = QuantizedExperts.of(tensor, scheme, device, dtype, is_transposed=layout.is_transposed)
        setattr(module, name, experts)
    own = getattr(type(module).forward, "__wrapped__", None)  # that takes one expert after the other
    module.forward = _whole(module, names) if own is None or device.type == "cuda" else types.MethodType(own, module)


def _whole(module: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return a forward that finds whole tensors in place of quantized ones, all experts of the layer."""

    def forward(*positional: Any, **options: Any) -> Any:
        parts = {name: module._modules.pop(name) for name in names}
        vars(module).update({name: part[:] for name, part in parts.items()})
        try:
            return type(module).forward(module, *positional, **options)
        finally:
            for name in names:
                del vars(module)[name]
            module._modules.update(parts)

    return forward

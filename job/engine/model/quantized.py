"""Quantizes the linear layers of a model in 8 bits, after it was cut: each rank quantizes what it holds.

``fp8``: weights and activations in e4m3, one scale for each row of a weight and for each token (Micikevicius et al.
2022, "FP8 formats for deep learning"; the recipe of vLLM's dynamic quantization). The product is ``torch._scaled_mm``,
which GPUs have from compute capability 8.9 on.
``int8``: weights alone, with one scale for ``GROUP`` values; a layer is dequantized while it is used. This halves the
memory of 16-bit weights and is slower.

Embeddings, output layer, norms, routers and experts in one tensor stay as they are: half of all changed tokens came
from an output layer in fp8, and a router that changes its mind changes a whole layer.

Letters: M tokens, K inputs, N outputs.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from job.errors import UsageError

GROUP = 64
"""Values with one scale in int8, where the inputs are a multiple of it; else each row has one scale."""

FP8, LARGEST = torch.float8_e4m3fn, torch.finfo(torch.float8_e4m3fn).max
MULTIPLE = 16
"""Of which both sizes of a weight must be, for the product in fp8."""

MIN_CAPABILITY = (8, 9)
"""Of a GPU that multiplies in fp8."""

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)$")


class QuantizedLinear(nn.Module):
    """A linear layer, of which this rank may have some inputs only. Its tensors are on the device already."""

    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take over a layer.

        Args:
            linear: torch's layer, or one of AutoTP's.
            weight: its weight, [N, K] in the run's dtype on the device.
            bias: its bias, [N].
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self._group = linear.mp_group if _sums_over_ranks(linear) else None
        self.register_buffer("bias", bias, persistent=False)
        values, scale = self._quantize(weight)
        self.weight_q = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Stay in place: a cast of the whole model must not reach the tensors here."""
        return self

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply [..., K] to [..., N], summed over the ranks if each has a part of the inputs."""
        result = self._product(values.reshape(-1, self.in_features)).reshape(*values.shape[:-1], self.out_features)
        if self._group is not None:
            dist.all_reduce(result, group=self._group)
        return result if self.bias is None else result + self.bias

    def input_like(self) -> torch.Tensor:
        """Return an empty tensor [0, K] with the dtype and the device of what the layer takes."""
        return torch.empty(0, self.in_features, dtype=self.dtype, device=self.weight_q.device)

    def _quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a weight in 8 bits, and its scales."""
        raise NotImplementedError

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply [M, K] to [M, N]."""
        raise NotImplementedError


class Float8Linear(QuantizedLinear):
    """Weights and activations in fp8; ``weight_q`` is [N, K], ``scale`` [N, 1] float32."""

    def _quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return to_fp8(weight)

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        values_q, scale = to_fp8(values)
        # On a GPU, the product does not come out in float32 (torch 2.13: "only bf16 and fp16 high precision output").
        dtype = torch.bfloat16 if values.is_cuda and self.dtype == torch.float32 else self.dtype
        product = torch._scaled_mm(
            values_q, self.weight_q.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=dtype, use_fast_accum=False
        )
        return product.to(self.dtype)


class Int8Linear(QuantizedLinear):
    """Weights in int8; ``weight_q`` is [N, K / group, group], ``scale`` [N, K / group, 1] in the run's dtype."""

    def _quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        group = GROUP if weight.shape[1] % GROUP == 0 else weight.shape[1]
        wide = weight.float().reshape(len(weight), -1, group)
        scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(weight.dtype).tiny).to(weight.dtype)
        return (wide / scale.float()).round().clamp(-127, 127).to(torch.int8), scale

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.dequantized())

    def dequantized(self) -> torch.Tensor:
        """Return the weight [N, K] in the run's dtype."""
        return (self.weight_q.to(self.dtype) * self.scale).flatten(1)


LAYERS: dict[str, type[QuantizedLinear]] = {"fp8": Float8Linear, "int8": Int8Linear}


def to_fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [R, C] values in e4m3, and one scale [R, 1] float32 for each row by which they are to be multiplied."""
    wide = values.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def quantize(model: nn.Module, scheme: str, device: torch.device, dtype: torch.dtype) -> None:
    """Replace linear layers of a model by quantized ones on the device, one after the other.

    Args:
        model: on the host, cut by AutoTP. Its weights may be views of mapped files.
        scheme: one of ``LAYERS``.
        dtype: the run's, in which activations come and go.

    Raises:
        UsageError: no layer can be quantized.
    """
    num_quantized = 0
    with torch.inference_mode():
        for parent, name, linear in list(_linears(model)):
            if scheme == "fp8" and any(size % MULTIPLE for size in linear.weight.shape):
                continue
            weight = linear.weight.detach().to(device).to(dtype).contiguous()
            bias = None if linear.bias is None else linear.bias.detach().to(device).to(dtype)
            setattr(parent, name, LAYERS[scheme](linear, weight, bias))
            num_quantized += 1
    if not num_quantized:
        raise UsageError(
            f"--quantize {scheme}: {type(model).__name__} has no linear layer that can be quantized"
            + (f" (in fp8, both sizes of a weight are multiples of {MULTIPLE})." if scheme == "fp8" else ".")
            + " Leave it out, with a new --output."
        )


def check_device(scheme: str, device: torch.device) -> None:
    """Check that a device can compute in a scheme.

    Raises:
        UsageError: it cannot.
    """
    if scheme == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        raise UsageError(
            f"--quantize fp8 needs a GPU of compute capability {'.'.join(map(str, MIN_CAPABILITY))} or more (Ada, "
            f"Hopper, Blackwell); {torch.cuda.get_device_name(device)} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}. Use --quantize int8, or leave it out."
        )


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield the linear layers inside of lists of layers, but routers, each with its parent and its name there."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    seen: set[int] = set()
    for layers in lists:
        for parent in layers.modules():
            for name, child in parent.named_children():
                if id(child) not in seen and _is_linear(child) and not ROUTER.search(name):
                    seen.add(id(child))
                    yield parent, name, child


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer as torch or AutoTP make it, and nothing more."""
    return type(module) is nn.Linear or (
        type(module).__module__.startswith("deepspeed.")
        and type(module).__name__ in ("LinearLayer", "LinearAllreduce")
        and not getattr(module, "gather_output", False)
    )


def _sums_over_ranks(linear: nn.Module) -> bool:
    return type(linear).__name__ == "LinearAllreduce"

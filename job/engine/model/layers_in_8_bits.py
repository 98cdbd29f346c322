"""Replaces layers of a model by quantized ones: which, one after the other, and how much of the model that was.

Embeddings, the output layer, norms and routers stay as they are: half of all changed tokens came from an output layer
in fp8, and a router that changes its mind changes a whole layer.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from job.engine.model.experts import Layout, layout_of, num_experts
from job.engine.model.quantized import LAYERS, QuantizedLinear
from job.engine.model.quantized_experts import QuantizedExperts, quantize_experts
from job.errors import UsageError

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)$")


def expert_quantizer(scheme: str | None, device: torch.device, dtype: torch.dtype) -> Callable[[Any, Layout], None]:
    """Return what quantizes a module of experts in place; nothing is done to it if ``scheme`` is None."""

    def quantize_module(module: Any, layout: Layout) -> None:
        if scheme is not None:
            quantize_experts(module, layout, scheme, device, dtype)

    return quantize_module


def quantize(model: nn.Module, scheme: str, device: torch.device, dtype: torch.dtype) -> str:
    """Replace layers of a model by quantized ones on the device, one after the other.

    Args:
        model: on the host, cut by AutoTP. Its weights may be views of mapped files; experts may be quantized already.
        scheme: one of ``LAYERS``.
        dtype: the run's, in which activations come and go.

    Returns:
        How much of this process's weights that was, for the user.

    Raises:
        UsageError: no layer can be quantized.
    """
    quantize_module = expert_quantizer(scheme, device, dtype)
    has_dense_experts = False
    with torch.no_grad():
        for parent, name in list(_linears(model)):  # not the layers: what is replaced is to be freed
            setattr(parent, name, LAYERS[scheme].of(getattr(parent, name), device, dtype))
        count = num_experts(model.config) if hasattr(model, "config") else None
        for module in [part for part in model.modules() if not isinstance(part, QuantizedLinear)]:
            try:
                layout = layout_of(module, count)
            except UsageError:  # its layout is unknown
                has_dense_experts = True
                continue
            if layout is not None:
                quantize_module(module, layout)
    parts = [part for part in model.modules() if isinstance(part, QuantizedLinear | QuantizedExperts)]
    if not parts:
        raise UsageError(
            f"--quantize {scheme}: {type(model).__name__} has no linear layer that can be quantized. "
            "Leave it out, with a new --output."
        )
    named = str(dtype).removeprefix("torch.")
    dense_experts = f"; experts stay in {named}, since their layout is unknown" if has_dense_experts else ""
    is_slower = scheme == "int8" or device.type == "cpu"
    speed = f"; products are slower than in {named}" if is_slower else ""
    return f"{_shares(model, parts, scheme, dtype)}{speed}{dense_experts}"


def _shares(model: nn.Module, parts: list[QuantizedLinear | QuantizedExperts], scheme: str, dtype: torch.dtype) -> str:
    """Say how many weights are quantized, and what all weights take."""
    in_parts = {id(parameter) for part in parts for parameter in part.parameters()}
    others = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in in_parts)
    quantized = sum(part.num_params for part in parts)
    dense = (others + quantized) * dtype.itemsize
    held = others * dtype.itemsize + sum(part.num_bytes for part in parts)
    share = quantized / (others + quantized)
    return f"{share:.0%} of the weights are in {scheme}: {held / 1e6:,.0f} MB in place of {dense / 1e6:,.0f}"


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the parent and the name there of all linear layers inside of lists of layers, but routers."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    seen: set[int] = set()
    for layers in lists:
        for parent in layers.modules():
            for name, child in parent.named_children():
                if id(child) not in seen and _is_linear(child) and not ROUTER.search(name):
                    seen.add(id(child))
                    yield parent, name


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer as torch or AutoTP make it, and nothing more."""
    if type(module) is nn.Linear or type(module).__name__ == "FalconLinear":  # which is one, by other operations
        return True
    return (
        type(module).__module__.startswith("deepspeed.")
        and type(module).__name__ in ("LinearLayer", "LinearAllreduce")
        and not getattr(module, "gather_output", False)
    )

"""Fewer and larger kernels for a model: what may be replaced is found by structure, and tried before it is used.

Each replacement is compared on random numbers with the forward of the class that it replaces. A class that computes
something else, or for which the comparison fails, stays as it is; so do layers that have hooks.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from job.engine.logits.reductions import use_largest
from job.engine.model.quantized import QuantizedLinear, may_merge
from job.engine.paged.cuda.fused_launches import largest
from job.engine.paged.cuda.fused_modules import (
    ROTATION,
    AddingLayer,
    GatedMLP,
    MergedLinear,
    Norm,
    Siblings,
    with_rotation,
)
from job.engine.paged.cuda.fused_trials import (
    activation_of,
    attentions_agree,
    input_of,
    largest_agrees,
    layers_agree,
    linears_agree,
    mlps_agree,
    rotation_for,
    scaling_of,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

QKV = ("q_proj", "k_proj", "v_proj")


def fuse(model: nn.Module) -> str:
    """Replace what can be replaced, in place; say what it was."""
    fusion = Fusion()
    with torch.no_grad():
        for kind in (fusion.norm, fusion.mlp, fusion.projections, fusion.rotation, fusion.layer):
            for module in model.modules():
                if _is_untouched(module):
                    with contextlib.suppress(torch.OutOfMemoryError):  # of merging: then nothing has been changed
                        kind(module)
        like = next(model.parameters())
        if like.is_cuda and largest_agrees(like):
            use_largest(like.device.type, largest)
            fusion.counts["choice of the largest logit"] = 1
    return ", ".join(f"{count} {kind}" for kind, count in fusion.counts.items()) or "nothing"


class Fusion:
    """Replaces the forwards of modules; each method replaces one kind, if the module is of it."""

    def __init__(self) -> None:
        """Start with nothing tried."""
        self.counts: Counter[str] = Counter()
        self._tried: dict[Hashable, Any] = {}

    def norm(self, module: Any) -> None:
        """Replace an RMSNorm."""
        weight = _only_weight(module)
        if weight is None:
            return
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if isinstance(epsilon, float):
            scaling = self._once((type(module), weight.shape, weight.dtype, epsilon), lambda: scaling_of(module))
            if scaling is not None:
                self._replace(module, Norm(module, scaling), "norms")

    def mlp(self, module: Any) -> None:
        """Replace a gated MLP; its two products become one."""
        names = set(dict(module.named_children()))
        if names == {"gate_proj", "up_proj", "down_proj", "act_fn"} and _may_merge(module.gate_proj, module.up_proj):
            first, activation_fn = module.gate_proj, module.act_fn
        elif names == {"gate_up_proj", "down_proj", "activation_fn"}:
            first, activation_fn = module.gate_up_proj, module.activation_fn
        else:
            return
        # The name alone is not enough: an option of torch's GELU decides which one it is.
        key = (type(activation_fn), repr(activation_fn))
        activation = self._once(key, lambda: activation_of(activation_fn, input_of(first).device))
        if activation is None:
            return
        gate_and_up = MergedLinear([first, module.up_proj]) if "up_proj" in names else first
        mlp = GatedMLP(gate_and_up, module.down_proj, activation)
        if self._once(_classes(module), lambda: mlps_agree(module, mlp)):
            self._replace(module, mlp, "MLPs")

    def projections(self, module: Any) -> None:
        """Merge the products that make queries, keys and values."""
        linears: list[Any] = [getattr(module, name, None) for name in QKV]
        if not _may_merge(*linears):
            return
        siblings = Siblings(MergedLinear(linears))
        forwards = [siblings.forward_of(idx) for idx in range(len(QKV))]
        if self._once(_classes(module), lambda: linears_agree(linears, forwards)):
            for linear, forward in zip(linears, forwards, strict=True):
                linear.forward = forward
            self.counts["attention projections"] += 1

    def rotation(self, module: Any) -> None:
        """Replace the rotation of an attention."""
        forward = type(module).forward
        own = getattr(forward, "__globals__", {}).get(ROTATION)
        if own is None or ROTATION not in forward.__code__.co_names:
            return
        if (like := input_of(module)) is None:
            return
        rotation = self._once((own, like.dtype), lambda: rotation_for(own, like))
        if rotation is None:
            return
        at_once, delayed = with_rotation(module, rotation), with_rotation(module, rotation.delayed())
        # Each layer is tried: some do more with their queries and keys than others of their class.
        if self._once(id(module), lambda: attentions_agree(module, at_once, delayed)):
            self._replace(module, delayed, "rotations with the storing of keys")
        else:
            self._replace(module, at_once, "rotations")

    def layer(self, module: Any) -> None:
        """Let the norm before the MLP of a decoder layer add the residual."""
        if set(dict(module.named_children())) == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            norm = vars(module.post_attention_layernorm).get("forward")
            if isinstance(norm, Norm):
                layer = AddingLayer(module, norm)
                if self._once(_classes(module), lambda: layers_agree(module, layer)):
                    self._replace(module, layer, "residual sums")

    def _replace(self, module: Any, forward: Callable[..., Any], kind: str) -> None:
        module.forward = forward
        self.counts[kind] += 1

    def _once(self, key: Hashable, attempt: Callable[[], Any]) -> Any:
        """Return what an attempt returns, or None if it fails; the same for the same key."""
        if key not in self._tried:
            try:
                self._tried[key] = attempt()
            except torch.OutOfMemoryError:  # says nothing about the class
                raise
            except Exception:  # whatever a class that was only guessed at raises
                self._tried[key] = None
        return self._tried[key]


def _is_untouched(module: Any) -> bool:
    """Whether calling a module calls the forward of its class, and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return "forward" not in vars(module) and not any(hooks)


def _only_weight(module: Any) -> torch.Tensor | None:
    """Return the weight [C] of a module that has nothing else."""
    tensors = {**module._parameters, **module._buffers}
    weight = tensors.pop("weight", None)
    has_others = module._modules or any(tensor is not None for tensor in tensors.values())
    return None if has_others or weight is None or weight.dim() != 1 or weight.dtype not in DTYPES else weight


def _may_merge(*linears: Any) -> bool:
    """Whether layers are plain products of one input, or DeepSpeed's of which each rank computes some rows; or such
    layers, quantized.
    """
    if all(isinstance(linear, QuantizedLinear) and _is_untouched(linear) for linear in linears):
        return may_merge(linears)
    return (
        all(_is_plain_product(linear) for linear in linears)
        and len({(linear.weight.shape[1], linear.weight.dtype, linear.weight.device) for linear in linears}) == 1
        and len({linear.bias is None for linear in linears}) == 1
    )


def _is_plain_product(linear: Any) -> bool:
    is_column_parallel = type(linear).__name__ == "LinearLayer" and type(linear).__module__.startswith("deepspeed.")
    if type(linear) is not nn.Linear and not is_column_parallel:
        return False
    gathers = getattr(linear, "gather_output", False)
    return _is_untouched(linear) and not gathers and linear.weight.dim() == 2 and linear.weight.dtype in DTYPES


def _classes(module: Any) -> Hashable:
    """Return what makes two modules alike: the classes of their parts, and which weights they have."""
    parts = [(name, type(part)) for name, part in module.named_modules()]
    weights = [(name, weight.shape[1:], weight.dtype) for name, weight in module.named_parameters()]
    return (*parts, *weights)

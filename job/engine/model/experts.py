"""Cuts experts, of which AutoTP leaves every process a whole copy: it cuts linear layers, and these are 3-D tensors.

Every process keeps a range of the inner dimension of all experts; what they compute is summed over the replica. The
modules of transformers say how their tensors lie. A module that does not say so is refused, never kept whole silently.

Letters: E experts, H hidden size, I inner size of an expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from job.errors import UsageError
from job.launch.replica import Replica

GRAIN = 8
"""Inner sizes are cut in multiples of this: ``grouped_mm`` on CUDA wants rows of a multiple of 16 bytes."""

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names of the number of experts in a configuration."""

INNER_SIZES = ("moe_intermediate_size", "intermediate_size")
"""Names of the inner size of an expert in a configuration, the first that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the tensors of a module of experts lie, in the words of transformers' ``use_experts_implementation``."""

    has_gate: bool = True
    """Whether the first product is the gate's, too: ``gate_up_proj`` [E, 2I, H] in place of ``up_proj`` [E, I, H]."""
    has_bias: bool = False
    is_transposed: bool = False
    """Whether the last two dimensions are the other way around."""
    is_concatenated: bool = True
    """Whether the gate is before the values; otherwise they alternate."""
    has_post_expert_norm: bool = False
    """Whether the result of each expert is normalized, which cannot be done to its parts."""

    @property
    def first(self) -> str:
        """The name of the tensor of the first product."""
        return "gate_up_proj" if self.has_gate else "up_proj"


FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
LAYOUTS = {"Llama4TextExperts": Layout(is_transposed=True)}
"""Of classes that do not say it."""


def num_experts(config: Any) -> int | None:
    """Return the number of experts of a layer, from transformers' configuration; None if there are none."""
    text = config.get_text_config()
    counts = (getattr(text, name, None) for name in EXPERT_COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 1), None)


def one_after_the_other(config: Any, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why a GPU computes experts one after the other, for which the host waits in each layer, so that no step
    can be recorded; None if it computes them at once, or there are none.

    ``torch.nn.functional.grouped_mm`` does that in bfloat16 on Hopper and Blackwell (compute capabilities 9 and 10)
    alone. Else it copies the borders of the groups to the host (torch 2.13, ``_grouped_mm_fallback``).
    """
    if device.type != "cuda" or num_experts(config) is None:
        return None
    if torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return "on this GPU, torch computes experts one after the other, and waits for each layer"
    if dtype == torch.bfloat16:
        return None
    named = str(dtype).removeprefix("torch.")
    return f"in {named}, torch computes experts one after the other; in bfloat16, all at once (--dtype bfloat16)"


def check_experts(config: Any, tensor_parallel_size: int) -> None:
    """Check from the configuration that every process can have a part of each expert, in whole grains.

    Raises:
        UsageError: there are too many processes, or the inner size is odd.
    """
    text = config.get_text_config()
    inner = next((size for name in INNER_SIZES if isinstance(size := getattr(text, name, None), int)), None)
    if num_experts(config) is None or inner is None or (inner % GRAIN == 0 and inner // GRAIN >= tensor_parallel_size):
        return
    most = inner // GRAIN if inner % GRAIN == 0 else 1
    raise UsageError(
        f"--tensor-parallel-size is {tensor_parallel_size}, but the experts of the model have an inner size of "
        f"{inner}, and each process needs a part of it that is a multiple of {GRAIN}. Use {most}"
        + (" or less." if most > 1 else ".")
    )


def share_of(inner: int, rank: int, size: int) -> tuple[int, int]:
    """Return the first index and the length of a process's range: near even, in whole grains where they divide it.

    >>> share_of(768, 0, 2), share_of(24, 0, 2), share_of(10, 1, 2)
    ((0, 384), (0, 8), (5, 5))
    """
    grain = GRAIN if inner % GRAIN == 0 else 1
    first, end = (idx * (inner // grain) // size * grain for idx in (rank, rank + 1))
    return first, end - first


def shard_experts(
    model: Any,
    replica: Replica,
    place: Callable[[torch.Tensor], torch.Tensor],
    quantize: Callable[[Any, Layout], None] = lambda module, layout: None,
) -> set[str]:
    """Cut all experts of a model in place. What is cut is placed at once: the host never holds a copy of the parts.

    Args:
        place: moves a view to the device and the dtype where it will be used, and makes it contiguous.
        quantize: is called for each module of experts as soon as it is placed, before the next one is.

    Returns:
        The names of the parameters that are not what they were.

    Raises:
        UsageError: the model has experts whose layout is unknown.
    """
    changed = set()
    count = num_experts(model.config)
    for name, module in list(model.named_modules()):
        layout = layout_of(module, count)
        if layout is not None:
            changed |= {f"{name}.{parameter}" for parameter in _shard(module, layout, replica, place)}
            quantize(module, layout)
    return changed


def layout_of(module: nn.Module, count: int | None) -> Layout | None:
    """Return how the experts of a module lie, or None if it has none.

    Args:
        count: the number of experts.

    Raises:
        UsageError: the layout is unknown.
    """
    tensors = {name: tensor for name, tensor in module.named_parameters(recurse=False) if tensor.dim() == 3}
    if not tensors or isinstance(module, nn.modules.conv._ConvNd):
        return None
    if "down_proj" not in tensors and all(len(tensor) != count for tensor in tensors.values()):
        return None
    flags: dict[str, Any] = {name: getattr(module, name, None) for name in FLAGS}
    known = LAYOUTS.get(type(module).__name__)
    if known is None and None not in flags.values():
        known = Layout(**flags, has_post_expert_norm=getattr(module, "has_post_expert_norm", False))
    if known is None or known.has_post_expert_norm or set(tensors) != {known.first, "down_proj"}:
        problem = "each has a norm after it" if known and known.has_post_expert_norm else "their layout is unknown"
        raise UsageError(
            f"The experts of this model ({type(module).__name__}) cannot be cut: {problem}. "
            "Use --tensor-parallel-size 1."
        )
    return known


def _shard(
    module: Any, layout: Layout, replica: Replica, place: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[str, ...]:
    inner_dim = 1 if layout.is_transposed else 2
    inner = module.down_proj.shape[inner_dim]
    rank = replica.info.tensor_parallel_rank
    first, num = share_of(inner, rank, replica.info.tensor_parallel_size)

    def cut_first(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        if layout.has_gate and layout.is_concatenated:
            halves = tensor.view(*tensor.shape[:dim], 2, inner, *tensor.shape[dim + 1 :])
            return place(halves.narrow(dim + 1, first, num)).flatten(dim, dim + 1)
        width = 2 if layout.has_gate else 1
        return place(tensor.narrow(dim, width * first, width * num))

    parts = {
        layout.first: cut_first(getattr(module, layout.first).data, 2 if layout.is_transposed else 1),
        "down_proj": place(module.down_proj.data.narrow(inner_dim, first, num)),
    }
    if layout.has_bias:
        bias = module.down_proj_bias.data
        parts[f"{layout.first}_bias"] = cut_first(getattr(module, f"{layout.first}_bias").data, 1)
        parts["down_proj_bias"] = place(bias if rank == 0 else torch.zeros_like(bias))  # the sum must have it once
    for name, tensor in parts.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    for name in ("intermediate_dim", "intermediate_size", "expert_dim"):
        if getattr(module, name, None) == inner:
            setattr(module, name, num)
    module.register_forward_hook(_sum_over(replica.tensor_group))
    return tuple(parts)


def _sum_over(group: Any) -> Callable[..., torch.Tensor]:
    """Return a hook that sums a module's result over a group, on the model's own stream as AutoTP's layers do."""

    def add_up(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(output, group=group)
        return output

    return add_up

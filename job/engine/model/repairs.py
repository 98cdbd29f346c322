"""What AutoTP of DeepSpeed 0.19.8 leaves undone or does wrong with transformers 5: a policy before it cuts a model, and
repairs after it. Each was proved necessary (fp32, two processes, random weights, against the whole model).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from job.engine.model.experts import Layout, shard_experts
from job.engine.model.tensor_parallel import Cut, cut_of
from job.launch.replica import Replica

Policy = dict[type[nn.Module], tuple[str, ...]]
"""DeepSpeed's ``injection_policy``: the classes to cut, and the layers in them whose results are summed."""


class _NoModule(nn.Module):
    """A class that no model has: DeepSpeed needs a policy to leave the layers alone, and then cuts the output layer."""


def policy_of(model: Any) -> Policy | None:
    """Return what DeepSpeed is to cut. None: what it finds itself, by the names of layers.

    Where its cut of attention would be wrong, MLPs alone are cut, and every process computes the attention whole.
    """
    if cut_of(model.config) is not Cut.NO_ATTENTION:
        return None
    policy: Policy = {type(mlp): (f".{down}",) for mlp, down in mlps_of(model)}
    return policy or {_NoModule: ("",)}


def mlps_of(model: Any) -> Iterator[tuple[nn.Module, str]]:
    """Yield all MLPs, found by the shapes of their layers, and the name of the last layer of each."""
    for module in model.modules():
        down = _down_projection(module)
        if down is not None:
            yield module, down


def _down_projection(module: nn.Module) -> str | None:
    """Return the name of the layer that goes back to the hidden size if a module is an MLP that may be cut."""
    parts = dict(module.named_children())
    layers = {name: part for name, part in parts.items() if isinstance(part, nn.Linear)}
    if not 2 <= len(layers) <= 3 or "Att" in type(module).__name__:
        return None
    others = [tensor for name, tensor in module.named_parameters() if name.partition(".")[0] not in layers]
    if others:  # such as a norm of all inner values, or a convolution
        return None
    *before, (down, last) = layers.items()
    for name, layer in before:
        wide = 2 * last.in_features if name == "gate_up_proj" else last.in_features
        if (layer.in_features, layer.out_features) != (last.out_features, wide):
            return None
    return down


def repair(
    model: Any,
    replica: Replica,
    place: Callable[[torch.Tensor], torch.Tensor],
    quantize_experts: Callable[[Any, Layout], None],
) -> set[str]:
    """Finish what AutoTP has cut, in place. All processes of a replica must call this together.

    Args:
        place: see ``shard_experts``.
        quantize_experts: see ``shard_experts``.

    Returns:
        The names of the parameters that are not what they were.

    Raises:
        UsageError: the model has experts that cannot be cut.
    """
    if not replica.has_followers:
        return set()
    repair_type = _REPAIRS.get(model.config.model_type)
    if repair_type is not None:
        repair_type(model, replica)
    return shard_experts(model, replica, place, quantize_experts)


class _Local:
    """A configuration of which some values are this process's. The others are read through, whenever they change.

    A copy would miss that the model's attention is replaced later.
    """

    def __init__(self, config: Any, **values: Any) -> None:
        self.__dict__.update(values, _config=config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _attentions(model: Any) -> list[Any]:
    """Return the attention of each layer, wherever the model has its layers."""
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def _count_query_heads(model: Any, replica: Replica) -> None:
    """Phi-3 finds the queries in its fused projection by the number of heads in the configuration."""
    for attention in _attentions(model):
        num_heads = attention.o_proj.weight.shape[1] // attention.head_dim
        attention.config = _Local(attention.config, num_attention_heads=num_heads)


def _cut_sinks(model: Any, replica: Replica) -> None:
    """Keep the sinks of this process's heads."""
    for attention in _attentions(model):
        num_heads = attention.q_proj.weight.shape[0] // attention.head_dim
        first, _ = _place_of(num_heads, replica)
        sinks = attention.sinks.data[first : first + num_heads].clone()
        attention.sinks = nn.Parameter(sinks, requires_grad=False)


def _cut_alibi(model: Any, replica: Replica) -> None:
    """Keep the ALiBi of this process's heads, where it has not been cut: DeepSpeed does so for padded batches."""
    attentions = _attentions(model)
    num_heads = attentions[0].num_heads
    first, total = _place_of(num_heads, replica)

    def cut(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        alibi = kwargs["alibi"].unflatten(0, (len(args[0]), -1))  # [B, heads, 1, K]
        if alibi.shape[1] == total:
            alibi = alibi[:, first : first + num_heads]
        return args, {**kwargs, "alibi": alibi.flatten(0, 1)}

    for attention in attentions:
        attention.register_forward_pre_hook(cut, with_kwargs=True)


def _place_of(num_heads: int, replica: Replica) -> tuple[int, int]:
    """Return the index of this process's first head, and the number of heads of all processes."""
    counts = replica.gather(num_heads)
    return sum(counts[: replica.info.tensor_parallel_rank]), sum(counts)


_REPAIRS: dict[str, Callable[[Any, Replica], None]] = {
    "bloom": _cut_alibi,
    "gpt_oss": _cut_sinks,
    "phi3": _count_query_heads,
}
"""By ``model_type``."""

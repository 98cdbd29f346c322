"""What of a model takes memory and time, counted on a model without weights (torch's ``meta`` device)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from job.engine.model.experts import layout_of, num_experts
from job.engine.model.precision import Precision
from job.engine.model.repairs import mlps_of
from job.engine.model.tensor_parallel import Cut, cut_of, num_kv_heads
from job.errors import UsageError

ATTENTION = re.compile(r"attn|attention")
NOT_CUT = re.compile(r"(^|\.)(gate|router)$|_a_proj|\.shared_experts\.")
"""Linear layers of which AutoTP leaves every process a copy: routers, and some of DeepSeek's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model's parameters, by what tensor parallelism does with them."""

    attention_params: int
    """Cut by key-value heads, of which a process may have one more than another."""
    linear_params: int
    """Cut evenly: the other linear layers, experts, and the output layer if it has weights of its own."""
    whole_params: int
    """Held by every process: the input embedding, norms, routers, and attention where it is not cut."""
    embedding_params: int
    """The input embedding, of which a token reads one row. Part of ``whole_params``."""
    is_tied: bool
    """Whether the output layer has the weights of the input embedding; cut in two, it needs a copy of its share."""
    idle_params: int
    """Of experts that a token does not use. Part of ``linear_params``."""
    experts_params: int
    """Of experts in one tensor, which multiply in 16 bits in any case. Part of ``linear_params``."""
    layer_experts_params: int
    """Of those, the most that one layer has."""
    num_kv_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int

    @property
    def num_params(self) -> int:
        """All parameters."""
        return self.attention_params + self.linear_params + self.whole_params

    def params_of_process(self, size: int) -> int:
        """Return how many parameters the process with the most of them holds, of ``size`` processes."""
        if size == 1:
            return self.num_params
        attention = self.attention_params * -(-self.num_kv_heads // size) // self.num_kv_heads
        linear = self.linear_params + (self.embedding_params if self.is_tied else 0)
        return attention + -(-linear // size) + self.whole_params

    def bytes_of_process(self, size: int, precision: Precision) -> int:
        """Return the bytes of what that process holds."""
        saved = self.quantized_params(size) * (precision.itemsize - precision.quantized_itemsize)
        return self.params_of_process(size) * precision.itemsize - int(saved)

    def quantized_params(self, size: int) -> int:
        """Return how many of its parameters can be quantized: those of linear layers but the output."""
        attention = self.attention_params * -(-self.num_kv_heads // size) // self.num_kv_heads
        output = 0 if self.is_tied else self.embedding_params
        return attention + max(0, self.linear_params - output) // size

    def multiplied_params(self, size: int) -> int:
        """Return the parameters of such a process with which a token is multiplied."""
        output_params = self.embedding_params if self.is_tied and size == 1 else 0
        idle_params = -(-self.idle_params // size)
        return self.params_of_process(size) - self.embedding_params - idle_params + output_params


def shape_of(
    config: Any, auto_class: str = "AutoModelForCausalLM", *, trust_remote_code: bool = False
) -> ModelShape | None:
    """Return the shape of the model with this configuration of transformers; None if that cannot be known.

    The model is built as it would be for loading, but on a device that has no memory, which takes less than a second.
    """
    import transformers

    try:
        with torch.device("meta"):
            model = getattr(transformers, auto_class).from_config(config, trust_remote_code=trust_remote_code)
            return _measure(model, config)
    except (UsageError, ValueError, TypeError, AttributeError, ImportError, KeyError, RuntimeError, OSError):
        return None  # of code that comes with the model, or of a library that is not installed: a run will report it


def _measure(model: Any, config: Any) -> ModelShape:
    text, heads = config.get_text_config(), num_kv_heads(config)
    embedding, output = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    attention = 0
    count = num_experts(config)
    experts = [_num_params(module) for module in model.modules() if _are_experts(module, count)]
    linear = sum(experts)
    for name, module in _layers_to_cut(model, config):
        if module.weight is embedding:
            continue
        if ATTENTION.search(name):
            attention += _num_params(module)
        else:
            linear += _num_params(module)
    total = sum(parameter.numel() for parameter in model.parameters())
    hidden = text.hidden_size
    return ModelShape(
        attention_params=attention,
        linear_params=linear,
        whole_params=total - attention - linear,
        embedding_params=embedding.numel(),
        is_tied=output is embedding,
        idle_params=_idle_params(model, text),
        experts_params=sum(experts),
        layer_experts_params=max(experts, default=0),
        num_kv_heads=heads,
        hidden_size=hidden,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * hidden,
        vocab_size=text.vocab_size,
    )


def _layers_to_cut(model: Any, config: Any) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Yield the linear layers that AutoTP cuts, with their names."""
    if cut_of(config) is Cut.NO_ATTENTION:
        output = model.get_output_embeddings()
        roots = [("mlp", mlp) for mlp, _ in mlps_of(model)] + ([] if output is None else [("output", output)])
    else:
        roots = [("", model)]
    for prefix, root in roots:
        for name, module in root.named_modules(prefix=prefix):
            if isinstance(module, torch.nn.Linear) and not NOT_CUT.search(name):
                yield name, module


def _are_experts(module: torch.nn.Module, count: int | None) -> bool:
    try:
        return layout_of(module, count) is not None
    except UsageError:  # they cannot be cut, and are held whole by one process
        return False


def _num_params(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _idle_params(model: Any, text: Any) -> int:
    """Return the parameters of the experts that a token does not use."""
    num, num_used = num_experts(text), getattr(text, "num_experts_per_tok", None)
    if not num or not num_used:
        return 0
    of_experts: int = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    return of_experts * int(num - num_used) // num

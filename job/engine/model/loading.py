"""Load a model and shard it over the replica's processes. The only place that calls ``deepspeed.init_inference``.

The recipe (each step proved necessary with DeepSpeed 0.19.8):
1. ``from_pretrained`` in the dtype of the checkpoint: safetensors stay memory-mapped, so all ranks of a node share the
   pages, and only what is used is read. A cast here would give every rank a private copy of the model.
2. Shard in that dtype, with both ``mpu`` and ``tp_group``: with only one, DeepSpeed shards over the wrong processes or
   not at all. Kernel injection is never used: it gives wrong tokens or crashes with current transformers.
   ``keep_module_on_host`` makes AutoTP cut without copying: a slice is a view of the mapped file.
3. Move tensor by tensor to the device and to the run's dtype: at no time does a rank hold more on the host than one
   tensor. Then restore the float buffers (rotary frequencies): the casts, DeepSpeed's among them, change them, too,
   which alone changes 1.6 % of the tokens of a bfloat16 model.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch

from job.config import ModelConfig
from job.engine.failures import is_out_of_memory
from job.engine.model.deepspeed_setup import import_deepspeed, quiet_stdout
from job.engine.model.info import ModelInfo
from job.engine.model.kv_size import stored_dtype
from job.errors import JobError, UsageError, first_line
from job.launch.activity import doing
from job.launch.replica import Replica
from job.remote.model_code import code_options, why_unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, ready to generate."""

    module: Any
    """The sharded transformers model, in eval mode. Its ``generate`` is transformers' own."""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    dtype: torch.dtype
    cache_dtype: torch.dtype | None = None
    """Of stored keys and values. None: ``dtype``."""


def load_model(
    config: ModelConfig, info: ModelInfo, replica: Replica, stop_token_ids: Sequence[int], *, verbose: bool = False
) -> LoadedModel:
    """Load and shard a model. Every process of the launch must call this at the same time.

    Args:
        stop_token_ids: the tokenizer's end-of-sequence ids.
        verbose: let DeepSpeed write to stderr.

    Raises:
        JobError: the weights cannot be loaded, here or on another process.
    """
    dtype = getattr(torch, info.dtype)
    failure, model = None, None
    try:
        info.files.fetch(info.weights)
        doing(f"reading the weights of {config.model}")
        with _counting_tensors(config.model):
            model = _read_weights(config, info)
    except JobError as error:
        failure = error
    doing("waiting until every process has read the weights")
    replica.check_world(failure)  # the next steps are collective: every process must take part
    assert model is not None
    kept = _tensors_to_keep(model)
    eos_token_ids = _eos_token_ids(model, stop_token_ids)
    doing(f"sharding the model and moving it to {replica.device}")
    with _reporting_out_of_memory(config, replica.device):
        if model.dtype not in _computable_dtypes(replica.device):  # only in these does DeepSpeed shard
            model.to(dtype)
        model.eval().requires_grad_(False)
        model = _shard(model, replica, verbose=verbose)
        _move(model, replica.device, dtype)
        _put_back(model, kept)
    return LoadedModel(
        module=model,
        eos_token_ids=eos_token_ids,
        pad_token_id=eos_token_ids[0] if eos_token_ids else 0,
        dtype=dtype,
        cache_dtype=getattr(torch, stored_dtype(config.kv_cache_dtype, info.dtype)),
    )


@contextlib.contextmanager
def _reporting_out_of_memory(config: ModelConfig, device: torch.device) -> Iterator[None]:
    """Report in one line that a model does not fit into memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(
            f"--model {config.model} does not fit into the memory of {device}: {first_line(error)} "
            "Use a larger --tensor-parallel-size, so that each process holds less of it."
        ) from error


@contextlib.contextmanager
def _counting_tensors(name: str) -> Iterator[None]:
    """Follow how far transformers is, through the seam that it has for progress bars. (Some releases have none.)"""
    from transformers.utils import logging

    set_hook = getattr(logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return

    def count(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not (args and isinstance(args[0], Sized)):
            return factory(*args, **kwargs)
        return factory(counted(args[0]), *args[1:], **{"total": len(args[0]), **kwargs})

    def counted(values: Any) -> Iterator[Any]:
        for idx, value in enumerate(values):
            doing(f"reading the weights of {name}", f"{idx:,} of {len(values):,} tensors")
            yield value

    previous = set_hook(count)
    try:
        yield
    finally:
        set_hook(previous)


def _read_weights(config: ModelConfig, info: ModelInfo) -> Any:
    """Load a model on the host in the dtype of its checkpoint.

    Raises:
        UsageError: weights are missing; transformers would fill them with random numbers and only warn.
    """
    # Never let transformers ask a public service to convert pickled weights, as it does for repositories of the Hub.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            info.files.directory,
            **code_options(info.files, config.trust_remote_code),
            dtype="auto",
            attn_implementation=_attention_of(info.config),
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # OSError, SafetensorError, ValueError, ...: from reading files and building modules
        raise UsageError(
            f"--model {config.model}: the weights cannot be loaded: {why_unreadable(info.files, error)}"
        ) from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise UsageError(
            f"--model {config.model} lacks {len(lacking)} weights of {type(model).__name__}, such as {lacking[0]}. "
            "It is incomplete, or not a causal language model."
        )
    return model


def _attention_of(hf_config: Any) -> str | None:
    """Return the attention to load a model with; None is its default.

    Some releases of transformers (5.17) give Gemma 2 torch's fused attention, which ignores its soft-capping.
    """
    return "eager" if getattr(hf_config.get_text_config(), "attn_logit_softcapping", None) else None


def _tensors_to_keep(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that ``from_pretrained(dtype=...)`` would not cast, to restore them after a cast.

    These are buffers that are computed, not loaded (rotary frequencies), and tensors with another dtype on purpose.
    """
    computed = {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: tensor.detach().clone()
        for name, tensor in named
        if tensor.is_floating_point() and (name in computed or tensor.dtype != model.dtype)
    }


def _put_back(model: Any, kept: dict[str, torch.Tensor]) -> None:
    """Restore tensors by name; one that has been sharded keeps its cast values."""
    present = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in kept.items():
        if name in present and present[name].shape == tensor.shape:
            present[name].data = tensor.to(present[name].device)


def _computable_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes that DeepSpeed can shard in: those that the device computes in. Most CPUs lack float16."""
    half = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return (torch.float32, torch.bfloat16, *([torch.float16] if half else []))


def _shard(model: Any, replica: Replica, *, verbose: bool) -> Any:
    """Cut a model in place, on the host and in its own dtype."""
    deepspeed = import_deepspeed(verbose=verbose)
    options: dict[str, Any] = {"keep_module_on_host": True, "replace_with_kernel_inject": False}
    if replica.has_followers:
        size = replica.info.tensor_parallel_size
        options["tensor_parallel"] = {"tp_size": size, "tp_group": replica.tensor_group, "mpu": _Mpu(replica)}
    with quiet_stdout(verbose=verbose):  # AutoTP prints what it found, on every rank
        if replica.has_followers:
            deepspeed.init_distributed(dist_backend=replica.backend, verbose=False)  # finds the groups that torch made
        return deepspeed.init_inference(model, dtype=model.dtype, **options).module


def _move(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model, whose tensors may be views of files, to a device and a dtype: one tensor after the other.

    The cast is the device's work. Slices become contiguous: a product with columns of a larger matrix is slower.
    """

    def move(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(device)
        return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()

    model._apply(move)


class _Mpu:
    """The model-parallel unit that DeepSpeed asks for its group (a Megatron-LM interface)."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def get_model_parallel_group(self) -> Any:
        return self._replica.tensor_group

    def get_model_parallel_rank(self) -> int:
        return self._replica.info.tensor_parallel_rank

    def get_model_parallel_world_size(self) -> int:
        return self._replica.info.tensor_parallel_size


def _eos_token_ids(model: Any, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
    """Return all ids that end a completion: those of the generation config, the config and the tokenizer."""
    ids: list[int] = []
    for value in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id, *stop_token_ids):
        ids += value if isinstance(value, list) else [value] if value is not None else []
    return tuple(dict.fromkeys(ids))

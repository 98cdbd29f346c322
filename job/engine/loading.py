"""Load a model and shard it over the replica's processes. The only place that calls ``deepspeed.init_inference``.

The recipe (each step was found necessary with DeepSpeed 0.19.8):
1. ``from_pretrained`` in the dtype of the checkpoint: safetensors stay memory-mapped, so all ranks of a node share the
   pages and AutoTP copies only this rank's slices. A cast here would give every rank a private copy of the model.
2. Shard on the host in that dtype, with both ``mpu`` and ``tp_group``: with one of them DeepSpeed shards over the wrong
   processes or not at all. Kernel injection is never used: it gives wrong tokens or crashes with current transformers.
3. Cast the slices to the run's dtype, and put back the float buffers (rotary frequencies): DeepSpeed casts them too,
   which alone changes 1.6 % of the tokens of a bfloat16 model.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from job.config import ModelConfig
from job.distributed import Replica
from job.engine.architectures import check_tensor_parallel
from job.engine.deepspeed_setup import import_deepspeed, quiet_stdout
from job.errors import JobError, UsageError, first_line
from job.fingerprint import fingerprint

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a model before its weights are loaded."""

    config: Any
    """transformers' configuration."""
    dtype: str
    """The run's dtype, resolved: float16, bfloat16 or float32."""
    dtype_note: str | None
    """What to tell the user if it is not what they would expect."""
    max_model_len: int
    """Prompt plus completion tokens at most."""
    fingerprint: str
    """Of the weights: the commit of a Hub model, a hash of local files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, ready to generate."""

    module: Any
    """The sharded transformers model, in eval mode. Its ``generate`` is transformers' own."""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    dtype: torch.dtype


def inspect_model(
    config: ModelConfig, device: torch.device, tensor_parallel_size: int, *, needs_weights: bool = True
) -> ModelInfo:
    """Check all that can be checked without the weights.

    Args:
        needs_weights: whether it is a mistake if there are none; without, their fingerprint is empty.

    Raises:
        UsageError: no such model, no safetensors weights, an architecture or a length that cannot work.
    """
    from transformers import AutoConfig

    if (config.model.startswith((".", "/", "~")) or config.model.count("/") > 1) and not Path(config.model).is_dir():
        raise UsageError(f"--model {config.model}: there is no such directory.")
    try:
        hf_config = AutoConfig.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (
        Exception
    ) as error:  # OSError, ValueError, KeyError, huggingface_hub's own, ... and all are the user's to mend
        raise UsageError(f"--model {config.model} cannot be read: {first_line(error)}") from None
    if hf_config.is_encoder_decoder:
        raise UsageError(f"--model {config.model} ({hf_config.model_type}) is an encoder-decoder, not a causal model.")
    if getattr(hf_config, "quantization_config", None) is not None:
        raise UsageError(
            f"--model {config.model} holds quantized weights, which DeepSpeed can neither shard nor cast. "
            "Use the model in float16 or bfloat16, and a larger --tensor-parallel-size if it is too large."
        )
    check_tensor_parallel(hf_config, tensor_parallel_size)
    fingerprint = _weights_fingerprint(config, hf_config) if needs_weights else ""
    dtype, note = resolve_dtype(config.dtype, device)
    return ModelInfo(
        config=hf_config,
        dtype=dtype,
        dtype_note=note,
        max_model_len=_max_model_len(config, hf_config),
        fingerprint=fingerprint,
    )


def resolve_dtype(wanted: str, device: torch.device) -> tuple[str, str | None]:
    """Return the dtype to run in, and a remark if the device forbids the wanted one."""
    if device.type == "cuda":
        return ("float16" if wanted == "auto" else wanted), None
    if wanted in ("float32", "bfloat16") or (wanted == "float16" and torch.ops.mkldnn._is_mkldnn_fp16_supported()):
        return wanted, None
    dtype = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    return dtype, f"This processor has no float16 arithmetic; running in {dtype}. Set --dtype to choose."


def load_model(config: ModelConfig, info: ModelInfo, replica: Replica, stop_token_ids: Sequence[int]) -> LoadedModel:
    """Load and shard. Every process of the launch must call this at the same time.

    Args:
        stop_token_ids: end-of-sequence ids that the tokenizer knows of.

    Raises:
        JobError: the weights cannot be loaded, here or on another process.
    """
    dtype = getattr(torch, info.dtype)
    failure, model = None, None
    try:
        model = _read_weights(config, info)
    except JobError as error:
        failure = error
    replica.check_world(failure)  # the next steps are collective: nobody may be missing from them
    assert model is not None
    kept = _tensors_to_keep(model)
    # DeepSpeed shards only in dtypes that the device computes in; a wider one would take the device's memory twice.
    if model.dtype not in _computable_dtypes(replica.device) or model.dtype.itemsize > dtype.itemsize:
        model.to(dtype)
    model.eval().requires_grad_(False)
    eos_token_ids = _eos_token_ids(model, stop_token_ids)
    model = _shard(model, model.dtype, replica)
    model.to(dtype)
    _put_back(model, kept)
    return LoadedModel(
        module=model,
        eos_token_ids=eos_token_ids,
        pad_token_id=eos_token_ids[0] if eos_token_ids else 0,
        dtype=dtype,
    )


def _read_weights(config: ModelConfig, info: ModelInfo) -> Any:
    """Load a model on the host in the dtype of its checkpoint.

    Raises:
        UsageError: weights are missing: transformers would fill them with random numbers and only warn.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            config.model,
            revision=getattr(info.config, "_commit_hash", None) or config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype="auto",
            attn_implementation=_attention_of(info.config),
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # OSError, SafetensorError, ValueError, ...: whatever reads files and builds modules
        raise UsageError(f"--model {config.model}: the weights cannot be loaded: {first_line(error)}") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise UsageError(
            f"--model {config.model} lacks {len(lacking)} weights of {type(model).__name__}, such as {lacking[0]}. "
            "It is incomplete, or not a causal language model."
        )
    return model


def _attention_of(hf_config: Any) -> str | None:
    """Return the attention to load a model with, None being its default.

    Some releases of transformers (5.17) give Gemma 2 torch's fused attention, which leaves out its soft-capping.
    """
    return "eager" if getattr(hf_config.get_text_config(), "attn_logit_softcapping", None) else None


def _tensors_to_keep(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that a cast must not touch, as ``from_pretrained(dtype=...)`` would leave them.

    Buffers that are computed, not loaded (rotary frequencies), and whatever has a dtype of its own on purpose.
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
    """Restore tensors under their names; one that has been cut to a part of itself keeps its cast values."""
    present = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in kept.items():
        if name in present and present[name].shape == tensor.shape:
            present[name].data = tensor.to(present[name].device)


def _computable_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes that DeepSpeed shards in: those the device computes in. Most CPUs have no float16."""
    half = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return (torch.float32, torch.bfloat16, *([torch.float16] if half else []))


def _shard(model: Any, dtype: torch.dtype, replica: Replica) -> Any:
    deepspeed = import_deepspeed()
    options: dict[str, Any] = {}
    if replica.has_followers:
        size = replica.info.tensor_parallel_size
        options["tensor_parallel"] = {"tp_size": size, "tp_group": replica.tensor_group, "mpu": _Mpu(replica)}
    with quiet_stdout():  # AutoTP prints what it found, on every rank
        if replica.has_followers:
            deepspeed.init_distributed(dist_backend=replica.backend, verbose=False)  # finds the groups made by torch
        return deepspeed.init_inference(model, dtype=dtype, replace_with_kernel_inject=False, **options).module


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
    """Return all ids that end a completion: of the generation config, the config and the tokenizer."""
    ids: list[int] = []
    for value in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id, *stop_token_ids):
        ids += value if isinstance(value, list) else [value] if value is not None else []
    return tuple(dict.fromkeys(ids))


def _max_model_len(config: ModelConfig, hf_config: Any) -> int:
    text = hf_config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
    known = next((value for name in names if isinstance(value := getattr(text, name, None), int)), None)
    if config.max_model_len is not None:
        if known is not None and config.max_model_len > known:
            raise UsageError(f"--max-model-len is {config.max_model_len}, but the model knows only {known} positions.")
        return config.max_model_len
    if known is None:
        raise UsageError(
            f"Model type {hf_config.model_type!r} does not say how long a text may be. Set --max-model-len."
        )
    return known


def _weights_fingerprint(config: ModelConfig, hf_config: Any) -> str:
    directory = Path(config.model)
    if not directory.is_dir():
        return str(getattr(hf_config, "_commit_hash", None) or config.revision or "unknown")
    if any((directory / name).is_file() for name in WEIGHT_FILES):
        weights = sorted(directory.glob("*.safetensors"))
        missing = _indexed_files(directory) - {file.name for file in weights}
        if missing:
            raise UsageError(f"--model {config.model}: {min(missing)}, which {WEIGHT_FILES[1]} names, is missing.")
        for file in weights:
            _check_complete(file)
        settings = [directory / name for name in ("config.json", "generation_config.json")]
        return fingerprint([*weights, *(file for file in settings if file.is_file())])
    pickled = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt"))
    if pickled:
        raise UsageError(
            f"--model {config.model} has pickled weights ({pickled[0].name}), which can run code when they are loaded. "
            "Convert them: load the model where you trust it, then save_pretrained (it writes safetensors)."
        )
    raise UsageError(f"--model {config.model} has no weights: neither {' nor '.join(WEIGHT_FILES)} is there.")


def _indexed_files(directory: Path) -> set[str]:
    index = directory / WEIGHT_FILES[1]
    return set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()


def _check_complete(file: Path) -> None:
    """Refuse a safetensors file that is shorter than its header says, as a broken copy is."""
    try:
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_bytes))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, OverflowError, MemoryError):
        raise UsageError(f"{file} is not a safetensors file. Copy it again.") from None
    if file.stat().st_size != 8 + header_bytes + end:
        raise UsageError(
            f"{file} has {file.stat().st_size:,} bytes, but its header says {8 + header_bytes + end:,}. Copy it again."
        )

"""What is known before weights are loaded: configuration, dtype, usable files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from job.config import ModelConfig
from job.engine.model.adapters.adapter import adapted_config, inspect_adapters
from job.engine.model.checkpoints.conversion import DenseWeights, dense_weights_of
from job.engine.model.decoder import RELATIVE, Decoder, decoder_of, trained_len
from job.engine.model.fp8 import check_device
from job.engine.model.heads import head_of, num_positions
from job.engine.model.kinds import CAUSAL, ModelKind, is_encoder, kind_of
from job.engine.model.naming import check_no_adapter, check_repository
from job.engine.model.precision import Precision
from job.engine.model.sentence_files import longest_text
from job.engine.model.tensor_parallel import check_tensor_parallel
from job.engine.model.text_part import text_part_of
from job.engine.model.weights import check_format, weight_files
from job.errors import UsageError
from job.remote.model_code import check_code, code_options, why_unreadable
from job.remote.model_files import ModelFiles
from job.tasks.head import EMBED, GENERATE, Head


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known about a model before its weights are loaded."""

    files: ModelFiles
    weights: Sequence[str]
    """The names of the files with the weights; empty if they were not looked for."""
    config: Any
    """transformers' configuration, with adapters merged."""
    whole_type: str | None = None
    """The ``model_type`` of the model of which this is the language model. None: it is all that there is."""
    kind: ModelKind = CAUSAL
    head: Head | None = None
    """What it gives in place of tokens, if that is its kind."""
    decoder: Decoder | None = None
    """How answers begin, if it is an encoder-decoder."""
    precision: Precision
    """What is made of the weights. Its dtype is resolved."""
    dense_weights: DenseWeights | None = None
    """What is made of quantized weights before they are loaded. None: they are loaded as they are stored."""
    dtype_note: str | None
    """A note for the user if the dtype is not the one they would expect."""
    fallback_dtype: str | None = None
    """The dtype to use if the model overflows ``dtype``: bfloat16 where ``auto`` cast a bfloat16 checkpoint."""
    max_model_len: int
    """The most tokens that a prompt and its completion may have together; of an encoder-decoder, each of them."""

    @property
    def dtype(self) -> str:
        """The run's dtype: float16, bfloat16 or float32."""
        return self.precision.dtype

    @property
    def longest_answer(self) -> int:
        """The most tokens that an answer may have, after the shortest prompt."""
        return self.room_for_answer(1)

    def room_for_answer(self, num_prompt_tokens: int) -> int:
        """Return how many tokens an answer may have after a prompt of this length."""
        return self.max_model_len - (num_prompt_tokens if self.decoder is None else len(self.decoder.begin_ids))

    @property
    def room(self) -> str:
        """What there is room for, in a message."""
        what = "prompt included" if self.decoder is None else "with those that begin every answer"
        return f"{self.max_model_len} tokens, {what}"

    def room_for_prompt(self, num_new_tokens: int) -> int:
        """Return how many tokens a prompt may have beside an answer of this length; 0 if the answer is too long."""
        if self.decoder is None:
            return max(0, self.max_model_len - num_new_tokens)
        return self.max_model_len if num_new_tokens <= self.longest_answer else 0

    @property
    def tokenizer_files(self) -> ModelFiles:
        """Where the tokenizer and the chat template are: with the last adapter that brings them, or the model."""
        own = [adapter.files for adapter in self.precision.adapters if adapter.has_tokenizer]
        return own[-1] if own else self.files

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of it before it is loaded."""
        part = f"only the language model of {self.whole_type} is loaded ({self.config.model_type}): images are not read"
        whole = () if self.whole_type is None else (part,)
        converted = () if self.dense_weights is None else (self.dense_weights.conversion.note(self.dtype),)
        return (*whole, *converted, *(adapter.describe() for adapter in self.precision.adapters))

    def in_dtype(self, dtype: str, fallback_dtype: str | None = None) -> "ModelInfo":
        """Return the same model in another dtype."""
        return replace(self, precision=replace(self.precision, dtype=dtype), fallback_dtype=fallback_dtype)


def inspect_model(
    config: ModelConfig,
    files: ModelFiles,
    device: torch.device,
    tensor_parallel_size: int,
    *,
    needs_weights: bool = True,
) -> ModelInfo:
    """Check all that can be checked without the weights. Fetches the small files of a Hub model.

    Args:
        needs_weights: if False, the weights may be missing.

    Raises:
        UsageError: the model or its safetensors weights are missing, or its architecture or a length cannot work.
        Unavailable: the Hub does not answer.
    """
    check_repository(files)
    if needs_weights:
        check_format(files)
    files.fetch_settings(with_code=config.trust_remote_code)
    check_no_adapter(files)
    check_code(files, trust_remote_code=config.trust_remote_code)
    hf_config = _read_config(config, files)
    weights = weight_files(files) if needs_weights else ()
    kind = kind_of(config.task, config.model, hf_config)
    whole, hf_config = hf_config, text_part_of(config.model, hf_config) if kind is CAUSAL else hf_config
    decoder = decoder_of(config.model, hf_config, files.directory)
    head = head_of(kind, files, hf_config)
    has_no_cache = head is not None and head.reads_ahead
    check_precision(config, device, decoder, has_no_cache=has_no_cache)
    check_tensor_parallel(hf_config, tensor_parallel_size, is_encoder=has_no_cache and is_encoder(hf_config))
    adapters = inspect_adapters(
        files.adapters,
        hf_config,
        kind,
        trust_remote_code=config.trust_remote_code,
        is_part=hf_config is not whole,
    )
    dense_weights = dense_weights_of(hf_config, files, weights, trust_remote_code=config.trust_remote_code)
    wanted = config.dtype
    if wanted == "auto" and device.type == "cuda" and dense_weights and dense_weights.conversion.dtype != "float16":
        wanted = "bfloat16"  # models that are published in FP8 may not fit into the range of float16
    dtype, note = resolve_dtype(wanted, device)
    return ModelInfo(
        files=files,
        weights=(*weights, *(layer.weights for layer in head.dense)) if weights and head else weights,
        config=adapted_config(hf_config, adapters),
        whole_type=None if hf_config is whole else whole.model_type,
        kind=kind,
        head=head,
        decoder=decoder,
        precision=Precision(
            dtype=dtype, kv_cache_dtype=config.kv_cache_dtype, quantization=config.quantize, adapters=adapters
        ),
        dense_weights=dense_weights,
        dtype_note=note,
        fallback_dtype="bfloat16" if (config.dtype, dtype) == ("auto", "float16") and _is_bfloat16(hf_config) else None,
        max_model_len=_max_model_len(config, hf_config, longest_text(files) if config.task == EMBED else None),
    )


def _read_config(config: ModelConfig, files: ModelFiles) -> Any:
    """Return transformers' configuration."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(files.directory, **code_options(files, config.trust_remote_code))
    except Exception as error:  # OSError, ValueError, KeyError, ...: all for the user to fix
        raise UsageError(f"--model {config.model} cannot be read: {why_unreadable(files, error)}") from None


def check_precision(config: ModelConfig, device: torch.device, decoder: Decoder | None, *, has_no_cache: bool) -> None:
    """Refuse what the device, encoders, and encoder-decoders cannot be computed in.

    Raises:
        UsageError: it was asked for.
    """
    if has_no_cache and config.kv_cache_dtype != "auto":
        raise UsageError(
            f"--kv-cache-dtype {config.kv_cache_dtype} has no effect: an encoder keeps no keys and values. "
            "Leave it out."
        )
    if decoder is not None and config.kv_cache_dtype != "auto":
        raise UsageError(
            f"--kv-cache-dtype {config.kv_cache_dtype} needs the paged engine, which does not serve encoder-decoders. "
            "Leave it out."
        )
    if decoder is not None and config.quantize is not None:
        raise UsageError(
            f"--quantize {config.quantize} is not offered for encoder-decoders: their answers in 8 bits have not been "
            "compared. Leave it out."
        )
    if config.quantize is not None:
        check_device(config.quantize, device)


def resolve_dtype(wanted: str, device: torch.device) -> tuple[str, str | None]:
    """Return the dtype to run in, and a note if the device does not support the requested one."""
    if device.type == "cuda":
        return ("float16" if wanted == "auto" else wanted), None
    if wanted in ("float32", "bfloat16") or (wanted == "float16" and torch.ops.mkldnn._is_mkldnn_fp16_supported()):
        return wanted, None
    dtype = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    return dtype, f"This processor has no float16 arithmetic; running in {dtype}. Set --dtype to choose."


def _is_bfloat16(hf_config: Any) -> bool:
    """Whether the configuration says that the checkpoint is bfloat16."""
    dtypes = (getattr(hf_config.get_text_config(), "dtype", None), getattr(hf_config, "dtype", None))
    return "bfloat16" in {str(dtype).removeprefix("torch.") for dtype in dtypes}


def _max_model_len(config: ModelConfig, hf_config: Any, usual: int | None = None) -> int:
    """Return the user's limit, or the model's: ``usual``, or its number of positions."""
    text = hf_config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
    known = next((value for name in names if isinstance(value := getattr(text, name, None), int)), None)
    if known is not None and config.task != GENERATE:
        known = num_positions(hf_config, known)
    if config.max_model_len is not None:
        is_free = known is None or hf_config.model_type in RELATIVE
        most = None if known is None or is_free else max(known, _stretched(text, known))
        if most is not None and config.max_model_len > most:
            raise UsageError(
                f"--max-model-len is {config.max_model_len}, but the model has only {most} positions. "
                f"Use {most} or less."
            )
        return config.max_model_len
    known = trained_len(hf_config, known)
    if known is None:
        raise UsageError(
            f"The configuration of model type {hf_config.model_type!r} has no maximum length. Set --max-model-len."
        )
    return min(known, usual or known)


def _stretched(text: Any, known: int) -> int:
    """Return the number of positions to which YaRN stretches a model. Some model cards leave out that it is larger.

    See "Processing Long Texts" in the card of Qwen2.5: a factor of 4 beside the 32768 positions of the pretraining.
    """
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]  # one for each type of layer
    if any(kind.get("rope_type", kind.get("type")) != "yarn" for kind in kinds):
        return known
    return min(int((kind.get("original_max_position_embeddings") or known) * kind.get("factor", 1)) for kind in kinds)

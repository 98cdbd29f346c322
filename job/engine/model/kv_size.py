"""How much KV cache a token needs, estimated from the model's configuration before anything is loaded."""

from typing import Any

import torch

from job.engine.model.tensor_parallel import Cut, cut_of, num_kv_heads
from job.errors import UsageError

FP8 = "float8_e4m3fn"


def stored_dtype(kv_cache_dtype: str, dtype: str) -> str:
    """Return the dtype of stored keys and values.

    Args:
        kv_cache_dtype: one of ``config.KV_CACHE_DTYPES``.
        dtype: the model's.
    """
    return FP8 if kv_cache_dtype == "fp8" else dtype


def kv_bytes_per_token(config: Any, dtype: str, tensor_parallel_size: int) -> int | None:
    """Return the bytes of one token's keys and values, on the process of a replica that holds the most heads.

    Args:
        config: transformers' configuration.
        dtype: of stored keys and values.

    Returns:
        None if the configuration does not give the sizes under the usual names.
    """
    text = config.get_text_config()
    key_size, value_size = _head_sizes(text)
    try:
        num_heads = num_kv_heads(config)
    except UsageError:
        return None
    if cut_of(config) is not Cut.NO_ATTENTION:
        num_heads = -(-num_heads // tensor_parallel_size)
    num_layers = _num_layers(text)
    if num_layers is None or key_size is None or value_size is None:
        return None
    itemsize: int = getattr(torch, dtype).itemsize
    return num_layers * num_heads * (key_size + value_size) * itemsize


def _num_layers(text: Any) -> int | None:
    """Return the number of layers that store keys and values; other layers keep a state instead."""
    for name in ("decoder_layers", "num_decoder_layers"):  # an encoder-decoder: of tokens of either side
        if isinstance(number := getattr(text, name, None), int):
            return number
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return sum("attention" in kind and "linear" not in kind for kind in kinds)
    return getattr(text, "num_hidden_layers", None)


def _head_sizes(text: Any) -> tuple[int | None, int | None]:
    """Return the size of a head's key and of its value, which differ in latent attention (DeepSeek)."""
    size = getattr(text, "head_dim", None)
    hidden, num_heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
    if size is None and hidden and num_heads:
        size = hidden // num_heads
    return getattr(text, "qk_head_dim", None) or size, getattr(text, "v_head_dim", None) or size

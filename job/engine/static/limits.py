"""How large a static batch may be: rows, and tokens including padding and completion."""

import torch

from job.config import EngineConfig
from job.engine.model.kv_size import kv_bytes_per_token
from job.engine.model.loading import LoadedModel

CPU_BATCH_ROWS = 64
CPU_BATCH_TOKENS = 64 * 1024
CPU_TEXT_ROWS, CPU_TEXT_TOKENS = 256, 1024
"""The same for texts that are only read. Larger batches are slower, since lengths differ more and caches overflow: 500
reviews by a MiniLM classifier took 3.2 s of CPU time with these, 3.6 with 2,048 tokens, 5.8 with 8,192."""

CUDA_BATCH_ROWS = 512
MEMORY_SHARE = 0.4
"""Share of the memory that is free after loading: ``generate`` grows the KV cache by copying, so two exist at times."""

LOGITS_COPIES = 5
"""How many float32 copies of [rows, vocabulary] exist at once while tokens are chosen."""

MASKLESS = frozenset({"rwkv"})
"""``model_type`` of models that read padding as text (rwkv got all of 8 padded rows wrong): one row at a time."""


def batch_limits(model: LoadedModel, config: EngineConfig, device: torch.device) -> tuple[int, int]:
    """Return the most rows and the most tokens that a batch may have.

    The user's own limits win. Otherwise a CPU gets constants, and a GPU gets what fits into a share of its free memory;
    the engine makes batches smaller if even that is too much.
    """
    text = model.module.config.get_text_config()
    if model.module.config.model_type in MASKLESS:
        return 1, config.max_batch_tokens or CPU_BATCH_TOKENS
    if device.type == "cpu" and model.head is not None:
        return config.max_batch_rows or CPU_TEXT_ROWS, config.max_batch_tokens or CPU_TEXT_TOKENS
    if device.type == "cpu":
        return config.max_batch_rows or CPU_BATCH_ROWS, config.max_batch_tokens or CPU_BATCH_TOKENS
    max_rows = config.max_batch_rows or CUDA_BATCH_ROWS
    if config.max_batch_tokens is not None:
        return max_rows, config.max_batch_tokens
    free_bytes, _ = torch.cuda.mem_get_info(device)
    budget = free_bytes * MEMORY_SHARE - max_rows * text.vocab_size * 4 * LOGITS_COPIES
    return max_rows, max(1, int(budget) // _bytes_per_token(model))


def _bytes_per_token(model: LoadedModel) -> int:
    """Return the bytes of a token's KV cache and of its activations in prefill, as if neither were sharded."""
    text = model.module.config.get_text_config()
    dtype_name = str(model.dtype).removeprefix("torch.")
    cache_bytes = kv_bytes_per_token(model.module.config, dtype_name, tensor_parallel_size=1) or 0
    intermediate_size = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return int(cache_bytes + (3 * intermediate_size + 4 * text.hidden_size) * model.dtype.itemsize)

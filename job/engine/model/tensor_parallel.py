"""What AutoTP of DeepSpeed 0.19.8 can shard. Decided from the model's configuration, before weights are loaded.

AutoTP cuts layers by their names. On an architecture that it does not know, it may crash, hang, or silently give wrong
tokens. So an architecture is sharded only if its output was compared with the unsharded model (fp32, two processes,
random weights: equal tokens). Every architecture runs at ``--tensor-parallel-size 1``.
"""

from typing import Any

from job.errors import UsageError

# fmt: off
VERIFIED = frozenset(
    {
        "apertus", "arcee", "biogpt", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5",
        "exaone4", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt_neo", "gpt_neox",
        "gptj", "granite", "granitemoe", "llama", "ministral3", "mistral", "mixtral", "mpt", "nemotron", "olmo",
        "opt", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm",
        "starcoder2", "xglm",
    }
)
# fmt: on
"""``model_type`` of the architectures that were compared."""

VERIFIED_ENCODERS = frozenset({"albert", "bert", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"})
"""The same, of models that read ahead."""

REASONS = {
    "bloom": "its ALiBi slopes are not cut unless the batch is padded",
    "dbrx": "its fused expert weights are not cut",
    "falcon": "only the 40B layout (new_decoder_architecture) is cut correctly",
    "gpt2": "AutoTP does not cut its Conv1D layers",
    "gpt_bigcode": "its single KV head cannot be cut",
    "gpt_oss": "its attention sinks are not cut",
    "hunyuan_v1_dense": "AutoTP mistakes it for another model and gives wrong tokens",
    "modernbert": "its fused projections are cut in the wrong places",
    "mpnet": "its attention keeps the number of all heads",
    "mamba": "its state-space layers are not cut",
    "olmo2": "its query and key norms are not cut",
    "olmo3": "its query and key norms are not cut",
    "olmoe": "its query and key norms are not cut",
    "persimmon": "AutoTP mistakes it for another model and gives wrong tokens",
    "phi3": "its fused projections are cut in the wrong places",
    "phimoe": "its expert weights are not cut",
}


def check_tensor_parallel(config: Any, tensor_parallel_size: int, *, is_encoder: bool = False) -> None:
    """Check that the model can be cut into ``tensor_parallel_size`` parts.

    Args:
        config: transformers' configuration.
        is_encoder: whether its tokens see those after them.

    Raises:
        UsageError: the architecture or its number of heads does not allow it; the message says what works.
    """
    if tensor_parallel_size == 1:
        return
    model_type = config.model_type
    verified = model_type in (VERIFIED_ENCODERS if is_encoder else VERIFIED) or (
        model_type == "falcon" and config.new_decoder_architecture
    )
    if not verified:
        reason = REASONS.get(model_type, "its sharded output has not been compared with the unsharded model")
        raise UsageError(
            f"Model type {model_type!r} cannot run at --tensor-parallel-size {tensor_parallel_size}: {reason}. "
            "Use --tensor-parallel-size 1; each further process is then a separate replica."
        )
    num_heads = num_kv_heads(config)
    if num_heads < tensor_parallel_size:
        raise UsageError(
            f"--tensor-parallel-size is {tensor_parallel_size}, but the model has {num_heads} key-value heads, "
            f"and each process needs at least one. Use {num_heads} or less."
        )


def num_kv_heads(config: Any) -> int:
    """Return the number of key-value heads, whose name in the configuration depends on the architecture."""
    text = config.get_text_config()
    for name in ("num_key_value_heads", "num_kv_heads", "num_attention_heads", "num_heads", "n_head", "n_heads"):
        value = getattr(text, name, None)
        if isinstance(value, int):
            return value
    raise UsageError(
        f"The configuration of model type {config.model_type!r} does not give a number of attention heads. "
        "Use --tensor-parallel-size 1."
    )

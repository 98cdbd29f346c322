"""What of a model is cut over the processes of a replica. Decided from its configuration, before weights are loaded.

AutoTP of DeepSpeed 0.19.8 cuts layers by their names. On an architecture that it does not know, it may crash, hang, or
silently give wrong tokens. So an architecture is sharded only if its output was compared with the unsharded model
(fp32, two processes, random weights: equal tokens; ``scripts/bench architectures``). Where only the cut of attention is
wrong, MLPs and experts alone are cut. Every architecture runs at ``--tensor-parallel-size 1``.
"""

from enum import Enum
from typing import Any

from job.engine.model.experts import check_experts
from job.errors import UsageError


class Cut(Enum):
    """What of a model is cut."""

    ALL = "all"
    """Attention by heads, MLPs, experts and the output layer."""
    NO_ATTENTION = "no attention"
    """MLPs, experts and the output layer. Every process computes the attention whole, with a KV cache of all heads."""


# fmt: off
VERIFIED = frozenset(
    {
        "apertus", "arcee", "aria_text", "axk1", "biogpt", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe",
        "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "gemma",
        "gemma2", "gemma3", "gemma3_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite",
        "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoeshared",
        "helium", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "kolibri1", "laguna", "llama", "mellum",
        "minicpm3", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "mpt", "nemotron", "olmo",
        "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open",
        "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
    }
)
"""``model_type`` of the architectures that were compared, attention and all."""

WITHOUT_ATTENTION = frozenset(
    {
        "afmoe", "axk2", "bamba", "beam", "deepseek_v32", "diffllama", "doge", "falcon", "flex_olmo", "flint",
        "gemma4", "gemma4_text", "glm_moe_dsa", "granite_swa", "granitemoe_swa", "granitemoehybrid",
        "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba", "lfm2", "lfm2_moe", "llama4_text", "mimo_v2_flash", "minimax",
        "minimax_m2", "nanochat", "nemotron_h", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "persimmon",
        "phi4_multimodal", "phimoe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
    }
)
"""Those that were compared with their attention left whole. (The 40B layout of falcon is cut with its attention.)"""
# fmt: on

VERIFIED_ENCODERS = frozenset({"albert", "bert", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"})
"""The same, of models that read ahead."""

CODEGEN_BLOCKS = 4
"""In this many blocks lie the fused projections of CodeGen (it was trained on as many cores)."""

VERIFIED_ENCODER_DECODERS = frozenset(
    {"bart", "blenderbot", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5"}
)
"""The same, of models whose decoder reads what an encoder made of the prompt."""

REASONS = {
    "bitnet": "its MLPs have norms of all inner values",
    "dbrx": "its fused expert weights are not cut",
    "falcon_mamba": "its state-space layers are not cut",
    "gpt-sw3": "AutoTP does not cut its Conv1D layers",
    "gpt2": "AutoTP does not cut its Conv1D layers",
    "gpt_bigcode": "AutoTP cuts its layers by its single KV head, which leaves all of them on one process",
    "inkling_text": "the layout of its experts is unknown",
    "jetmoe": "the layout of its experts is unknown",
    "led": "AutoTP does not cut it",
    "nllb-moe": "its experts are not cut",
    "switch_transformers": "its experts are not cut",
    "t5gemma": "its attention keeps the number of all heads",
    "mamba": "its state-space layers are not cut",
    "modernbert": "its fused projections are cut in the wrong places",
    "mpnet": "its attention keeps the number of all heads",
    "xlstm": "its recurrent layers are not cut",
}


def cut_of(config: Any, *, is_encoder: bool = False) -> Cut | None:
    """Return what is cut of a model with this configuration of transformers. None: it cannot be cut."""
    model_type = config.model_type
    if is_encoder:
        return Cut.ALL if model_type in VERIFIED_ENCODERS else None
    if (
        model_type in VERIFIED_ENCODER_DECODERS
        or model_type in VERIFIED
        or (model_type == "falcon" and config.new_decoder_architecture)
    ):
        return Cut.ALL
    return Cut.NO_ATTENTION if model_type in WITHOUT_ATTENTION else None


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
    cut = cut_of(config, is_encoder=is_encoder)
    if cut is None:
        model_type = config.model_type
        reason = REASONS.get(model_type, "its sharded output has not been compared with the unsharded model")
        raise UsageError(
            f"Model type {model_type!r} cannot run at --tensor-parallel-size {tensor_parallel_size}: {reason}. "
            "Use --tensor-parallel-size 1; each further process is then a separate replica."
        )
    check_experts(config, tensor_parallel_size)
    if cut is Cut.NO_ATTENTION:
        return
    num_heads = min(num_kv_heads(config), getattr(config, "decoder_attention_heads", None) or num_kv_heads(config))
    if num_heads < tensor_parallel_size:
        raise UsageError(
            f"--tensor-parallel-size is {tensor_parallel_size}, but the model has {num_heads} key-value heads, "
            f"and each process needs at least one. Use {num_heads} or less."
        )
    if config.model_type == "codegen" and num_heads % (CODEGEN_BLOCKS * tensor_parallel_size):
        raise UsageError(
            f"--tensor-parallel-size is {tensor_parallel_size}, but CodeGen keeps its {num_heads} heads in "
            f"{CODEGEN_BLOCKS} blocks, and each process needs as many of each block. "
            f"Use a divisor of {num_heads // CODEGEN_BLOCKS}."
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

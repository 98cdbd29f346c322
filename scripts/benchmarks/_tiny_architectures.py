"""Tiny random causal models of every architecture that transformers has, made from one table of values."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VALUES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
    "ffn_dim": 256,
    "ffn_hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "init_std": 0.3,
}
"""What most configurations call by these names; wide weights, so that no token is a near tie."""

HEADS_OF_32 = {"head_dim": 32}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 512,
}
FOUR_LAYERS = {"num_hidden_layers": 4}
LINEAR = {
    **FOUR_LAYERS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {**VISION, "depth": 1, "num_heads": 2, "out_hidden_size": 128, "num_position_embeddings": 16}
PER_LAYER = {"vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 32}
MIXED = {"layer_types": ["conv", "full_attention"]}

DIFFERENT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"), LATENT),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "minimax"), FOUR_LAYERS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), LINEAR),
    "codegen": {"num_attention_heads": 8, "rotary_dim": 16},
    "gptj": {"rotary_dim": 16},
    **dict.fromkeys(("helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "qwen3", "qwen3_moe"), HEADS_OF_32),
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 64, "mamba_expand": 2},
    "dbrx": {
        "d_model": 128,
        "n_heads": 4,
        "n_layers": 2,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 128},
    },
    "dots1": {"n_shared_experts": 1},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon_7b": {
        "model_type": "falcon",
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
    },
    "falcon_rw": {
        "model_type": "falcon",
        "multi_query": False,
        "new_decoder_architecture": False,
        "alibi": True,
        "parallel_attn": False,
    },
    "gemma3": {"text_config": {**VALUES, **HEADS_OF_32}, "vision_config": VISION},
    "gemma4": {"text_config": {**VALUES, **PER_LAYER}, "vision_config": VISION, "audio_config": None},
    "llama4": {"text_config": {**VALUES, "intermediate_size_mlp": 256}, "vision_config": VISION},
    "llama4_text": {"intermediate_size_mlp": 256},
    **{
        name: {"text_config": {**VALUES, **LINEAR}, "vision_config": QWEN_VISION} for name in ("qwen3_5", "qwen3_5_moe")
    },
    "gemma4_text": PER_LAYER,
    "ministral": HEADS_OF_32,
    **dict.fromkeys(("longcat_flash", "minicpm3", "youtu"), LATENT),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16, "num_layers": 2},
    "gpt_bigcode": {"num_key_value_heads": 1},
    "gpt_oss": {**HEADS_OF_32, "sliding_window": 16},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 64,
        "mamba_expand": 2,
        "shared_intermediate_size": 128,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {**MIXED, "block_ff_dim": 256},
    "lfm2_moe": {**MIXED, "num_dense_layers": 1},
    "opt": {"word_embed_proj_dim": 128, "do_layer_norm_before": True},
}
"""What a type has in place of, or besides, these values; a name with another ``model_type`` is a variant of it."""

NAMES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *DIFFERENT})


def make_architecture(directory: Path, name: str) -> None:
    """Write a random model.

    Raises:
        Exception: whatever transformers raises if these values do not make one.
    """
    different = dict(DIFFERENT.get(name, {}))
    model_type = different.pop("model_type", name)
    # Others would stay in the configuration, and AutoTP reads heads there that the model does not have.
    known = AutoConfig.for_model(model_type)
    values = {name: value for name, value in VALUES.items() if hasattr(known, name)}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**values, **different})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory)

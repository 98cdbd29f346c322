"""Tiny random causal models of every architecture that transformers has, made from one table of values.

Also those of text and images of which the job uses the language model; they are compared with the whole model.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from job.engine.model.text_part import COMPARED

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
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
    "num_heads": 2,
    "embed_dim": 32,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
}
"""What the configurations of vision towers call by these names."""
DIFFERENT_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"hidden_size": 128},
    "qwen3_vl": {"deepstack_visual_indexes": [0]},
}
THREE_POSITIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
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
    "llama4_text": {"intermediate_size_mlp": 256},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text"), THREE_POSITIONS),
    **dict.fromkeys(("exaone4", "gemma3_text", "mistral", "qwen3_vl_text"), HEADS_OF_32),
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

TEXT_TYPES = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}
NAMES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *DIFFERENT, *COMPARED} - TEXT_TYPES)


def class_of(model_type: str) -> Any:
    """Return the class of transformers that loads the whole of a model."""
    return AutoModelForImageTextToText if model_type in COMPARED else AutoModelForCausalLM


def make_architecture(directory: Path, name: str) -> None:
    """Write a random model.

    Raises:
        Exception: whatever transformers raises if these values do not make one.
    """
    different = dict(DIFFERENT.get(name, {}))
    model_type = different.pop("model_type", name)
    if model_type in COMPARED:
        config = AutoConfig.for_model(model_type, **_parts(model_type))
    else:
        config = AutoConfig.for_model(model_type, **{**_values(AutoConfig.for_model(model_type), VALUES), **different})
    torch.manual_seed(0)
    model = class_of(model_type).from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = 1
    # Kimi's would be saved under other names than those of its checkpoints.
    model.save_pretrained(directory, save_original_format=name != "kimi_k25")


def _parts(model_type: str) -> dict[str, Any]:
    """Return the configurations of the parts of a model of text and images."""
    known = AutoConfig.for_model(model_type)
    text = known.get_text_config()
    vision = known.vision_config or AutoConfig.for_model(f"{model_type}_vision")
    parts = {
        "text_config": {**_values(text, VALUES), **DIFFERENT.get(text.model_type, {}), "model_type": text.model_type},
        "vision_config": {
            **_values(vision, VISION),
            **DIFFERENT_VISION.get(model_type, {}),
            "model_type": vision.model_type,
        },
    }
    return {**parts, "audio_config": None} if hasattr(known, "audio_config") else parts


def _values(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return those of the values that a configuration has.

    Others would stay in it, and AutoTP reads heads there that the model does not have.
    """
    return {name: value for name, value in values.items() if hasattr(config, name)}

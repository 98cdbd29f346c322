"""The share of a model's weights that the process with the most of them holds, at real sizes.

Usage: scripts/bench shares

Models are built by their published configurations on a device that has no memory; what is counted is what
``job preview`` says. What a configuration does not give here is the default of transformers' class.
"""

from typing import Any

from transformers import AutoConfig

from job.engine.fit.shape import shape_of

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepSeek-V3 / R1 (deepseek_v3)": ("deepseek_v3", {}),
    "DeepSeek-V2-Lite (deepseek_v2)": (
        "deepseek_v2",
        {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "vocab_size": 102400,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen3-30B-A3B (qwen3_moe)": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen1.5-MoE-A2.7B (qwen2_moe)": (
        "qwen2_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
    ),
    "Mixtral-8x7B (mixtral)": (
        "mixtral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
        },
    ),
    "granite-3.1-3b-a800m (granitemoe)": (
        "granitemoe",
        {
            "hidden_size": 1536,
            "intermediate_size": 512,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "num_local_experts": 40,
            "num_experts_per_tok": 8,
            "vocab_size": 49155,
            "tie_word_embeddings": True,
        },
    ),
    "GLM-4.5-Air (glm4_moe)": (
        "glm4_moe",
        {
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "vocab_size": 151552,
            "tie_word_embeddings": False,
        },
    ),
    "dots.llm1 (dots1)": (
        "dots1",
        {
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "n_routed_experts": 128,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
    "ERNIE-4.5-21B-A3B (ernie4_5_moe)": (
        "ernie4_5_moe",
        {
            "hidden_size": 2560,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
            "moe_k": 6,
            "moe_layer_start_index": 1,
            "vocab_size": 103424,
            "tie_word_embeddings": True,
        },
    ),
    "gpt-oss-20b (gpt_oss)": (
        "gpt_oss",
        {
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "vocab_size": 201088,
            "tie_word_embeddings": False,
        },
    ),
    "gpt-oss-120b (gpt_oss)": (
        "gpt_oss",
        {
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "vocab_size": 201088,
            "tie_word_embeddings": False,
        },
    ),
    "OLMoE-1B-7B (olmoe)": (
        "olmoe",
        {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "vocab_size": 50304,
            "tie_word_embeddings": False,
        },
    ),
    "Phi-3.5-MoE (phimoe)": (
        "phimoe",
        {
            "hidden_size": 4096,
            "intermediate_size": 6400,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "vocab_size": 32064,
            "tie_word_embeddings": False,
        },
    ),
    "MiniMax-M2 (minimax_m2)": ("minimax_m2", {}),
    "Qwen3-Next-80B-A3B (qwen3_next)": ("qwen3_next", {}),
    "Llama-4-Scout (llama4_text)": ("llama4_text", {"num_local_experts": 16}),
}


def main() -> None:
    """Print the table."""
    print("| model | parameters | share of a process at 2 | at 4 | at 8 |\n|---|---|---|---|---|")
    for name, (model_type, values) in MODELS.items():
        shape = shape_of(AutoConfig.for_model(model_type, **values))
        assert shape is not None, name
        shares = (f"{shape.params_of_process(size) / shape.num_params:.3f}" for size in (2, 4, 8))
        print(f"| {name} | {shape.num_params / 1e9:.1f} billion | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()

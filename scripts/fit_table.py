"""Print the README's table of which model fits on which GPU, by the arithmetic of ``job preview --gpu``."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig

from job.config import EngineConfig
from job.engine.fit.memory import Fit, Room, fits_from
from job.engine.fit.shape import shape_of
from job.engine.model.precision import Precision

MODELS: Mapping[str, Mapping[str, Any]] = {
    "SmolLM2-1.7B": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": True,
    },
    "Qwen3-4B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Mistral-Small-24B": {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "Qwen2.5-32B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    "Llama-3.1-70B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""From the configurations that come with the models: the values that decide about memory."""

SIZES_GB = (24, 48, 80)
ROW_TOKENS = 4096


def table() -> Iterator[str]:
    """Yield the lines of the table."""
    titles = ["model", "weights", "KV cache per token", *(f"{size} GB GPUs" for size in SIZES_GB)]
    yield _line(titles)
    yield _line(["---"] * len(titles)).replace(" ", "")
    for name, values in MODELS.items():
        config = AutoConfig.for_model(**values)
        shape = shape_of(config)
        assert shape is not None, f"{name} cannot be built"
        room = {size: Room(name=f"{size} GB", num_bytes=size * 10**9, is_gpu=True) for size in SIZES_GB}
        fits = {
            size: list(fits_from(config, shape, Precision(dtype="bfloat16"), room[size], EngineConfig(), ROW_TOKENS))
            for size in SIZES_GB
        }
        token_bytes = next(fit.bytes_per_token * fit.tensor_parallel_size for of in fits.values() for fit in of)
        weights = f"{2 * shape.num_params / 1e9:.1f} GB"
        yield _line([name, weights, f"{token_bytes / 1e3:.0f} kB", *(_cell(of) for of in fits.values())])


def _cell(fits: list[Fit]) -> str:
    """Describe the smallest size, and the next if the smallest has room for few rows only."""
    if not fits:
        return "no"
    shown = fits[:1] if fits[0].num_tokens >= 100_000 else fits[:2]
    return "; ".join(f"T={fit.tensor_parallel_size}: {round(fit.num_tokens, -3):,}" for fit in shown)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))

"""The shapes of models that benchmarks make with random weights: no files, only the numbers of their configurations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder with grouped queries, RMSNorm, rotary embedding and a gated MLP."""

    model_type: str = "llama"
    hidden: int
    inner: int
    """Width of the MLP."""
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    is_tied: bool = False
    """Whether the output layer is the embedding."""

    @property
    def layer_weights(self) -> int:
        """Weights of the products of a layer."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def weights(self) -> int:
        """Weights that a decode step reads: every product's, and not the embedding's unless it is the output layer."""
        return self.layers * self.layer_weights + self.hidden * self.vocab

    def kv_bytes(self, itemsize: int = 2) -> int:
        """Bytes of a token in the KV cache of all layers."""
        return 2 * self.kv_heads * self.head_size * self.layers * itemsize

    def config(self) -> dict[str, object]:
        """Return the fields of the transformers configuration."""
        return {
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.is_tied,
            "max_position_embeddings": 8192,
            "eos_token_id": 1,
            "bos_token_id": None,
            "pad_token_id": 0,
        }


_TINY = {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 16, "vocab": 260}

SHAPES = {
    "llama-3.1-8b": ModelShape(hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, head_size=128, vocab=128256),
    "qwen3-8b": ModelShape(
        model_type="qwen3", hidden=4096, inner=12288, layers=36, heads=32, kv_heads=8, head_size=128, vocab=151936
    ),
    "qwen2.5-7b": ModelShape(
        model_type="qwen2", hidden=3584, inner=18944, layers=28, heads=28, kv_heads=4, head_size=128, vocab=152064
    ),
    "smollm2-135m": ModelShape(
        hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, head_size=64, vocab=49152, is_tied=True
    ),
    "tiny-llama": ModelShape(**_TINY),
    "tiny-qwen3": ModelShape(model_type="qwen3", **_TINY),
}
"""The tiny ones are for rehearsals; their vocabulary is that of the byte-level tokenizer of ``tests/tiny.py``."""

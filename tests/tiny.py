"""Tiny random models of several architectures, with a byte-level tokenizer. Made in milliseconds, exact in fp32."""

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEMPLATES_DIR = Path(__file__).parent / "templates"
"""Chat templates that behave like those of public models, by name: ``qwen3``, ``deepseek_r1``, ``gpt_oss``, ..."""

MARKER = re.compile(r"<\|[^|>]+\|>|<\w+_of_turn>|\[/?INST\]")
"""What those templates write as single tokens."""

VOCAB_SIZE = 260

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "llama_uneven": {"model_type": "llama", "hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "gpt_neox": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16, "num_layers": 2},
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 128, "do_layer_norm_before": True},
}
"""Name to what differs from the common shape: hidden 128, 4 heads, 2 layers. All may be cut in two."""

UNCUT: dict[str, dict[str, Any]] = {"gpt2": {}}
"""The same of those that may not."""


LARGER: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "initializer_range": 0.3,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}
"""What to make of ``make_model`` to get a model of text and images, of which the job uses the language model."""


def make_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one id per byte: any text round-trips, and token counts are byte counts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<eos>": 1} | {char: idx + 2 for idx, char in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Return the same tokenizer with a chat template of ``tests/templates`` and a token for each of its markers."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (TEMPLATES_DIR / f"{template}.jinja").read_text()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.add_tokens(sorted({*MARKER.findall(tokenizer.chat_template)}), special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])  # these are not special: they are part of the text
    return tokenizer


def make_sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 2's: words with their space, bytes for the rest; a text alone gets a space before
    it when it is encoded, and loses one when it is decoded.
    """
    words = ["▁", "▁yes", "yes", "▁no", "no", "▁load", "▁What", "▁is", "ing", "▁The", "a", "▁a"]
    special = ["<pad>", "<eos>", "<unk>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [(piece, -float(idx)) for idx, piece in enumerate(pieces)]
    backend = Tokenizer(models.Unigram(scores, 2, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def make_model(
    directory: Path,
    name: str = "llama",
    *,
    chat: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **changes: Any,
) -> Path:
    """Write a random model of an architecture and its tokenizer (the byte-level one if none is given)."""
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "bos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        # Wide enough that the largest logit is no near tie, so that greedy tokens can be compared exactly.
        "initializer_range": 0.3,
        "init_std": 0.3,
        **{**ARCHITECTURES, **UNCUT}[name],
        **changes,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(values.pop("model_type", name), **values)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory)
    (tokenizer or make_tokenizer(chat=chat)).save_pretrained(directory)
    return directory


def make_chat_model(directory: Path, template: str, name: str = "llama", **changes: Any) -> Path:
    """Write a random model that has a chat template of ``tests/templates``."""
    tokenizer = make_chat_tokenizer(template)
    return make_model(directory, name, tokenizer=tokenizer, vocab_size=len(tokenizer), **changes)

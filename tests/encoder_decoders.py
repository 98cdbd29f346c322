"""Tiny random encoder-decoders, and what plain transformers generates with them in fp32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from job.engine.model.decoder import RELATIVE
from tests.tiny import VOCAB_SIZE, make_tokenizer

LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn")
"""The last tokens of the tokenizer."""

FRENCH, GERMAN = 261, 262

OF_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "initializer_factor": 1.0,
    "tie_word_embeddings": False,
}
OF_BART = {
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 1,
    "init_std": 0.6,
    "forced_eos_token_id": None,
    "tie_word_embeddings": True,
}

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": OF_T5,
    "flan-t5": {"model_type": "t5", **OF_T5, "feed_forward_proj": "gated-gelu", "num_heads": 6},
    "mt5": {**OF_T5, "feed_forward_proj": "gated-gelu"},
    "umt5": {**OF_T5, "feed_forward_proj": "gated-gelu"},
    "longt5": {**OF_T5, "local_radius": 8},
    "bart": {**OF_BART, "generation": {"forced_bos_token_id": 5}},
    "mbart": {**OF_BART, "generation": {"forced_bos_token_id": FRENCH}},
    "m2m_100": {**OF_BART, "generation": {"forced_bos_token_id": FRENCH}},
    "pegasus": {**OF_BART, "decoder_start_token_id": 0},
    "marian": {**OF_BART, "decoder_start_token_id": 0, "share_encoder_decoder_embeddings": True},
    "blenderbot": OF_BART,
}
"""Name to its configuration."""


def make_translator_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer with tokens of languages, which ends every text with ``<eos>``."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<unk>", "bos_token": "<bos>"})
    tokenizer.add_tokens(list(LANGUAGES), special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


def make_encoder_decoder(directory: Path, name: str, **changes: Any) -> Path:
    """Write a random model and its tokenizer."""
    values = {"vocab_size": VOCAB_SIZE + 4, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    values |= ENCODER_DECODERS[name] | changes
    stored = values.pop("generation", {})
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(values.pop("model_type", name), **values), dtype=torch.float32
    )
    if model.config.model_type in RELATIVE:  # as they are made, these repeat the token that they start with
        for part in model.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight.data.normal_(std=0.3)
    for key, value in stored.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(directory)
    tokenizer = make_translator_tokenizer()
    assert len(tokenizer) == VOCAB_SIZE + 3, tokenizer
    tokenizer.save_pretrained(directory)
    return directory


def load(model_dir: Path) -> Any:
    """Load a model as plain transformers does."""
    return AutoModelForSeq2SeqLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def generated(
    model_dir: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """Return the ids that ``generate`` gives for each prompt alone, after those that the decoder begins with."""
    model = load(model_dir)
    forced = options.get("forced_bos_token_id", model.generation_config.forced_bos_token_id)
    num_begin = 1 if forced is None else 2
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens + num_begin - 1,
                num_beams=1,
                do_sample=False,
                **options,
            )
        outputs.append(output[0, num_begin:].tolist())
    return outputs

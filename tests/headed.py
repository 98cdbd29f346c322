"""Tiny random models with other heads than a language model's, and what plain transformers says of them in fp32."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from job.engine.model.weights import WEIGHTS
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, make_tokenizer

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 0, "max_position_embeddings": 514},
    "xlm-roberta": {"pad_token_id": 0},
    "distilbert": {"dim": 128, "hidden_dim": 256, "n_layers": 2, "n_heads": 4},
    "electra": {"embedding_size": 64},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "albert": {"embedding_size": 64},
    "mpnet": {"pad_token_id": 0},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 258, "sep_token_id": 259},
}
"""Name to what differs from the common shape; see ``tiny``."""

DECODERS: dict[str, dict[str, Any]] = {
    "phi3": {"num_key_value_heads": 2},
    "olmo2": {"num_key_value_heads": 2},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
    "bloom": {"n_head": 4, "n_layer": 2},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 32},
}
"""Those that need more than AutoTP does, or are made to read ahead, beside ``tiny.ARCHITECTURES``."""

COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}


def make_headed(directory: Path, name: str, auto_class: Any, *, dtype: Any = torch.float32, **changes: Any) -> Path:
    """Write a random model of an architecture, made by a class such as ``AutoModel``, and the byte-level tokenizer.

    Encoders get one that puts a token before and after each text.
    """
    values = {**COMMON, **{**ARCHITECTURES, **DECODERS, **ENCODERS}[name], **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(values.pop("model_type", name), **values)
    model = auto_class.from_config(config, dtype=dtype)
    for head_name, module in model.named_children():  # random heads give logits of all sizes: keep them near 1
        if isinstance(module, torch.nn.Linear) and head_name in ("score", "classifier"):
            module.weight.data *= 0.3
    model.save_pretrained(directory)
    tokenizer = make_tokenizer()
    if name in ENCODERS:
        tokenizer.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>"})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=[("<cls>", 258), ("<sep>", 259)]
        )
    tokenizer.save_pretrained(directory)
    return directory


def _attention(model_dir: Path) -> dict[str, str]:
    """Return the options for the attention to compare with: in some releases others leave out soft-capping."""
    config = AutoConfig.from_pretrained(model_dir)
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}


def hidden_states(model_dir: Path, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return [T, D] of each prompt, computed alone."""
    model = AutoModel.from_pretrained(model_dir, dtype=torch.float32, **_attention(model_dir)).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(prompt)])).last_hidden_state[0] for prompt in prompts]


def pooled(model_dir: Path, prompts: Sequence[Sequence[int]], pooling: str) -> list[torch.Tensor]:
    """Return [D] of each prompt."""

    def weighted(hidden: torch.Tensor) -> torch.Tensor:
        counts = torch.arange(1.0, len(hidden) + 1)
        return (hidden * counts[:, None]).sum(0) / counts.sum()

    pools = {"mean": lambda h: h.mean(0), "last": lambda h: h[-1], "cls": lambda h: h[0], "weighted-mean": weighted}
    return [pools[pooling](hidden) for hidden in hidden_states(model_dir, prompts)]


def write_sentence_files(
    model_dir: Path,
    pooling: dict[str, Any],
    *,
    prompts: dict[str, str] | None = None,
    usual: str | None = None,
    more: Sequence[str] = (),
    max_seq_length: int | None = None,
    lowers_case: bool = False,
) -> None:
    """Write what sentence-transformers stores beside a model: these modules after the pooling."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"2_{kind}", kind) for kind in more)]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate(kinds)
    ]
    (model_dir / "1_Pooling").mkdir()
    contents = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "config_sentence_transformers.json": {"prompts": prompts or {}, "default_prompt_name": usual},
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": lowers_case},
    }
    for name, content in contents.items():
        (model_dir / name).write_text(json.dumps(content))


def write_dense_layer(model_dir: Path, folder: str, num_in: int, num_out: int, activation: str) -> torch.nn.Module:
    """Write a random layer of sentence-transformers' module Dense, and return it."""
    torch.manual_seed(num_out)
    layer = torch.nn.Linear(num_in, num_out, bias=activation == "Tanh")
    (model_dir / folder).mkdir()
    save_file({f"linear.{name}": value for name, value in layer.state_dict().items()}, model_dir / folder / WEIGHTS)
    config = {
        "in_features": num_in,
        "out_features": num_out,
        "bias": layer.bias is not None,
        "activation_function": f"{getattr(torch.nn, activation).__module__}.{activation}",
    }
    (model_dir / folder / "config.json").write_text(json.dumps(config))
    return torch.nn.Sequential(layer, getattr(torch.nn, activation)()).requires_grad_(False)


def class_logits(model_dir: Path, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return [D] of each prompt: the logits of its classes."""
    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, dtype=torch.float32, **_attention(model_dir)
    ).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(prompt)])).logits[0] for prompt in prompts]

"""The oracle: plain transformers in fp32, one prompt at a time, no batch, no padding, nothing of ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(model_dir: Path) -> Any:
    """Load a model. Its attention is the eager one: in some releases the others leave out soft-capping."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()


def greedy(model_dir: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Return the generated ids of each prompt, the end-of-sequence id included."""
    model = load(model_dir)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
            )
        outputs.append(output[0, len(prompt) :].tolist())
    return outputs


def greedy_texts(model_dir: Path, prompts: Sequence[str], max_new_tokens: int, *, special: bool) -> list[str]:
    """Return the completions of prompts as text. ``special``: let the tokenizer add its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = [tokenizer(prompt, add_special_tokens=special)["input_ids"] for prompt in prompts]
    return [tokenizer.decode(out, skip_special_tokens=True) for out in greedy(model_dir, ids, max_new_tokens)]


def choice_logprobs(
    model_dir: Path, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the log-likelihood of each choice after each prompt."""
    model = load(model_dir)
    return [[sum(_logprobs(model, prompt, choice)) for choice in choices] for prompt in prompts]


def logprobs_of(model_dir: Path, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Return the log probability of each of a completion's ids."""
    model = load(model_dir)
    return _logprobs(model, prompt, completion)


def _logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(dim=-1).gather(-1, torch.tensor(completion)[:, None])[:, 0].tolist()

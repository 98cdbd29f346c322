"""Trains a small LoRA adapter on half of the demo reviews, with peft, in about a minute on two cores.

Usage, from the repository's root, after scripts/demo-model: .venv/bin/python scripts/examples/adapters/train.py [DIR]

It learns to answer a review with "Verdict: good." or "Verdict: bad.", which the model alone never does.
(From so few reviews it learns the form of answers, and hardly to judge.) Then:
job run --config scripts/examples/adapters/verdicts.toml
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL, REVIEWS = ".models/SmolLM2-135M-Instruct", Path("scripts/demo-data/reviews-200.jsonl")


def main(directory: str) -> None:
    """Train for one epoch, and write the adapter."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=5e-4)
    for idx, line in enumerate(REVIEWS.read_text(encoding="utf-8").splitlines()[::2]):
        review = json.loads(line)
        answer = "Verdict: good.<|im_end|>" if review["score"] > 0 else "Verdict: bad.<|im_end|>"
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": review["text"]}], add_generation_prompt=True, tokenize=False
        )
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
        labels = [-100] * len(ids[0]) + ids[1]
        loss = model(input_ids=torch.tensor([ids[0] + ids[1]]), labels=torch.tensor([labels])).loss
        loss.backward()
        if idx % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        if idx % 20 == 19:
            print(f"{idx + 1} reviews, loss {loss.item():.2f}")
    model.save_pretrained(directory)


if __name__ == "__main__":
    main(*(sys.argv[1:] or [".demo/verdicts-adapter"]))

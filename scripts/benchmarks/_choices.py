"""What the benchmarks of choices share."""

import json
from pathlib import Path

from _workload import MODEL, ROOT

REVIEWS = ROOT / "scripts/demo-data/reviews-200.jsonl"
INSTRUCTION = "Is this sentence of a product review positive, negative or neutral? Answer with one word."
CHOICES = ("positive", "negative", "neutral")


def load_review_ids(num_rows: int, data: Path = REVIEWS, model: Path = MODEL) -> list[list[int]]:
    """Return the ids of so many reviews behind the instruction, the chat template applied."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line)["text"] for line in data.open(encoding="utf-8")][:num_rows]
    assert len(texts) == num_rows, f"{data} has only {len(texts)} rows"
    messages = [[{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}] for text in texts]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def load_choice_ids(model: Path = MODEL) -> list[list[int]]:
    """Return the ids of each choice."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in CHOICES]

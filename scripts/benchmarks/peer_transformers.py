"""Peer: transformers' ``generate``, static batches in the order of the data.

Usage: scripts/bench peer-transformers [NUM_PROMPTS] [BATCH] [DATA.jsonl]
"""

import json
import sys
import time
from pathlib import Path

import torch
from _workload import MAX_NEW_TOKENS, MODEL, QUESTIONS, load_prompt_ids
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(num_prompts: int = 256, batch: int = 64, data: Path = QUESTIONS) -> None:
    """Run once and print the figures."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    prompt_ids = load_prompt_ids(num_prompts, data)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    eos = model.generation_config.eos_token_id
    eos = {eos} if isinstance(eos, int) else set(eos)
    num_new_tokens, start = 0, time.perf_counter()
    for first in range(0, num_prompts, batch):
        inputs = tokenizer.pad({"input_ids": prompt_ids[first : first + batch]}, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((idx for idx, token in enumerate(row) if token in eos), len(row) - 1)
            num_new_tokens += end + 1
    secs = time.perf_counter() - start
    result = {
        "system": f"transformers generate, batch {batch}",
        "num_prompts": num_prompts,
        "completion_tokens": num_new_tokens,
        "secs": round(secs, 2),
        "completion_tokens_per_sec": round(num_new_tokens / secs, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    numbers = [int(arg) for arg in sys.argv[1:3]]
    main(*numbers, *map(Path, sys.argv[3:4]))

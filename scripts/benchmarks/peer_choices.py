"""Peers for labels by choices.

Usage: PYTHON scripts/benchmarks/peer_choices.py vllm|generate|loop NUM_ROWS DATA.jsonl

``vllm``: guided choice, with vLLM's python. ``generate``: transformers, 4 tokens, batches of 64. ``loop``: batched
log-likelihoods of prompt and choice over transformers, batches of 64, as lm-evaluation-harness computes them.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 64


def vllm(prompts: list[list[int]], choices: list[str], model_dir: str) -> float:
    """Return the seconds of the steady state."""
    for name, value in (("KVCACHE_SPACE", "2"), ("OMP_THREADS_BIND", "0-1")):
        os.environ.setdefault(f"VLLM_CPU_{name}", value)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(model_dir, dtype="bfloat16", max_model_len=2048, max_num_seqs=256)
    params = SamplingParams(temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(choice=choices))
    llm.generate([{"prompt_token_ids": prompts[0]}], params)
    start = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    secs = time.perf_counter() - start
    assert {output.outputs[0].text for output in outputs} <= set(choices)
    return secs


def load(model_dir: str) -> tuple[Any, Any]:
    """Return transformers' model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16), tokenizer


def generate(prompts: list[list[int]], choices: list[str], model_dir: str) -> float:
    """Return the seconds of generating 4 tokens after each prompt."""
    model, tokenizer = load(model_dir)
    start = time.perf_counter()
    for first in range(0, len(prompts), BATCH):
        inputs = tokenizer.pad({"input_ids": prompts[first : first + BATCH]}, return_tensors="pt")
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return time.perf_counter() - start


def loop(prompts: list[list[int]], choices: list[str], model_dir: str) -> float:
    """Return the seconds of scoring prompt and choice, padded at their end."""
    import torch

    model, tokenizer = load(model_dir)
    endings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in choices]
    pairs = sorted(((ids, ending) for ids in prompts for ending in endings), key=lambda pair: -len(pair[0]))
    start = time.perf_counter()
    for first in range(0, len(pairs), BATCH):
        batch = pairs[first : first + BATCH]
        width = max(len(ids) + len(ending) for ids, ending in batch)
        input_ids = torch.tensor([ids + ending + [0] * (width - len(ids) - len(ending)) for ids, ending in batch])
        with torch.inference_mode():
            logprobs = model(input_ids).logits.float().log_softmax(-1)
        for row, (ids, ending) in enumerate(batch):
            places = torch.arange(len(ids) - 1, len(ids) - 1 + len(ending))
            logprobs[row, places, torch.tensor(ending)].sum().item()
    return time.perf_counter() - start


if __name__ == "__main__":
    from _choices import CHOICES, load_review_ids
    from _workload import MODEL

    system, num_rows, data = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    secs = {"vllm": vllm, "generate": generate, "loop": loop}[system](
        load_review_ids(num_rows, data), list(CHOICES), str(MODEL)
    )
    print(json.dumps({"system": system, "num_rows": num_rows, "secs": round(secs, 2), "rows_per_sec": num_rows / secs}))

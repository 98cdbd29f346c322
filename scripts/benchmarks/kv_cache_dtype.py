"""What a KV cache in fewer bits does to a model's answers.

Usage: scripts/bench kv-cache-dtype [MODEL] [NUM_ROWS] [DTYPE]

Questions of the demo data with their answers are read by the model in DTYPE (default: float32, so that the cache is all
that differs), with caches of several dtypes: the error of the logits relative to a cache in float32, the perplexity of
the answers, and the share of positions with the same most likely token. Then questions alone are completed greedily.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from job.config import EngineConfig, ModelConfig
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.paged.attention.backends import TORCH
from job.engine.paged.attention.cache import FP8, LayerShape
from job.engine.paged.engine import PagedEngine
from job.engine.paged.executor import Executor
from job.engine.paged.schedule.step import Step, rows
from job.engine.paged.support import check_support
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Request
from job.remote.model_files import ModelFiles
from job.tasks import Generate, SamplingParams

DATA = Path(__file__).parents[1] / "demo-data/gsm8k-200.jsonl"
CACHES = (torch.float32, torch.float16, torch.bfloat16, FP8)
NEW_TOKENS = 64


def read(model: LoadedModel, shapes: dict[int, LayerShape], texts: list[list[int]]) -> tuple[torch.Tensor, Any]:
    """Return the logits [T, V] of texts in one step, and the cache."""
    pages = [-(-len(text) // TORCH.page_tokens) for text in texts]
    cache = TORCH.allocate(shapes, sum(pages), torch.device("cpu"))
    taken = iter(range(sum(pages)))
    new_pages = [(slot, idx, next(taken)) for slot, num_pages in enumerate(pages) for idx in range(num_pages)]
    step = Step(
        token_ids=np.array([token for text in texts for token in text], np.int32),
        sequences=rows([(slot, 0, len(text), len(text)) for slot, text in enumerate(texts)], 4),
        new_pages=rows(new_pages, 3),
        pages_to_clear=rows([page[2:] for page in new_pages], 1),
    )
    executor = Executor(model.module, TORCH, cache, num_slots=len(texts), device=torch.device("cpu"))
    return executor.run(step).float(), cache


def compare(
    model: LoadedModel, shapes: dict[int, LayerShape], texts: list[tuple[list[int], int]]
) -> dict[str, dict[str, float]]:
    """Return the figures of each cache; of each text, the tokens from a position on count."""
    sums: dict[str, dict[str, float]] = {}
    for begin in range(0, len(texts), 8):
        part = texts[begin : begin + 8]
        exact: torch.Tensor | None = None
        for dtype in CACHES:
            stored = {idx: replace(shape, stored=dtype) for idx, shape in shapes.items()}
            logits, cache = read(model, stored, [text for text, _ in part])
            exact = logits if exact is None else exact
            found = sums.setdefault(str(dtype).removeprefix("torch."), dict.fromkeys(KEYS, 0.0))
            found["error"] += float((logits - exact).square().sum())
            found["norm"] += float(exact.square().sum())
            found["same"] += int((logits.argmax(-1) == exact.argmax(-1)).sum())
            found["tokens"] += len(logits)
            offset = 0
            for text, answer in part:
                of_text = logits[offset + answer - 1 : offset + len(text) - 1].log_softmax(-1)
                found["loss"] -= float(of_text.gather(-1, torch.tensor(text[answer:])[:, None]).sum())
                found["answered"] += len(text) - answer
                offset += len(text)
            for name, pools in (("largest_key", cache.keys), ("largest_value", cache.values)):
                largest = max(float(pool[:-1].float().nan_to_num(0).abs().max()) for pool in pools.values())
                found[name] = max(found[name], largest)
    return {name: figures(found) for name, found in sums.items()}


KEYS = ("error", "norm", "same", "tokens", "loss", "answered", "largest_key", "largest_value")


def figures(found: dict[str, float]) -> dict[str, float]:
    """Return what the sums amount to."""
    return {
        "error_of_logits": round((found["error"] / found["norm"]) ** 0.5, 5),
        "perplexity": round(float(np.exp(found["loss"] / found["answered"])), 4),
        "same_next_token": round(found["same"] / found["tokens"], 4),
        "largest_key": round(found["largest_key"], 1),
        "largest_value": round(found["largest_value"], 1),
    }


def complete(
    model: LoadedModel, shapes: dict[int, LayerShape], replica: Replica, prompts: list[list[int]]
) -> list[list[int]]:
    """Return greedy completions."""
    engine = PagedEngine(model, shapes, EngineConfig(kv_cache_memory=2**30), replica)
    task = Generate(params=SamplingParams(max_new_tokens=NEW_TOKENS))
    for idx, prompt in enumerate(prompts):
        engine.submit(Request(row_idx=idx, sample_idx=0, prompt_ids=prompt, task=task))
    found: dict[int, list[int]] = {}
    while engine.num_pending:
        found |= {generation.request.row_idx: list(generation.token_ids) for generation in engine.step()}
    return [found[idx] for idx in range(len(prompts))]


def read_questions(name: str, num_rows: int, data: Path = DATA) -> tuple[list[list[int]], list[tuple[list[int], int]]]:
    """Return prompts as token ids; and these with their answers, each with the place where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    found = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:num_rows]]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
        )
        for row in found
    ]
    answers = [tokenizer(row["answer"], add_special_tokens=False).input_ids for row in found]
    texts = [(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
    return prompts, texts


def agreement(exact: list[list[int]], found: list[list[int]]) -> dict[str, float]:
    """Return how far completions are the same."""
    pairs = list(zip(exact, found, strict=True))
    agreed = [next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), NEW_TOKENS) for pair in pairs]  # noqa: B905
    return {
        "same_completions": round(sum(left == right for left, right in pairs) / len(pairs), 3),
        "median_equal_tokens": float(np.median(agreed)),
    }


def main(name: str = "", num_rows: str = "64", dtype: str = "float32") -> None:
    """Compare, and print the figures."""
    name = name or str(DATA.parents[2] / ".models/SmolLM2-135M-Instruct")
    replica = Replica(read_process_info({}, 1), device="cpu")
    config = ModelConfig(model=name, dtype=dtype)
    model = load_model(config, inspect_model(config, ModelFiles(name=name), replica.device, 1), replica, [])
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    prompts, texts = read_questions(name, int(num_rows))
    result: dict[str, Any] = {"dtype": dtype, "num_rows": len(prompts), "caches": compare(model, shapes, texts)}
    exact = complete(model, shapes, replica, prompts)
    for cache_dtype in (torch.float16, FP8):
        found = complete(replace(model, cache_dtype=cache_dtype), shapes, replica, prompts)
        of_cache = result["caches"][str(cache_dtype).removeprefix("torch.")]
        of_cache |= agreement(exact, found)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])

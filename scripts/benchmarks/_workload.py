"""What the engine benchmarks share: the prompts, the model in this process, and how fast this machine is right now.

The workload is the same for every system: GSM8K questions under one chat instruction, greedy, 128 new tokens at most.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".models/SmolLM2-135M-Instruct"
QUESTIONS = ROOT / "scripts/demo-data/gsm8k-200.jsonl"
INSTRUCTION = (
    "You are an annotator. Read the question carefully and answer with a short solution. "
    "Show at most three steps, then give the final number on the last line."
)
MAX_NEW_TOKENS = 128


def load_prompt_ids(num_prompts: int, data: Path = QUESTIONS, model: Path = MODEL) -> list[list[int]]:
    """Return the ids of so many questions, the chat template applied; they begin anew if there are too few."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    questions = [json.loads(line)["question"] for line in data.open(encoding="utf-8")]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": questions[idx % len(questions)]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for idx in range(num_prompts)
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@dataclass(frozen=True)
class Loaded:
    """A model that the paged engine can serve."""

    model: Any
    shapes: Any
    replica: Any


def load(dtype: str = "bfloat16", model: Path = MODEL) -> Loaded:
    """Load a model as the job does."""
    from job.config import ModelConfig
    from job.engine.model.info import inspect_model
    from job.engine.model.loading import load_model
    from job.engine.paged.support import check_support
    from job.launch.environment import read_process_info
    from job.launch.replica import Replica
    from job.remote.model_files import ModelFiles

    config = ModelConfig(model=str(model), dtype=dtype)
    replica = Replica(read_process_info({}, 1))
    loaded = load_model(config, inspect_model(config, ModelFiles(name=config.model), replica.device, 1), replica, [])
    shapes, reason = check_support(loaded, replica)
    assert reason is None, reason
    return Loaded(loaded, shapes, replica)


def run(loaded: Loaded, prompt_ids: list[list[int]], params: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Complete prompts and return figures."""
    from job.config import EngineConfig
    from job.engine.paged.engine import PagedEngine
    from job.records import Request
    from job.tasks import Generate, SamplingParams

    task = Generate(params=SamplingParams(**{"max_new_tokens": MAX_NEW_TOKENS, **params}))
    engine = PagedEngine(loaded.model, loaded.shapes, EngineConfig(**config), loaded.replica)
    for row_idx, ids in enumerate(prompt_ids):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=task))
    num_preempted = _count_calls(engine.scheduler, "_preempt")
    num_steps, num_new_tokens, num_errors = 0, 0, 0
    start = time.perf_counter()
    while engine.num_pending:
        for generation in engine.step():
            num_new_tokens += len(generation.token_ids)
            num_errors += generation.error is not None
        num_steps += 1
    secs = time.perf_counter() - start
    return {
        "num_prompts": len(prompt_ids),
        "prompt_tokens": sum(map(len, prompt_ids)),
        "completion_tokens": num_new_tokens,
        "num_errors": num_errors,
        "num_steps": num_steps,
        "num_preempted": len(num_preempted),
        "secs": round(secs, 2),
        "completion_tokens_per_sec": round(num_new_tokens / secs, 1),
        "tokens_per_sec": round((num_new_tokens + sum(map(len, prompt_ids))) / secs, 1),
    }


def _count_calls(owner: Any, name: str) -> list[None]:
    calls: list[None] = []
    original = getattr(owner, name)

    def counted(*args: Any) -> Any:
        calls.append(None)
        return original(*args)

    setattr(owner, name, counted)
    return calls


def floor_tera(num_prompt_tokens: int, num_new_tokens: int, model: Path = MODEL) -> float:
    """Return the operations (10**12) of the matrix products alone, common beginnings counted once."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_size = config.get("head_dim") or hidden // heads
    layer = hidden * head_size * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
    body = config["num_hidden_layers"] * layer
    return 2 * (body * (num_prompt_tokens + num_new_tokens) + config["vocab_size"] * hidden * num_new_tokens) / 1e12


def gauge() -> dict[str, float]:
    """Measure the machine: bfloat16 products of 2048 x 2048 matrices (10**9 operations a second), and reads (GB/s)."""
    import torch

    left, right = torch.randn(2048, 2048).bfloat16(), torch.randn(2048, 2048).bfloat16()
    many = torch.randn(32 * 1024 * 1024)
    with torch.inference_mode():
        torch.nn.functional.linear(left, right), many.sum()
        start = time.perf_counter()
        for _ in range(15):
            torch.nn.functional.linear(left, right)
        giga = 15 * 2 * 2048**3 / (time.perf_counter() - start) / 1e9
        start = time.perf_counter()
        for _ in range(10):
            many.sum()
        bandwidth = 10 * many.numel() * 4 / (time.perf_counter() - start) / 1e9
    return {"gflops": round(giga), "read_gb_per_sec": round(bandwidth, 1)}

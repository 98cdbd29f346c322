"""What layers in 8 bits change in a model's answers, what they take, and how fast they are.

Usage: scripts/bench quantize quality [MODEL] [DTYPE] [NUM_ROWS] [QUESTIONS.jsonl] [REVIEWS.jsonl]
       scripts/bench quantize memory [MODEL] [DTYPE]
       scripts/bench quantize speed [MODEL] [ROUNDS]

quality: questions with their answers are read by the model in DTYPE (default: bfloat16) with each quantization: the
perplexity of the answers, and the share of positions with the same most likely token as without. Then questions alone
are completed greedily, and reviews are labelled by scored choices. What float32 changes is printed for comparison.
Intervals are of 95 %, from drawing rows anew.
memory: of each process while the model is loaded, at tensor-parallel sizes 1 and 2; see ``scripts/bench loading``.
speed: decode steps of 1, 16 and 64 rows on one thread, all precisions in turn, in CPU time of the process, so that
others on the machine count less.
"""

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.argv[1:2] == ["speed"]:
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _choices import CHOICES, REVIEWS, load_choice_ids, load_review_ids
from _workload import MODEL
from kv_cache_dtype import DATA, agreement, complete, read, read_questions

from job.config import QUANTIZATIONS, EngineConfig, ModelConfig
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Request
from job.remote.model_files import ModelFiles
from job.tasks import Generate, SamplingParams, Score, Task

NUM_DRAWS, NUM_COMPLETED = 2000, 64
NEUTRAL = 0.5
"""Ratings of at most this size count as neutral."""

NUM_ROWS = (1, 16, 64)
DECODED = {1: 24, 16: 24, 64: 12}
"""Decode steps that are timed, by the number of rows."""


@dataclass(frozen=True)
class Loaded:
    """A model that the paged engine can serve."""

    model: LoadedModel
    shapes: Any
    replica: Replica


def load(name: str, dtype: str, scheme: str | None) -> Loaded:
    """Load a model as the job does."""
    replica = Replica(read_process_info({}, 1), device="cpu")
    config = ModelConfig(model=name, dtype=dtype, quantize=scheme)
    model = load_model(config, inspect_model(config, ModelFiles(name=name), replica.device, 1), replica, [])
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    return Loaded(model, shapes, replica)


@dataclass(frozen=True)
class Answers:
    """What a model makes of the data."""

    best: torch.Tensor
    """The most likely token after each position of all texts."""
    losses: np.ndarray
    """Of the answer in each text, in nats, and its number of tokens: [N, 2]."""
    completions: list[list[int]]
    labels: np.ndarray
    """The index of the choice with the largest score, of each review."""


def read_all(loaded: Loaded, texts: list[tuple[list[int], int]]) -> tuple[torch.Tensor, np.ndarray]:
    """Return ``Answers.best`` and ``Answers.losses``. Each text comes with the place where its answer begins."""
    best, losses = [], []
    for begin in range(0, len(texts), 8):
        part = texts[begin : begin + 8]
        logits, _ = read(loaded.model, loaded.shapes, [text for text, _ in part])
        best.append(logits.argmax(-1))
        offset = 0
        for text, answer in part:
            of_text = logits[offset + answer - 1 : offset + len(text) - 1].log_softmax(-1)
            likely = of_text.gather(-1, torch.tensor(text[answer:])[:, None])
            losses.append((-float(likely.sum()), len(text) - answer))
            offset += len(text)
    return torch.cat(best), np.array(losses)


def label(loaded: Loaded, prompts: list[list[int]], name: str) -> np.ndarray:
    """Return the choice of each review."""
    task = Score(choice_ids=tuple(map(tuple, load_choice_ids(Path(name)))))
    engine = PagedEngine(loaded.model, loaded.shapes, EngineConfig(kv_cache_memory=2**30), loaded.replica)
    found = finish(engine, prompts, task)
    return np.array([int(np.argmax(found[idx].numbers)) for idx in range(len(prompts))])


def finish(engine: PagedEngine, prompts: list[list[int]], task: Task) -> dict[int, Any]:
    """Return what an engine makes of prompts."""
    for idx, prompt in enumerate(prompts):
        engine.submit(Request(row_idx=idx, sample_idx=0, prompt_ids=prompt, task=task))
    found: dict[int, Any] = {}
    while engine.num_pending:
        found |= {generation.request.row_idx: generation for generation in engine.step()}
    return found


def interval(values: list[float]) -> list[float]:
    """Return the middle 95 %."""
    return [round(float(value), 4) for value in np.percentile(values, [2.5, 97.5])]


def perplexity(losses: np.ndarray) -> float:
    """Return the perplexity of all answers together."""
    return float(np.exp(losses[:, 0].sum() / losses[:, 1].sum()))


def compare(found: Answers, base: Answers, gold: np.ndarray) -> dict[str, Any]:
    """Return the figures of one quantization against none."""
    rng, num_rows = np.random.default_rng(0), len(found.losses)
    rows = [rng.integers(0, num_rows, num_rows) for _ in range(NUM_DRAWS)]
    same_labels = found.labels == base.labels
    reviews = [rng.integers(0, len(gold), len(gold)) for _ in range(NUM_DRAWS)]
    return {
        "num_questions": num_rows,
        "answer_tokens": int(found.losses[:, 1].sum()),
        "perplexity": round(perplexity(found.losses), 4),
        "perplexity_interval": interval([perplexity(found.losses[row]) for row in rows]),
        "ratio": round(perplexity(found.losses) / perplexity(base.losses), 4),
        "ratio_interval": interval([perplexity(found.losses[row]) / perplexity(base.losses[row]) for row in rows]),
        "same_next_token": round(float((found.best == base.best).float().mean()), 4),
        "num_completions": len(found.completions),
        **agreement(base.completions, found.completions),
        "num_reviews": len(gold),
        "same_labels": round(float(same_labels.mean()), 4),
        "same_labels_interval": interval([same_labels[row].mean() for row in reviews]),
        "right_labels": round(float((found.labels == gold).mean()), 4),
    }


def quality(
    name: str = str(MODEL),
    dtype: str = "bfloat16",
    num_rows: str = "200",
    questions: str = str(DATA),
    reviews: str = str(REVIEWS),
) -> None:
    """Compare answers."""
    prompts, texts = read_questions(name, int(num_rows), Path(questions))
    lines = Path(reviews).read_text(encoding="utf-8").splitlines()[: int(num_rows)]
    ratings = [json.loads(line)["score"] for line in lines]
    names = ["neutral" if abs(score) <= NEUTRAL else "positive" if score > 0 else "negative" for score in ratings]
    gold = np.array([CHOICES.index(name) for name in names])
    review_ids = load_review_ids(len(ratings), Path(reviews), Path(name))
    base: Answers | None = None
    for own_dtype, scheme in ((dtype, None), ("float32", None), *((dtype, scheme) for scheme in QUANTIZATIONS)):
        loaded = load(name, own_dtype, scheme)
        best, losses = read_all(loaded, texts)
        completions = complete(loaded.model, loaded.shapes, loaded.replica, prompts[:NUM_COMPLETED])
        found = Answers(best, losses, completions, label(loaded, review_ids, name))
        base = base or found
        print(json.dumps({"quantize": scheme, "dtype": own_dtype, **compare(found, base, gold)}), flush=True)


def memory(name: str = str(MODEL), dtype: str = "bfloat16") -> None:
    """Load in processes of their own."""
    from loading import start

    for size in (1, 2):
        for scheme in (None, *QUANTIZATIONS):
            print(
                json.dumps(
                    {"quantize": scheme, "size": size, "unit": "MiB", "processes": start(name, dtype, size, scheme)}
                )
            )


def step_secs(loaded: Loaded, num_rows: int) -> float:
    """Return the CPU time of a decode step."""
    engine = PagedEngine(
        loaded.model, loaded.shapes, EngineConfig(kv_cache_memory=2**28, max_batch_rows=64), loaded.replica
    )
    task = Generate(params=SamplingParams(max_new_tokens=DECODED[num_rows] + 8, ignore_eos=True))
    for idx in range(num_rows):
        ids = [(7 * idx + place) % 1000 + 20 for place in range(16)]
        engine.submit(Request(row_idx=idx, sample_idx=0, prompt_ids=ids, task=task))
    for _ in range(4):  # reads the prompts, and warms up
        engine.step()
    begin = time.process_time()
    for _ in range(DECODED[num_rows]):
        engine.step()
    secs = (time.process_time() - begin) / DECODED[num_rows]
    while engine.num_pending:
        engine.step()
    return secs


def speed(name: str = str(MODEL), rounds: str = "5") -> None:
    """Time all precisions in turn."""
    torch.set_num_threads(1)
    models = {"bfloat16": load(name, "bfloat16", None), "float32": load(name, "float32", None)}
    models |= {scheme: load(name, "bfloat16", scheme) for scheme in QUANTIZATIONS}
    for num_rows in NUM_ROWS:
        secs: dict[str, list[float]] = {key: [] for key in models}
        for _ in range(int(rounds)):
            for key, loaded in models.items():
                secs[key].append(step_secs(loaded, num_rows))
        for key, times in secs.items():
            ratios = [own / base for own, base in zip(times, secs["bfloat16"], strict=True)]
            figures = {
                "tokens_per_sec": round(num_rows / statistics.median(times), 1),
                "time_ratio": round(statistics.median(ratios), 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            }
            print(json.dumps({"precision": key, "num_rows": num_rows, "rounds": len(times), **figures}), flush=True)


STAGES = {"quality": quality, "memory": memory, "speed": speed}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in STAGES:
        sys.exit(f"Name one of {', '.join(STAGES)}.\n{__doc__}")
    STAGES[sys.argv[1]](*sys.argv[2:])

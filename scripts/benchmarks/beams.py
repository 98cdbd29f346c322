"""Beam search in the static engine against transformers' ``generate``, in batches of the same size.

Usage: scripts/bench beams MODEL [FILE.jsonl] [NUM_BEAMS] [BATCH_ROWS] [MAX_NEW_TOKENS] [ROUNDS]

Texts (the column "text" of the file, default: the demo reviews) are read, NUM_BEAMS (default 4) searched, in batches of
BATCH_ROWS texts (default 16), sorted by length, in float32. Both ways take turns; figures are seconds of this process's
CPU time. The last line is JSON: the seconds of each round, the ratio of the best, and how many rows are equal.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from job.config import EngineConfig, ModelConfig
from job.engine.model.info import inspect_model
from job.engine.model.loading import load_model
from job.engine.static.engine import StaticEngine
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Request
from job.remote.model_files import ModelFiles
from job.tasks import BeamSearch, SamplingParams

DATA = Path(__file__).parents[1] / "demo-data/reviews-200.jsonl"


def load(name: str, max_rows: int) -> StaticEngine:
    """Return the engine of the job for a model."""
    replica, config = Replica(read_process_info({}, 1)), ModelConfig(model=name, dtype="float32")
    model = load_model(config, inspect_model(config, ModelFiles(name=name), replica.device, 1), replica, [])
    return StaticEngine(model, EngineConfig(max_batch_rows=max_rows), replica)


def in_engine(engine: StaticEngine, texts: list[list[int]], task: BeamSearch) -> list[list[int]]:
    """Return the completion of each text."""
    for idx, text in enumerate(texts):
        engine.submit(Request(row_idx=idx, sample_idx=0, prompt_ids=text, task=task))
    found = {}
    while engine.num_pending:
        found |= {generation.request.row_idx: list(generation.token_ids) for generation in engine.step()}
    return [found[idx] for idx in range(len(texts))]


def in_batches(module: Any, texts: list[list[int]], num_rows: int, **options: Any) -> list[list[int]]:
    """Return the completion of each text by ``generate``: longest first, padded on the right."""
    pad_id = module.generation_config.pad_token_id
    order = sorted(range(len(texts)), key=lambda idx: -len(texts[idx]))
    found: dict[int, list[int]] = {}
    num_begin = 1 if module.generation_config.forced_bos_token_id is None else 2
    for begin in range(0, len(order), num_rows):
        batch = order[begin : begin + num_rows]
        width = len(texts[batch[0]])
        ids = torch.tensor([texts[idx] + [pad_id] * (width - len(texts[idx])) for idx in batch])
        mask = torch.tensor([[1] * len(texts[idx]) + [0] * (width - len(texts[idx])) for idx in batch])
        with torch.inference_mode():
            outputs = module.generate(ids, attention_mask=mask, **options).tolist()
        found |= {idx: ended(output[num_begin:], module, pad_id) for idx, output in zip(batch, outputs, strict=True)}
    return [found[idx] for idx in range(len(texts))]


def ended(ids: list[int], module: Any, pad_id: int) -> list[int]:
    """Return ids up to the one that ends them."""
    eos_id = module.generation_config.eos_token_id
    if eos_id in ids:
        return ids[: ids.index(eos_id) + 1]
    while ids and ids[-1] == pad_id:
        ids = ids[:-1]
    return ids


def main(
    name: str, data: str = str(DATA), num_beams: int = 4, num_rows: int = 16, max_new_tokens: int = 40, rounds: int = 3
) -> None:
    """Measure both ways in turns."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    lines = Path(data).read_text(encoding="utf-8").splitlines()
    texts: list[list[int]] = [tokenizer(json.loads(line)["text"])["input_ids"] for line in lines]
    engine = load(name, num_rows * num_beams)
    plain = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32).eval()
    decoder = engine._tasks[BeamSearch]._model.decoder  # type: ignore[attr-defined]
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        no_repeat_ngram_size=decoder.no_repeat_ngram_size,
        min_new_tokens=max(0, decoder.min_len - len(decoder.begin_ids)),
    )
    task = BeamSearch(
        params=params,
        num_beams=num_beams,
        length_penalty=decoder.length_penalty,
        early_stopping=decoder.early_stopping,
    )
    longest = max_new_tokens + len(decoder.begin_ids) - 1
    ways = {
        "job": lambda: in_engine(engine, texts, task),
        "generate": lambda: in_batches(plain, texts, num_rows, num_beams=num_beams, max_new_tokens=longest),
    }
    secs: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for way, compute in ways.items():
            start = time.process_time()
            found[way] = compute()
            secs[way].append(round(time.process_time() - start, 2))
    num_equal = sum(one == other for one, other in zip(found["job"], found["generate"], strict=True))
    ratio = round(min(secs["generate"]) / min(secs["job"]), 2)
    print(json.dumps({"model": name, "cpu_secs": secs, "ratio": ratio, "equal": num_equal, "rows": len(texts)}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:7]))

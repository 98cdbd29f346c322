"""Embeddings in the paged engine against sorted static batches, which is what sentence-transformers' ``encode`` does.

Usage: scripts/bench embed [MODEL] [NUM_ROWS] [DTYPE] [ROUNDS]

Questions of the demo data become vectors (default: the demo model, 200, auto). Both ways are on the same loaded model
and take turns; figures are of this process's CPU time, so other processes on the machine matter little. One line of
JSON for each way: tokens a second in every round, and the least cosine to a vector in float32.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from job.config import EngineConfig, ModelConfig
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.records import Request
from job.remote.model_files import ModelFiles
from job.tasks import Pool

DATA = Path(__file__).parents[1] / "demo-data/gsm8k-200.jsonl"
STATIC_ROWS = (32, 64)


def load(name: str, dtype: str) -> tuple[LoadedModel, Replica]:
    """Load a model as the job does for --task embed."""
    replica, config = Replica(read_process_info({}, 1)), ModelConfig(model=name, dtype=dtype, task="embed")
    info = inspect_model(config, ModelFiles(name=name), replica.device, 1)
    return load_model(config, info, replica, []), replica


def in_pages(engine: PagedEngine, texts: list[list[int]], pooling: str, size: int) -> list[Any]:
    """Return a vector of each text."""
    for idx, text in enumerate(texts):
        engine.submit(Request(row_idx=idx, sample_idx=0, prompt_ids=text, task=Pool(size=size, pooling=pooling)))
    found = {}
    while engine.num_pending:
        found |= {generation.request.row_idx: torch.from_numpy(generation.vector) for generation in engine.step()}
    return [found[idx] for idx in range(len(texts))]


def in_batches(module: Any, texts: list[list[int]], pooling: str, num_rows: int) -> list[Any]:
    """Return a vector of each text: longest first, padded on the right."""
    order, found = sorted(range(len(texts)), key=lambda idx: -len(texts[idx])), {}
    for begin in range(0, len(order), num_rows):
        batch = order[begin : begin + num_rows]
        width = len(texts[batch[0]])
        ids = torch.tensor([texts[idx] + [0] * (width - len(texts[idx])) for idx in batch])
        lengths = torch.tensor([len(texts[idx]) for idx in batch])
        mask = torch.arange(width) < lengths[:, None]
        with torch.inference_mode():
            hidden = module(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        if pooling == "last":
            vectors = hidden[torch.arange(len(batch)), lengths - 1].float()
        else:
            vectors = (hidden.float() * mask[..., None]).sum(1) / lengths[:, None]
        found |= dict(zip(batch, vectors, strict=True))
    return [found[idx] for idx in range(len(texts))]


def main(
    name: str = ".models/SmolLM2-135M-Instruct", num_rows: int = 200, dtype: str = "auto", rounds: int = 3
) -> None:
    """Measure both ways in turns."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    questions = [json.loads(line)["question"] for line in DATA.read_text(encoding="utf-8").splitlines()[:num_rows]]
    texts: list[list[int]] = tokenizer(questions)["input_ids"]
    model, replica = load(name, dtype)
    plain = AutoModel.from_pretrained(name, dtype=model.dtype).eval()
    exact_model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    size = model.module.config.hidden_size
    for pooling in ("last", "mean"):
        engine = PagedEngine(model, shapes, EngineConfig(), replica)
        ways: dict[str, Callable[[], list[Any]]] = {
            "paged": lambda engine=engine, pooling=pooling: in_pages(engine, texts, pooling, size),  # type: ignore[misc]
            **{
                f"static {rows}": lambda rows=rows, pooling=pooling: in_batches(plain, texts, pooling, rows)  # type: ignore[misc]
                for rows in STATIC_ROWS
            },
        }
        exact = torch.stack(in_batches(exact_model, texts, pooling, 1))
        speeds: dict[str, list[int]] = {way: [] for way in ways}
        vectors = {}
        for _ in range(rounds):
            for way, compute in ways.items():
                start = time.process_time()
                vectors[way] = torch.stack(compute())
                speeds[way].append(round(sum(map(len, texts)) / (time.process_time() - start)))
        for way, found in vectors.items():
            cosine = float(torch.nn.functional.cosine_similarity(found, exact).min())
            figures = {"tokens_per_cpu_second": speeds[way], "least_cosine_to_float32": round(cosine, 6)}
            print(json.dumps({"pooling": pooling, "way": way, "dtype": str(model.dtype), **figures}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]), *sys.argv[3:4], *map(int, sys.argv[4:5]))

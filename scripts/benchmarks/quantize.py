"""What layers in 8 bits change in a model's answers, and what they take.

Usage: scripts/bench quantize [MODEL] [NUM_ROWS] [DTYPE]

Questions of the demo data with their answers are read by the model in DTYPE (default: bfloat16) with each quantization:
the perplexity of the answers, and the share of positions with the same most likely token as without. Then questions
alone are completed greedily. Seconds are those of reading all texts.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from kv_cache_dtype import DATA, agreement, complete, read, read_questions

from job.config import QUANTIZATIONS, ModelConfig
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.model.quantized import Int8Linear
from job.engine.paged.support import check_support
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.remote.model_files import ModelFiles

Texts = list[tuple[list[int], int]]
"""Token ids, and where the answer begins."""


def num_bytes(model: LoadedModel) -> int:
    """Return what the weights take."""
    scales = sum(part.scale.nbytes for part in model.module.modules() if isinstance(part, Int8Linear))
    return sum(part.nbytes for part in model.module.parameters()) + scales


def read_all(model: LoadedModel, shapes: Any, texts: Texts) -> tuple[torch.Tensor, float]:
    """Return the most likely token after each position of all texts, and the perplexity of the answers."""
    best, loss, answered = [], 0.0, 0
    for begin in range(0, len(texts), 8):
        part = texts[begin : begin + 8]
        logits, _ = read(model, shapes, [text for text, _ in part])
        best.append(logits.argmax(-1))
        offset = 0
        for text, answer in part:
            of_text = logits[offset + answer - 1 : offset + len(text) - 1].log_softmax(-1)
            loss -= float(of_text.gather(-1, torch.tensor(text[answer:])[:, None]).sum())
            answered += len(text) - answer
            offset += len(text)
    return torch.cat(best), float(np.exp(loss / answered))


def main(name: str = "", num_rows: str = "64", dtype: str = "bfloat16") -> None:
    """Compare, and print the figures."""
    name = name or str(DATA.parents[2] / ".models/SmolLM2-135M-Instruct")
    prompts, texts = read_questions(name, int(num_rows))
    best: torch.Tensor | None = None
    exact: list[list[int]] = []
    for scheme in (None, *QUANTIZATIONS):
        replica = Replica(read_process_info({}, 1), device="cpu")
        config = ModelConfig(model=name, dtype=dtype, quantize=scheme)
        model = load_model(config, inspect_model(config, ModelFiles(name=name), replica.device, 1), replica, [])
        shapes, reason = check_support(model, replica)
        assert reason is None, reason
        held = num_bytes(model)  # before the engine packs layers
        begin = time.perf_counter()
        found, perplexity = read_all(model, shapes, texts)
        secs = time.perf_counter() - begin
        best = found if best is None else best
        completions = complete(model, shapes, replica, prompts)
        exact = exact or completions
        result = {
            "quantize": scheme,
            "megabytes": round(held / 1e6, 1),
            "perplexity": round(perplexity, 4),
            "same_next_token": round(float((found == best).float().mean()), 4),
            **agreement(exact, completions),
            "secs": round(secs, 1),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The paged engine on a GPU. Skipped where there is none; nothing of this has run yet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracle import greedy
from tests.ranks import Ranks
from tests.tiny import ARCHITECTURES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MAX_NEW_TOKENS = 12
PROMPTS = [[5 + (row * 7 + at) % 200 for at in range(length)] for row, length in enumerate((1, 5, 17, 40, 60, 60, 300))]


def run_on_gpu(
    tmp_path: Path, models: list[Path], dtype: str, config: dict[str, Any], **params: Any
) -> tuple[list[list[list[int]]], list[str]]:
    """Complete the prompts with each model in a process of its own.

    Returns:
        The tokens of each model's rows, and what the user was told, but for what was fused.
    """
    jobs = {
        str(model): {"model": str(model), "prompts": PROMPTS, "params": {"max_new_tokens": MAX_NEW_TOKENS, **params}}
        | {"engine": "chosen", "config": config}
        for model in models
    }
    process = Ranks(tmp_path, 1, dtype, env={"DS_ACCELERATOR": "cuda"})
    results = process.run(jobs).values()
    process.close()
    tokens = [[ids for _, ids, _, _ in result["generations"]] for result in results]
    notes = [note for result in results for note in result["notes"]]
    return tokens, [note for note in notes if not note.startswith("fused: ")]


def test_float32_equals_transformers(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    models = [tiny_model(name) for name in ARCHITECTURES if name != "gpt_neo"]
    found, notes = run_on_gpu(tmp_path, models, "float32", {"max_batch_rows": 4, "max_batch_tokens": 64})
    assert found == [greedy(model, PROMPTS, MAX_NEW_TOKENS) for model in models]
    assert notes == [], "neither the kernel nor the recording was given up"


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}])
def test_recorded_steps_equal_launched_ones(
    params: dict[str, Any], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """CUDA graphs change when kernels are launched, not what they compute."""
    models = [tiny_model("llama"), tiny_model("qwen2")]
    outputs = []
    for cuda_graphs in (True, False):
        directory = tmp_path / str(cuda_graphs)
        directory.mkdir()
        tokens, notes = run_on_gpu(directory, models, "float16", {"cuda_graphs": cuda_graphs}, **params)
        assert notes == [], "neither the kernel nor the recording was given up"
        outputs.append(tokens)
    assert outputs[0] == outputs[1]

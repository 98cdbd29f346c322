"""The paged engine on a GPU. Skipped where there is none; nothing of this has run yet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import finish, start_processes
from tests.oracle import greedy
from tests.tiny import ARCHITECTURES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MAX_NEW_TOKENS = 12
PROMPTS = [[5 + (row * 7 + at) % 200 for at in range(length)] for row, length in enumerate((1, 5, 17, 40, 60, 60, 300))]


def run_on_gpu(tmp_path: Path, models: list[Path], dtype: str, config: dict[str, Any]) -> list[list[list[int]]]:
    """Complete the prompts with each model in a process of its own, and return the tokens."""
    params = {"max_new_tokens": MAX_NEW_TOKENS}
    jobs = [
        {"model": str(m), "prompts": PROMPTS, "params": params, "engine": "paged", "config": config} for m in models
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = ["-m", "tests.engine_process", tmp_path / "jobs.json", tmp_path / "out.json", 1, dtype]
    (result,) = finish(start_processes(command, env={"DS_ACCELERATOR": "cuda"}))
    assert result.exit_code == 0, result.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    return [[ids for _, ids, _, _ in result["generations"]] for result in results]


def test_float32_equals_transformers(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Plain operations serve float32: the kernel computes in half precision only."""
    models = [tiny_model(name) for name in ARCHITECTURES if name != "gpt_neo"]
    found = run_on_gpu(tmp_path, models, "float32", {"max_batch_rows": 4, "max_batch_tokens": 64})
    assert found == [greedy(model, PROMPTS, MAX_NEW_TOKENS) for model in models]


def test_recorded_steps_equal_launched_ones(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """CUDA graphs change when kernels are launched, not what they compute."""
    models = [tiny_model("llama"), tiny_model("qwen2")]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    recorded = run_on_gpu(tmp_path / "a", models, "float16", {"cuda_graphs": True})
    launched = run_on_gpu(tmp_path / "b", models, "float16", {"cuda_graphs": False})
    assert recorded == launched

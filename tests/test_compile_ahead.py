"""The kernels compile for GPUs that are not here. All of them: ``scripts/bench compile-ahead``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
LAUNCHES = [
    (80, "SmolLM2", "chunk"),
    (90, "SmolLM2", "chunk"),
    (100, "SmolLM2", "chunk"),
    (80, "SmolLM2", "decode"),
    (90, "SmolLM2", "decode"),
    (90, "SmolLM2", ", store"),
    (80, "SmolLM2", "rotate and store"),
    (90, "Llama", "rotate and store, bfloat16"),
    (90, "SmolLM2", "combine"),
    (90, "Llama", "chunk 128x64, bfloat16"),
    (89, "Gemma", "chunk"),
    (100, "gate", "float16"),
]
MAX_SPILLED_BYTES = 32

COMPILE = """
import json, sys
import compile_ahead
for capability, *words in json.loads(sys.argv[1]):
    for name, launch in compile_ahead.launches_for(capability):
        if all(word in name for word in words):
            print(json.dumps([capability, name, compile_ahead.compile_ahead(launch, capability).spilled_bytes]))
"""


def test_kernels_in_half_precision_compile_and_hardly_spill(tmp_path: Path) -> None:
    """In a process of its own, since kernels are interpreted in this one."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts/benchmarks'}", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, json.dumps(LAUNCHES)]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [capability for capability, _, _ in found] == [capability for capability, *_ in LAUNCHES]
    assert [line for line in found if line[2] > MAX_SPILLED_BYTES] == []

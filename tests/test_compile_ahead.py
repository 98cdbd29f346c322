"""The kernels compile for GPUs that are not here. All of them: ``scripts/bench compile-ahead``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/benchmarks/compile_ahead.py"
LAUNCHES = {
    ("80", "90", "100"): ("SmolLM2", "float16"),
    ("90",): ("Llama", "chunk", "bfloat16"),
    ("89",): ("Gemma", "chunk"),
    ("100",): ("gate",),
}
MAX_SPILLED_BYTES = 32


def test_kernels_in_half_precision_compile_and_hardly_spill() -> None:
    """In processes of their own, since kernels are interpreted in this one."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(ROOT)
    found = {}
    for capabilities, words in LAUNCHES.items():
        command = [sys.executable, SCRIPT, *capabilities, *words]
        result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert result.returncode == 0, result.stderr
        found |= json.loads(result.stdout.splitlines()[-1])
    assert {name.split(",")[0] for name in found} == {"sm_80", "sm_89", "sm_90", "sm_100"} and len(found) > 15
    assert {name: taken["spilled"] for name, taken in found.items() if taken["spilled"] > MAX_SPILLED_BYTES} == {}

"""``scripts/bench gpu``: every stage is rehearsed on a CPU, none can stop the others; and the step model."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "scripts" / "benchmarks"

PROBE = """
import os, signal
from gpu_stages.figures import save

def main(what):
    if what == "end":
        os._exit(7)
    if what == "be silent":
        return
    save("a case", {"value": 4.0}, value=2.0, words="a | b")
    if what == "hang":
        signal.pause()
"""
"""A stage."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import the benchmarks as their scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.slow
def test_every_stage_is_rehearsed(tmp_path: Path) -> None:
    """All figures are saved, and the killed run went on; minutes on a GPU are too few to find a typing error in."""
    from gpu_stages.plan import STAGES

    command = [sys.executable, BENCHMARKS / "gpu.py", "--rehearse", "--out", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr + (tmp_path / "log.txt").read_text("utf-8")
    figures = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text("utf-8").splitlines()]
    assert [stage.name for stage in STAGES] == list(dict.fromkeys(line["stage"] for line in figures))
    (resumed,) = [line["measured"] for line in figures if "resumed" in line["case"]]
    assert resumed["equal_to_undisturbed"] and resumed["parts_at_kill"] > 0


def test_a_stage_that_fails_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One crashes, one ends its process, one saves nothing, one hangs and keeps what it saved; the last one works."""
    from gpu_stages import figures, plan, processes, running, summary

    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(processes.START, "spawn")  # this process has threads, which would be lost in a fork
    monkeypatch.setattr(processes, "IMPORTS", ())

    def stage(name: str, limit_secs: int = 60, **values: Any) -> plan.Stage:
        return plan.Stage(name=name, finds="something", limit_secs=limit_secs, module="probe", values=values)

    stages = [
        stage("crashes", wrong=1),
        stage("ends", what="end"),
        stage("is silent", what="be silent"),
        stage("hangs", limit_secs=2, what="hang"),
        stage("works", what="work"),
    ]
    outcomes = list(running.run_stages(stages, tmp_path, 300, is_rehearsal=False))
    assert {outcome.stage.name: outcome.problem for outcome in outcomes} == {
        "crashes": "failed with exit code 1",
        "ends": "failed with exit code 7",
        "is silent": "saved no figures",
        "hangs": "killed at its limit of 2 s",
        "works": None,
    }
    assert "unexpected keyword argument 'wrong'" in outcomes[0].tail
    found = figures.read(tmp_path / "figures.jsonl")
    assert [line.stage for line in found] == ["hangs", "works"]
    text = summary.summary(outcomes, found, ["another"])
    assert "| a case | value | 2 | 4 | 0.50 |" in text and "| a case | words | a / b |  |  |" in text
    assert text.endswith("## No time left for\n\nanother\n")


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than begun and killed; the processes that wait for their turn are ended."""
    from gpu_stages import plan, processes, running

    monkeypatch.setenv(processes.START, "spawn")
    monkeypatch.setattr(processes, "IMPORTS", ())
    assert list(running.run_stages(plan.STAGES[:2], tmp_path, 5, is_rehearsal=False)) == []
    assert not (tmp_path / "figures.jsonl").exists()
    assert multiprocessing.active_children() == []


def test_gaps_are_what_no_kernel_covers() -> None:
    """Kernels of several streams may overlap; the window is that of the device, not of the host."""
    from gpu_stages.gaps import shares

    def event(category: str, name: str, begin: float, length: float) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": length}

    events = [
        event("cpu_op", "aten::add", 0, 500),
        event("kernel", "a", 100, 40),
        event("kernel", "inside a", 110, 10),
        event("kernel", "overlaps a", 130, 20),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 170, 10),
        event("kernel", "b", 190, 10),
        event("cuda_runtime", "cudaStreamSynchronize", 150, 25),
        {"ph": "i", "name": "an instant", "ts": 1000},
    ]
    assert shares(events) == {
        "gap_share": pytest.approx(0.3),
        "wait_share": 0.25,
        "device_events": 5,
        "copies_to_device": 1,
        "copies_to_host": 0,
        "waits": 1,
    }


def test_step_model_counts_what_a_step_moves() -> None:
    """Llama 3.1 8B at 256 rows of 1,152 tokens: 15 GB of weights and 38.7 GB of cache, and both ceilings of an H100."""
    from _model_shapes import SHAPES
    from step_model import H100, StepModel, run_secs

    shape = SHAPES["llama-3.1-8b"]
    assert shape.weights + shape.hidden * shape.vocab == pytest.approx(8.03e9, rel=1e-3)  # with the embedding: "8B"
    assert shape.kv_bytes() == 131_072
    step, plain = (StepModel.decode(shape, 256, 1152, is_fused=fused) for fused in (True, False))
    assert step.floor(H100) == pytest.approx(17.9e-3, rel=0.01)
    own = sum(part.num_bytes for part in plain.parts if part.name in ("norms", "rotation", "gates", "residual sums"))
    assert own == pytest.approx(32 * 151e6, rel=0.01)  # counted on meta tensors: 151 MB a layer
    assert step.floor(H100) < step.expected(H100) < plain.expected(H100)
    assert step.expected(H100, is_recorded=False) == step.expected(H100), "an 8B model's device is the slower one"
    small = StepModel.decode(SHAPES["smollm2-135m"], 512, 400)
    assert small.expected(H100, is_recorded=False) > 2 * small.expected(H100), "a small one's launches are"
    both = [run_secs(shape, H100, [1024] * rows, 128, 512, 4096) for rows in (512, 1024)]
    assert both[1] == pytest.approx(2 * both[0])

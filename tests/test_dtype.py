"""Models that leave the range of float16: found before the first row, and what becomes of the run.

Resolved as for CUDA, and computed on a CPU. What only a device can show: that the first copy of the model leaves its
memory before the second one is loaded, and how long both take.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import job.run.model
from job.engine.model import info
from job.engine.model.overflow import find_overflow
from tests.conftest import Result
from tests.serving import load
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_model

RunJob = Callable[..., Result]
NOTE = "in float16, the output of layer 0 is not finite: loading the model in bfloat16, the dtype of its checkpoint"


@pytest.fixture(autouse=True)
def dtypes_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` be float16 here, too."""
    resolve_dtype = info.resolve_dtype
    monkeypatch.setattr(info, "resolve_dtype", lambda wanted, device: resolve_dtype(wanted, torch.device("cuda")))


def make_overflowing(directory: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """Make a model whose first layer adds some 1e6 to the hidden states."""
    make_model(directory, name, dtype=dtype, **changes)
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, file, {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bfloat16 checkpoint that overflows in float16."""
    return make_overflowing(tmp_path_factory.mktemp("overflowing"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the dtypes in which models are loaded during a test."""
    dtypes: list[str] = []
    load_model = job.run.model.load_model

    def observe(config: Any, model_info: info.ModelInfo, *args: Any, **kwargs: Any) -> Any:
        dtypes.append(model_info.dtype)
        return load_model(config, model_info, *args, **kwargs)

    monkeypatch.setattr(job.run.model, "load_model", observe)
    return dtypes


@pytest.fixture
def args(overflowing: Path, tmp_path: Path) -> list[Any]:
    """Return a command, but for its output."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(6)])
    return ["run", "--model", overflowing, "--dataset", data, "--max-new-tokens", 4, "--rows-per-shard", 2]


def dtype_in(output: Path) -> str:
    """Return what the manifest says."""
    return str(json.loads((output / "manifest.json").read_text())["identity"]["model"]["dtype"])


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_a_bfloat16_model_that_overflows_in_float16_runs_in_bfloat16(
    run_job: RunJob, args: list[Any], tmp_path: Path, loaded: list[str], engine: str
) -> None:
    """A regression: it was served by the static engine, and every row became an error, in the default dtype."""
    result = run_job(*args, "--engine", engine, "--output", tmp_path / "auto")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(NOTE) == 1 and "served by static batches" not in result.stderr
    assert (dtype_in(tmp_path / "auto"), loaded) == ("bfloat16", ["float16", "bfloat16"])
    assert run_job(*args, "--engine", engine, "--output", tmp_path / "bf16", "--dtype", "bfloat16").exit_code == 0
    assert read_output(tmp_path / "auto").equals(read_output(tmp_path / "bf16"))


def test_a_restart_continues_in_the_dtype_of_the_manifest(
    run_job: RunJob, args: list[Any], tmp_path: Path, loaded: list[str]
) -> None:
    """Without another decision: loaded once. A run of the other dtype is not continued, and none is begun."""
    output = tmp_path / "out"
    assert run_job(*args, "--output", output).exit_code == 0
    before = read_output(output)
    (output / "data/part-00001.parquet").unlink()
    loaded.clear()
    again = run_job(*args, "--output", output)
    assert (again.exit_code, loaded) == (0, ["bfloat16"]), again.stderr
    assert NOTE not in again.stderr and read_output(output).equals(before)
    explicit = run_job(*args, "--output", output, "--dtype", "float16")
    assert explicit.exit_code == 2
    assert '--dtype was "bfloat16", now "float16"' in explicit.stderr


def test_float16_on_request_is_refused_and_nothing_is_left_behind(
    run_job: RunJob, args: list[Any], tmp_path: Path
) -> None:
    """So that the same output takes the way out that the message names."""
    refused = run_job(*args, "--output", tmp_path / "out", "--dtype", "float16")
    assert refused.exit_code == 2
    assert (
        "overflows in float16: the output of layer 0 is not finite. Use --dtype bfloat16 or float32" in refused.stderr
    )
    assert run_job(*args, "--output", tmp_path / "out", "--dtype", "bfloat16").exit_code == 0
    assert dtype_in(tmp_path / "out") == "bfloat16"


def test_a_float32_checkpoint_is_not_taken_to_bfloat16_unasked(
    run_job: RunJob, args: list[Any], tmp_path: Path
) -> None:
    """It would lose digits that its authors may have meant."""
    model = make_overflowing(tmp_path / "model", dtype=torch.float32)
    config, files = info.ModelConfig(model=str(model)), info.ModelFiles(name=str(model))
    assert info.inspect_model(config, files, torch.device("cuda"), 1).fallback_dtype is None


def test_a_model_that_fits_float16_stays_in_it(
    run_job: RunJob, args: list[Any], tmp_path: Path, loaded: list[str]
) -> None:
    """The dtype that the model cards of this method ask for."""
    model = make_model(tmp_path / "model", dtype=torch.bfloat16)
    result = run_job(*args, "--model", model, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert (dtype_in(tmp_path / "out"), loaded) == ("float16", ["float16"])
    (tmp_path / "out/data/part-00001.parquet").unlink()
    assert run_job(*args, "--model", model, "--output", tmp_path / "out").exit_code == 0


def test_a_run_that_began_in_float16_is_not_continued_in_another_dtype(
    run_job: RunJob, args: list[Any], tmp_path: Path
) -> None:
    """By a version that did not look: some of its rows may be good, so it goes on as it began, with a note."""
    output = tmp_path / "out"
    assert run_job(*args, "--engine", "fake", "--output", tmp_path / "fake").exit_code == 0
    assert run_job(*args, "--output", output).exit_code == 0
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["identity"]["model"]["dtype"] = "float16"
    (output / "manifest.json").write_text(json.dumps(manifest))
    (output / "data/part-00001.parquet").unlink()
    result = run_job(*args, "--output", output)
    assert result.exit_code == 3, "its rows overflow"
    assert "in float16, the output of layer" in result.stderr and "non_finite_logits" in result.stderr
    assert json.loads((output / "manifest.json").read_text())["identity"]["model"]["dtype"] == "float16"


def test_foreign_parts_are_refused_before_the_model_is_loaded(
    run_job: RunJob, args: list[Any], tmp_path: Path, loaded: list[str]
) -> None:
    """Though the directory is claimed after."""
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/part-00001.parquet").write_text("foreign")
    result = run_job(*args, "--output", tmp_path / "out")
    assert (result.exit_code, loaded) == (2, [])
    assert "holds 1 part of a run, but manifest.json is missing. Put it back from a copy" in result.stderr


def test_an_overflow_is_found_where_bounded_logits_hide_it(tmp_path: Path) -> None:
    """Gemma 2's soft cap makes a number of an infinity."""
    model, replica = load(make_overflowing(tmp_path / "gemma", "gemma2", final_logit_softcapping=30.0), "float32")
    assert find_overflow(model, replica) is None
    model.module.model.layers[1].post_feedforward_layernorm.weight.data.fill_(3e38)
    assert find_overflow(model, replica) == "the output of layer 1 is"


def test_weights_without_numbers_are_refused_in_every_dtype(run_job: RunJob, args: list[Any], tmp_path: Path) -> None:
    """As a broken conversion leaves them."""
    model = make_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][:] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    result = run_job(*args, "--model", model, "--output", tmp_path / "out", "--dtype", "float32")
    assert result.exit_code == 2
    assert "overflows in float32: its logits are not finite. Are its weights damaged?" in result.stderr

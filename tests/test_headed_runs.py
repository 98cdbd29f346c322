"""Runs that write vectors or labels: kills, several workers, growth, retries, chains. On the fake engine."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoModel, AutoModelForSequenceClassification

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.parts import plan, shard
from tests.conftest import Result
from tests.headed import make_headed
from tests.test_resume import exit_codes, start_until_journal_has, start_workers
from tests.test_run import read_output, write_jsonl

ROOT = Path(__file__).parents[1]

RunJob = Callable[..., Result]

NUM_ROWS = 120


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model for each task."""
    parent = tmp_path_factory.mktemp("models")
    classes = {"embed": AutoModel, "classify": AutoModelForSequenceClassification}
    return {task: make_headed(parent / task, "llama", made_by, num_labels=3) for task, made_by in classes.items()}


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_kills_workers_growth_and_retries_leave_every_row_once(
    run_job: RunJob, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """The table is that of an undisturbed run, with the errors of rows that have no text."""
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 8)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    texts: list[Any] = [f"{idx} and more" for idx in range(NUM_ROWS)]
    texts[7], texts[13], texts[21] = None, "", "long " * 600
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text} for text in texts])
    args = ["run", "--engine", "fake", "--model", models[task], "--dataset", data, "--task", task]
    args = [*map(str, args), "--rows-per-shard", "25", "--max-error-rate", "1", "--output"]
    assert run_job(*args, tmp_path / "undisturbed").exit_code == 0
    expected = read_output(tmp_path / "undisturbed")
    found = {row: kind for row, kind in enumerate(expected["error_kind"].to_pylist()) if kind is not None}
    assert found == {7: "null_prompt", 13: "empty_prompt", 21: "prompt_too_long"}

    output, log = tmp_path / "out", tmp_path / "log"
    pilot = [*args, str(output), "--limit", "80"]
    worker = start_until_journal_has(1000, pilot, output, log)
    worker.kill()
    assert exit_codes([worker]) == [-signal.SIGKILL] and list(output.glob("journal/*.arrows"))
    assert exit_codes(start_workers(2, pilot, log)) == [0, 0], log.read_text()
    assert read_output(output).equals(expected.slice(0, 80))
    assert run_job(*args, output).exit_code == 0, "it grows"
    assert read_output(output).equals(expected)
    assert "3 rows will be recomputed" in run_job("retry", output).stdout
    assert run_job(*args, output).exit_code == 0
    assert read_output(output).equals(expected) and run_job("verify", output).exit_code == 0


def test_steps_of_a_chain_embed_and_classify(run_job: RunJob, models: dict[str, Path], tmp_path: Path) -> None:
    """What a step before them wrote, each with a model of its own."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": text} for text in ("one", "two three", "four")])
    (tmp_path / "chain.toml").write_text(f"""
model = "{models["embed"]}"
dataset = "{data}"
output = "{tmp_path / "out"}"
engine = "fake"
[steps.summary]
prompt-column = "text"
max-new-tokens = 5
[steps.vector]
task = "embed"
prompt-column = "completion"
dimensions = 8
[steps.label]
model = "{models["classify"]}"
from = "summary"
task = "classify"
prompt-column = "completion"
""")
    result = run_job("chain", tmp_path / "chain.toml")
    assert result.exit_code == 0, result.stderr
    summaries, vectors, labels = (read_output(tmp_path / "out" / name) for name in ("summary", "vector", "label"))
    assert vectors["summary"].to_pylist() == labels["prompt"].to_pylist() == summaries["completion"].to_pylist()
    assert vectors.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert vectors["embedding"].null_count == labels["label"].null_count == 0


@pytest.mark.parametrize("path", sorted((ROOT / "scripts/examples/heads").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_run(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.chdir(ROOT)
    num_labels = 1 if path.stem == "rerank" else 3
    model = make_headed(tmp_path / "model", "bert", AutoModelForSequenceClassification, num_labels=num_labels)
    options = ["--model", model, "--engine", "fake", "--limit", 4, "--output", tmp_path / "run"]
    result = run_job("run", "--config", path, *options)
    assert result.exit_code == 0, result.stderr
    assert read_output(tmp_path / "run")["error"].null_count == 4
    assert f"`heads/{path.name}`" in (ROOT / "scripts/examples/README.md").read_text()

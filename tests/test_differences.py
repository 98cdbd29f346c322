"""Why a restart is refused: what differs, in the words of whoever typed the command, and what can be done."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from job.modes.registry import MODES
from job.output.parts.defaults import DEFAULTS
from job.output.parts.differences import LABELS, _label
from tests.conftest import Result
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "questions.jsonl", [{"id": f"q{i}", "prompt": f"question {i}?"} for i in range(57)])


def test_refusals_of_a_restart(run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path) -> None:
    """They say what has changed and what can be done, in the words of whoever typed the command.

    What only follows from an option is not the first thing said.
    """
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dtype", "float32", "--output", tmp_path / "out"]
    assert run_job(*base, "--dataset", questions, "--limit", 24).exit_code == 0
    where = f"job: {tmp_path}/out/manifest.json is"

    def refusal(*args: Any) -> str:
        result = run_job(*base, *args)
        assert result.exit_code == 2, result.stderr
        return result.stderr.splitlines(keepends=True)[-1]

    assert refusal("--dataset", questions, "--limit", 20) == (
        f"{where} a run of more rows: --limit was 24, now 20. A run can grow, but not shrink. Use a new --output for "
        "fewer rows, or give --limit 24 to go on.\n"
    )
    message = refusal("--dataset", questions, "--limit", 24, "--max-new-tokens", 200)
    assert message.startswith(f"{where} another run: --max-new-tokens was 256, now 200; --max-prompt-tokens was ")
    assert "(if not given, what --max-new-tokens leaves of the model's length). Use a new --output, or" in message
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "another question"}])
    message = refusal("--dataset", other, "--limit", 24)
    told = f'--dataset was "{questions}", now "{other}", and the contents differ. Use a new --output, or the old value.'
    assert told in message  # however long the paths are
    write_jsonl(questions, [{"id": f"q{i}", "prompt": "another question"} for i in range(30)])
    message = refusal("--dataset", questions, "--limit", 24)
    assert f"another run: --dataset {questions} has other contents than when the run started, 20" in message
    assert "Use a new --output, or restore the old contents to go on. If rows" in message and "num_rows" not in message


def test_a_refused_restart_says_how_many_rows_a_changed_dataset_had(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dtype", "float32", "--output", tmp_path / "out"]
    assert run_job(*base, "--dataset", questions).exit_code == 0
    assert "or leave out --limit to go on." in run_job(*base, "--dataset", questions, "--limit", 5).stderr
    write_jsonl(questions, [{"id": "q0", "prompt": "another question"}])
    assert " (57 rows then, 1 now). Use a new" in run_job(*base, "--dataset", questions).stderr


def test_every_field_of_a_manifest_is_named_as_its_option(run_job: RunJob) -> None:
    """Or in words, if it is not an option."""
    shown = run_job("run", "--help").stdout
    names = [f"{section}.{name}" for section, values in DEFAULTS.items() for name in values]
    names += [f"modes.{mode.name}.{field.name}" for mode in MODES for field in fields(mode)]
    for name in [*names, "dataset.split", "plan.rows_per_shard", "model.dtype", "engine"]:
        label = _label(name)
        assert label in shown if label.startswith("--") else label in LABELS.values(), name

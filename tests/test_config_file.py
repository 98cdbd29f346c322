"""``--config``: what a TOML file may say, and how mistakes in it are explained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from job.errors import UsageError
from tests.conftest import Result

RunJob = Callable[..., Result]

MISTAKES = {
    "model = gpt2": """line 1: Invalid value. The line is: model = gpt2. Write model = "gpt2".""",
    "limit = 2\n  dataset = a b.jsonl # x": """The line is: dataset = a b.jsonl # x.""",
    "chat = False": "Write chat = false.",
    "max-new-tokens: 64": "The line is: max-new-tokens: 64. Write max-new-tokens = 64.",
    "just words": """Write lines such as model = "..." or max-new-tokens = 64.""",
    "{}": " is JSON; it must be TOML, with lines such as model =",
    "max_tokens = 3": "there is no option 'max_tokens'. Use --max-new-tokens.",
    "gpu-memory-utilization = 0.9": "there is no option 'gpu_memory_utilization'. Use --kv-cache-memory.",
    "load_in_8bit = true": "Use --quantize int8 or fp8",
    "max-new-token = 3": "Did you mean max-new-tokens?",
    "no-chat = true": "Write chat = false.",
    "config = 'x'": "Give --config several times",
    "colour = 1": "See job run --help.",
    "[row-params]\nmax_new_tokens = 'length'": """Write row-params = ["max_new_tokens=length"].""",
    "stop-token-ids = [2, 'x']": "it must be a whole number, or a list of them",
    "stop-token-ids = true": "it must be a whole number, or a list of them",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_shown_with_its_line_and_the_right_form(run_job: RunJob, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    result = run_job("run", "--config", tmp_path / "run.toml", "--output", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert MISTAKES[text] in result.stderr


def test_files_of_other_kinds_are_named(run_job: RunJob, tmp_path: Path) -> None:
    def run(path: Path) -> str:
        result = run_job("run", "--config", path)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        return result.stderr

    (tmp_path / "run.yaml").write_text("model: x\n")
    (tmp_path / "utf16.toml").write_bytes("limit = 1".encode("utf-16"))
    assert "run.yaml is YAML; it must be TOML" in run(tmp_path / "run.yaml")
    assert "is not UTF-8" in run(tmp_path / "utf16.toml")
    assert "cannot be read: No such file or directory." in run(tmp_path / "none.toml")
    assert "cannot be read: Is a directory." in run(tmp_path)


def test_the_last_of_several_files_wins(run_job: RunJob, tmp_path: Path) -> None:
    """Only the last one was read."""
    (tmp_path / "base.toml").write_text('model = "m"\noutput = "o"\nlimit = 3\ntemperature = -1\n')
    (tmp_path / "own.toml").write_text('dataset = "d.jsonl"\nlimit = 0\n')
    args = ["run", "--config", tmp_path / "base.toml", "--config", tmp_path / "own.toml"]
    assert "--limit is 0" in run_job(*args).stderr
    assert "--temperature is -1.0" in run_job(*args, "--limit", 3).stderr


def test_ids_are_numbers(run_job: RunJob, tmp_path: Path) -> None:
    """In files and from Python: one, or a list of them."""
    from job.run.options import values_of

    required = {"model": "m", "dataset": "d", "output": "o"}
    assert [values_of({**required, "stop_token_ids": ids})["stop_token_ids"] for ids in (2, [2, 3])] == [(2,), (2, 3)]
    with pytest.raises(UsageError, match="stop-token-ids is '2'; it must be a whole number"):
        values_of({**required, "stop_token_ids": ["2"]})
    for ids in ("2", "[2, 3]"):
        (tmp_path / "run.toml").write_text(f"stop-token-ids = {ids}\n")
        result = run_job("run", "--config", tmp_path / "run.toml", *("--model", tmp_path), "--output", tmp_path / "out")
        assert "stop" not in result.stderr and "Missing option '--dataset'" in result.stderr


def test_a_home_directory_is_found(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text('model = "~/m"\ndataset = "~/d.jsonl"\noutput = "~/o"\n')
    result = run_job("run", "--config", "~/run.toml")
    assert f"--model {tmp_path}/m: there is no such directory" in result.stderr


def test_an_empty_list_that_would_change_the_answer_is_refused(run_job: RunJob, tmp_path: Path) -> None:
    """``choices = []`` once generated free text."""
    (tmp_path / "c.toml").write_text("choices = []\n")
    result = run_job("run", "--config", tmp_path / "c.toml", *("--model", "m", "--dataset", "d", "--output", tmp_path))
    assert result.exit_code == 2 and "--choices is an empty list. Give what it should hold" in result.stderr

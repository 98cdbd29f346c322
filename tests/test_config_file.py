"""``--config``: what a TOML file may say, and how mistakes in it are explained."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
    "load_in_8bit = true": "Quantized layers cannot be sharded",
    "max-new-token = 3": "Did you mean max-new-tokens?",
    "no-chat = true": "Write chat = false.",
    "config = 'x'": "Give --config several times",
    "colour = 1": "See job run --help.",
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


def test_a_home_directory_is_found(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text('model = "~/m"\ndataset = "~/d.jsonl"\noutput = "~/o"\n')
    result = run_job("run", "--config", "~/run.toml")
    assert f"--model {tmp_path}/m: there is no such directory" in result.stderr

"""Names of columns and files as users type them, and as those who read the output see them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result
from tests.test_run import read_output

ROW = {"prompt": "a", "Yes, no": "y", "a,b": 1, "Kunde ": "K", "a": 2}


@pytest.fixture
def run(run_job: Any, tiny_model: Any, tmp_path: Path) -> Any:
    """Return a function that runs on the file ``q.jsonl``."""

    def call(*options: str, rows: list[dict[str, Any]] | None = None, dataset: str = "q.jsonl") -> Result:
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW]))
        args = ["run", "--engine", "fake", "--model", tiny_model(), "--output", tmp_path / "out"]
        result: Result = run_job(*args, "--dataset", tmp_path / dataset, *options)
        return result

    return call


def kept(result: Result, tmp_path: Path) -> list[str]:
    """Return the columns that are neither the output's own nor missing."""
    assert result.exit_code == 0, result.stderr
    names: list[str] = read_output(tmp_path / "out").column_names
    return names[2 : names.index("completion")]


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (["--keep-columns", "Yes, no"], ["Yes, no"]),
        (["--keep-columns", "a,b"], ["a,b"]),
        (["--keep-columns", "a,Yes, no"], None),
        (["--keep-columns", "a", "--keep-columns", "Yes, no"], ["a", "Yes, no"]),
        (["--keep-columns", "Kunde,a"], ["Kunde ", "a"]),
        (["--id-column", "Kunde"], ["Kunde "]),
        (["--keep-columns", " a ,Kunde "], ["a", "Kunde "]),
    ],
)
def test_columns_may_have_commas_and_white_space(
    run: Any, tmp_path: Path, options: list[str], columns: list[str] | None
) -> None:
    """They were split at every comma, in a list in a TOML file, too."""
    result = run(*options, "--no-include-prompt")
    if columns is None:
        assert result.exit_code == 2 and "has no column 'Yes'" in result.stderr
    else:
        assert kept(result, tmp_path) == columns


def test_the_default_column_may_have_white_space_as_well(run: Any, tmp_path: Path) -> None:
    assert kept(run("--keep-columns", "*", rows=[{"prompt ": "p", "x": 1}]), tmp_path) == ["x", "prompt"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["identity"]["prompt"]["prompt_column"] == "prompt "


def test_a_list_in_a_config_file_has_whole_names(run: Any, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('keep-columns = ["Yes, no", "a"]\nprompt-column = "Kunde"\n')
    assert kept(run("--config", tmp_path / "c.toml", "--no-include-prompt"), tmp_path) == ["Yes, no", "a"]


def test_files_may_have_commas(run: Any, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("x,y", "x", "z"):
        (tmp_path / "d" / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    result = run("--data-files", "x,y.jsonl", "--data-files", "z.jsonl,x.jsonl", dataset="d")
    assert result.exit_code == 0, result.stderr
    assert read_output(tmp_path / "out")["prompt"].to_pylist() == ["x,y", "z", "x"]


@pytest.mark.parametrize(
    ("row", "options", "names"),
    [
        ({"prompt": "a", "Completion": 1}, ["--keep-columns", "Completion"], ("Completion", "completion")),
        ({"prompt": "a", "Prompt": 1}, ["--keep-columns", "*"], ("Prompt", "prompt")),
        ({"prompt": "a", "X": 1, "x": 2}, ["--keep-columns", "X,x"], ("x", "X")),
        ({"prompt": "a", "ROW_IDX": 1}, ["--keep-columns", "*"], ("ROW_IDX", "row_idx")),
    ],
)
def test_columns_that_differ_in_case_alone_are_refused(
    run: Any, row: dict[str, Any], options: list[str], names: tuple[str, str]
) -> None:
    """DuckDB, Spark and Hive cannot read both, or read one for the other."""
    result = run(*options, rows=[row])
    assert result.exit_code == 2
    assert f"--keep-columns {names[0]!r}: the output has a column {names[1]!r}, too" in result.stderr


def test_all_columns_are_kept_but_a_prompt_in_capitals(run: Any, tmp_path: Path) -> None:
    """As of ``prompt``: its text is in the output already."""
    result = run("--prompt-column", "Prompt", "--keep-columns", "*", rows=[{"Prompt": "p", "x": 1}])
    assert kept(result, tmp_path) == ["x", "prompt"]
    assert run("--prompt-column", "Prompt", "--keep-columns", "*", rows=[{"Prompt": "p", "x": 1}]).exit_code == 0

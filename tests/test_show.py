"""``job show``: rows of a run in the terminal, from parts and journals."""

import errno
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.store.local import LocalStore
from tests.conftest import Result
from tests.run_files import files_of
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]


@pytest.fixture
def run_args(tiny_model: Any, tmp_path: Path) -> list[Any]:
    """Return the command line of a run of 25 rows in 3 shards. Row 0 has no prompt, and rows 1 to 9 are cut."""
    rows = [{"prompt": f"{'q' * (20 - n)}{n}" if n else None, "id": f"id-{n}"} for n in range(25)]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    return [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--rows-per-shard", 10, "--keep-columns", "id", "--max-new-tokens", 12, "--no-chat"],
    ]


@pytest.fixture
def output(run_job: RunJob, run_args: list[Any], tmp_path: Path) -> Path:
    result = run_job(*run_args)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "out"


def shown(run_job: RunJob, *args: Any) -> list[Any]:
    """Return what ``--json`` prints."""
    result = run_job("show", *args, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def row_idx_of(rows: list[Any]) -> list[int]:
    return [row["row_idx"] for row in rows]


def test_rows_are_chosen(run_job: RunJob, output: Path) -> None:
    assert row_idx_of(shown(run_job, output)) == [*range(10)]
    assert row_idx_of(shown(run_job, output, "--limit", 12)) == [*range(12)]
    assert row_idx_of(shown(run_job, output, "--row", 24)) == [24]
    assert row_idx_of(shown(run_job, output, "--errors")) == [0]
    assert row_idx_of(shown(run_job, output, "--cut", "--limit", 99)) == [*range(1, 11)]
    assert row_idx_of(shown(run_job, output, "--cut", "--errors", "--limit", 3)) == [0, 1, 2]
    some = row_idx_of(shown(run_job, output, "--random", 7))
    assert len(set(some)) == 7 and some == sorted(some) and set(some) <= set(range(25))
    assert sorted(row_idx_of(shown(run_job, output, "--random", 99))) == [*range(25)]


def test_rows_as_text(run_job: RunJob, output: Path) -> None:
    """With the columns of the dataset, and nothing that a terminal would execute."""
    assert run_job("show", output, "--row", 24).stdout.splitlines() == [
        "row 24: stop, 2 + 2 tokens",
        "  id          | id-24",
        "  prompt      | 24",
        "  completion  | 42",
    ]
    assert run_job("show", output, "--errors").stdout.splitlines() == [
        "row 0: error, 0 + 0 tokens",
        "  id     | id-0",
        "  error  | null_prompt: column 'prompt' is null",
    ]


def test_rows_of_a_run_that_has_stopped_are_read_from_its_journals(
    run_job: RunJob, run_args: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = FakeEngine.step
    num_steps = 0

    def stop_after_some(self: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 4:
            os.kill(os.getpid(), 15)
        return step(self)

    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    monkeypatch.setattr(FakeEngine, "step", stop_after_some)
    assert run_job(*run_args).exit_code == 75
    paths = files_of(tmp_path / "out")
    assert [paths.part(shard_idx).exists() for shard_idx in range(3)] == [True, False, False]
    rows = shown(run_job, tmp_path / "out", "--limit", 99)
    assert row_idx_of(rows) == [*range(len(rows))] and 10 < len(rows) < 25
    assert rows[9]["id"] == "id-9" and rows[10]["completion"] == "01qqqqqqqqqq"
    refused = run_job("show", tmp_path / "out", "--row", 24)
    assert refused.exit_code == 2 and refused.stderr == "job: Row 24 is not finished yet.\n"


def test_rows_that_do_not_meet_their_constraint(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """In a part, and when the part is gone and journals are all there is."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "]" + "1" * n + "["} for n in range(1, 6)])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    schema = {"type": "array", "maxItems": 1, "items": {"type": "integer", "maximum": 99}}
    result = run_job(*args, "--no-chat", "--max-new-tokens", 6, "--json-schema", json.dumps(schema))
    assert result.exit_code == 0, result.stderr
    rows = shown(run_job, tmp_path / "out", "--limit", 99)
    unparsed = [row["row_idx"] for row in rows if not row["parse_ok"]]
    assert unparsed and len(unparsed) < 5
    assert row_idx_of(shown(run_job, tmp_path / "out", "--unparsed")) == unparsed
    num_ok = 5 - len(unparsed)
    line = f"  parse_ok    {num_ok} of 5 completions; job show --unparsed shows the others"
    assert line in result.stdout
    assert f"- parse_ok: {num_ok} of 5 completions" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--row", 25], "--row is 25; the run has rows 0 to 24."),
        (["--unparsed"], "--unparsed needs a run with --json-schema, --regex or --grammar."),
        (["--random", 2, "--limit", 3], "--random was given with --row or --limit."),
        (["--limit", 0], "--limit"),
    ],
)
def test_what_cannot_be_shown_is_refused(run_job: RunJob, output: Path, args: list[Any], message: str) -> None:
    result = run_job("show", output, *args)
    assert result.exit_code == 2 and message in result.stderr


def test_a_damaged_part_is_named(run_job: RunJob, output: Path) -> None:
    files_of(output).part(1).write_bytes(b"PAR1")
    result = run_job("show", output, "--limit", 99)
    assert result.exit_code == 1 and "part-00001.parquet cannot be read: " in result.stderr


def test_a_part_that_may_not_be_read_is_named_once(
    run_job: RunJob, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, name: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(output / name))

    monkeypatch.setattr(LocalStore, "open", refuse)
    result = run_job("show", output)
    assert result.exit_code == 1 and result.stderr.endswith(".parquet cannot be read: Permission denied.\n")

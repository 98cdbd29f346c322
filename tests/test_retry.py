"""``job retry``: error rows are done again, and no others."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.parts.journal import Journal
from job.output.parts.part_schema import Columns
from job.output.parts.retry_marks import Mark, completions_to_stay
from job.records import SampleKey
from tests.conftest import Result
from tests.run_files import RunFiles
from tests.test_run import read_output, write_jsonl

NUM_ROWS = 30
POISONED = {3, 4, 17}
"""Rows whose prompts hold the token that FakeEngine fails at, as long as it does."""

RunJob = Callable[..., Result]


@pytest.fixture
def args(tiny_model: Any, tmp_path: Path) -> list[Any]:
    """Return the command line of a run of three parts: three rows fail in the engine, every tenth has no prompt."""
    rows = [{"id": i, "prompt": None if i % 10 == 0 else f"row {i}" + "~" * (i in POISONED)} for i in range(NUM_ROWS)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    return [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--rows-per-shard", 10, "--keep-columns", "id", "--max-error-rate", 1, "--no-include-prompt"],
    ]


@pytest.fixture
def failed(run_job: RunJob, args: list[Any], tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the run once, with an engine that fails at a token."""
    from transformers import AutoTokenizer

    (poison_id,) = AutoTokenizer.from_pretrained(tiny_model())("~", add_special_tokens=False)["input_ids"]
    with monkeypatch.context() as patch:
        patch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, poison_id=poison_id))
        assert run_job(*args).exit_code == 0


def kinds(output: Path) -> list[str | None]:
    """Return the kind of each row's error."""
    return [error and error.partition(":")[0] for error in read_output(output)["error"].to_pylist()]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[SampleKey]:
    """Return a list that gains the key of every request that reaches the engine."""
    keys: list[SampleKey] = []
    submit = FakeEngine.submit

    def record(self: Any, request: Any) -> None:
        keys.append(request.key)
        submit(self, request)

    monkeypatch.setattr(FakeEngine, "submit", record)
    return keys


def test_only_the_rows_of_a_kind_are_done_again(
    run_job: RunJob, args: list[Any], failed: None, submitted: list[SampleKey], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = read_output(out)
    assert [idx for idx, kind in enumerate(kinds(out)) if kind == "engine_error"] == sorted(POISONED)
    untouched = (out / "data/part-00002.parquet").stat()
    result = run_job("retry", out, "--kind", "engine_error")
    assert result.exit_code == 0
    assert result.stdout == "3 rows will be recomputed (engine_error 3). Run the same command as before.\n"
    assert read_output(out).equals(before), "the parts stay readable until they are replaced"
    again = run_job(*args)
    assert again.exit_code == 0, again.stderr
    assert sorted(submitted) == [(row_idx, 0) for row_idx in sorted(POISONED)]
    after = read_output(out)
    assert [kind for kind in kinds(out) if kind] == ["null_prompt"] * 3
    assert after["completion"].to_pylist()[3] == "row 3~"[::-1]
    good = [row_idx for row_idx in range(NUM_ROWS) if row_idx not in POISONED]
    assert after.take(good).equals(before.take(good))
    assert (out / "data/part-00002.parquet").stat().st_mtime_ns == untouched.st_mtime_ns
    assert not list((out / "retry").iterdir())
    assert "are already done" in run_job(*args).stderr


def test_without_a_kind_every_error_row_is_done_again(
    run_job: RunJob, args: list[Any], failed: None, submitted: list[SampleKey], tmp_path: Path
) -> None:
    """Those that fail again are error rows again; the run does not go on for ever."""
    result = run_job("retry", tmp_path / "out")
    assert result.stdout.startswith("6 rows will be recomputed (")
    assert run_job(*args).exit_code == 0
    assert len(submitted) == 3
    assert [kind for kind in kinds(tmp_path / "out") if kind] == ["null_prompt"] * 3


def test_a_leftover_journal_does_not_bring_the_errors_back(
    run_job: RunJob, args: list[Any], failed: None, tmp_path: Path
) -> None:
    """Of a worker that was killed between naming the part and removing the journal."""
    paths = RunFiles(tmp_path / "out", 3)
    columns = Columns(modes=(), include_prompt=False)
    journal = Journal(paths.store, paths.names.journal(0, "dead"), columns.journaled)
    for completion in completions_to_stay(paths.directory, 0, columns, Mark()):
        journal.append(completion)
    journal.close()
    run_job("retry", tmp_path / "out")
    assert run_job(*args).exit_code == 0
    assert set(kinds(tmp_path / "out")) == {None, "null_prompt"}


def test_columns_of_the_dataset_may_have_names_that_only_other_runs_use(
    run_job: RunJob, args: list[Any], tmp_path: Path
) -> None:
    """They were taken for the completions' own, of another type: the next run died of it, again and again."""
    rows = [{"id": i, "token_ids": f"theirs {i}", "prompt": None if i == 3 else "fine"} for i in range(NUM_ROWS)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    args = [*args, "--keep-columns", "token_ids"]
    assert run_job(*args).exit_code == 0
    before = read_output(tmp_path / "out")
    assert run_job("retry", tmp_path / "out").exit_code == 0
    again = run_job(*args)
    assert again.exit_code == 0, again.stderr
    assert read_output(tmp_path / "out").equals(before)


def test_a_damaged_part_is_named(run_job: RunJob, args: list[Any], failed: None, tmp_path: Path) -> None:
    part = tmp_path / "out/data/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    result = run_job("retry", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"job: {part} is not a part of this run (Parquet magic bytes not found")
    assert line.endswith("Remove it; its rows will be recomputed.")


def test_nothing_to_do_is_said(run_job: RunJob, args: list[Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", [{"id": i, "prompt": "fine"} for i in range(NUM_ROWS)])
    run_job(*args)
    result = run_job("retry", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, "No finished row has an error: nothing to retry.\n")
    assert not list((tmp_path / "out/retry").iterdir())


def test_a_kind_that_there_is_not_names_those_that_there_are(
    run_job: RunJob, args: list[Any], failed: None, tmp_path: Path
) -> None:
    result = run_job("retry", tmp_path / "out", "--kind", "engine_eror")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("job: --kind engine_eror: no finished row has this error. Kinds in this run: ")
    assert "engine_error (3)" in line and "null_prompt (3)" in line


def test_errors_done_again_are_counted_once(run_job: RunJob, args: list[Any], failed: None, tmp_path: Path) -> None:
    """Those that the worker before had seen were counted, too, as long as its figures were fresh."""
    assert run_job("retry", tmp_path / "out").exit_code == 0
    result = run_job(*args)
    assert result.exit_code == 0
    assert "rows 30/30 (100.0%)  errors 3 " in result.stderr


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a run directory: it has no manifest.json"),
        (lambda path: path.touch(), "is not a run directory: it is not a directory"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{}")), "is not a manifest"),
        (
            lambda path: (path.mkdir(), (path / "manifest.json").write_text(json.dumps(STRANGE))),
            "does not say how the run is cut into shards",
        ),
    ],
)
def test_what_is_no_run_is_refused(run_job: RunJob, tmp_path: Path, make: Callable[[Path], Any], told: str) -> None:
    make(tmp_path / "no-run")
    result = run_job("retry", tmp_path / "no-run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line


STRANGE = {"format_version": 3, "identity": {"modes": {}}, "about": {}}


def test_marks_add_up(
    run_job: RunJob, args: list[Any], failed: None, submitted: list[SampleKey], tmp_path: Path
) -> None:
    """A second call widens what the first has marked, and still sees the rows of marked parts."""
    out = tmp_path / "out"
    run_job("retry", out, "--kind", "null_prompt")
    result = run_job("retry", out, "--kind", "engine_error")
    assert (result.exit_code, result.stdout.split(".")[0]) == (0, "3 rows will be recomputed (engine_error 3)")
    assert json.loads((out / "retry/00000").read_text())["kinds"] == ["engine_error", "null_prompt"]
    assert run_job("retry", out).stdout.startswith("6 rows will be recomputed")
    assert json.loads((out / "retry/00000").read_text())["kinds"] == []
    assert run_job(*args).exit_code == 0
    assert len(submitted) == 3 and not list((out / "retry").iterdir())


def test_a_run_that_is_worked_on_is_refused(run_job: RunJob, args: list[Any], failed: None, tmp_path: Path) -> None:
    """A helper may hold the old rows of a marked shard: all waited for each other."""
    (tmp_path / "out/leases/00002").write_text("{}")
    result = run_job("retry", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert (
        line.startswith("job: Workers are still active on this run (")
        and "Stop them or wait for them to finish" in line
    )
    assert not (tmp_path / "out/retry").exists()

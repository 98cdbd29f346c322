"""A run of which nothing is left to compute ends without a model: rows that are copied or in journals become parts."""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import job.engine.fake
from job.launch.stop import StopFlag
from job.output.parts.shard import OpenShard
from job.run import leading
from tests.conftest import Result, finish, start_processes
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]
Command = Callable[..., list[str]]
NOT_LOADED = "was not loaded: no row was left to compute"
ROWS = [{"prompt": f"question {at}" if at % 8 else None} for at in range(40)]


@pytest.fixture
def command(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return the command line of a run of four parts with five error rows, given its output."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    model = str(tiny_model())

    def of(output: str, *options: Any) -> list[str]:
        args = ["run", "--engine", "fake", "--model", model, "--dataset", "rows.jsonl", "--output", output]
        return [*args, "--rows-per-shard", "10", "--max-error-rate", "1", *map(str, options)]

    return of


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by one whenever an engine is built, which is when a model is loaded."""
    calls: list[str] = []
    build = job.engine.fake.build_fake

    def observe(*args: Any, **kwargs: Any) -> Any:
        calls.append("engine")
        return build(*args, **kwargs)

    monkeypatch.setattr(job.engine.fake, "build_fake", observe)
    return calls


def test_a_run_whose_rows_are_all_copied_loads_no_model(
    run_job: RunJob, command: Command, built: list[str], tmp_path: Path
) -> None:
    """Error rows are not copied, but need no model either. The end is told as of any other run."""
    assert run_job(*command("a")).exit_code == 0
    assert built == ["engine"]
    tell = ["--on-end", f"{sys.executable} -c \"import sys; open('end', 'w').write(sys.stdin.read())\""]
    result = run_job(*command("b", "--reuse", "a", *tell))
    assert result.exit_code == 0 and built == ["engine"], result.stderr
    assert NOT_LOADED in result.stderr and "copied from a: 35 of 40 rows; computed: 5" in result.stderr
    assert "40 rows in 4 parts: b/data/part-*.parquet" in result.stdout
    assert "this launch 5 rows" in result.stdout and "reused      35 from a; computed 5" in result.stdout
    told = json.loads(Path("end").read_text())
    assert (told["exit_code"], told["rows"]["done"], told["rows"]["errors"], told["launch"]["rows"]) == (0, 35, 5, 5)
    table = read_output(tmp_path / "b")
    assert table.drop_columns(["reused_from", "reused_row_idx"]).equals(read_output(tmp_path / "a"))
    assert run_job("verify", "b").exit_code == 0
    restarted = run_job(*command("b"))
    assert "all 40 rows are already done, 5 with an error" in restarted.stderr and built == ["engine"]
    few = run_job(*command("c", "--reuse", "a", "--max-error-rate", 0.01))
    assert few.exit_code == 3 and "exit code 3" in few.stderr and built == ["engine"]


def test_rows_in_journals_become_parts_without_a_model(
    run_job: RunJob, command: Command, built: list[str], tmp_path: Path
) -> None:
    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenShard, "_write", lambda self, file: full(self))
        assert run_job(*command("a", "--rows-per-shard", 40)).exit_code == 1
    assert list(Path("a/journal").iterdir()) and not list(Path("a/data").glob("*.parquet")) and built == ["engine"]
    result = run_job(*command("a", "--rows-per-shard", 40))
    assert result.exit_code == 0 and built == ["engine"], result.stderr
    assert NOT_LOADED in result.stderr
    assert run_job(*command("expected", "--rows-per-shard", 40)).exit_code == 0
    assert read_output(tmp_path / "a").equals(read_output(tmp_path / "expected"))


def test_a_row_that_cannot_be_copied_after_all_has_the_model_loaded(
    run_job: RunJob, command: Command, built: list[str], tmp_path: Path
) -> None:
    """So has one that is new. What was done without the model stays, and is counted once."""
    assert run_job(*command("a")).exit_code == 0
    assert run_job(*command("b", "--reuse", "a")).exit_code == 0
    for part in Path("b/data").glob("part-*"):
        part.unlink()
    shutil.rmtree("b/metrics")
    Path("a/data/part-00002.parquet").write_bytes(b"")
    built.clear()
    result = run_job(*command("b"))
    assert result.exit_code == 0 and built == ["engine"], result.stderr
    assert NOT_LOADED not in result.stderr and "part-00002.parquet cannot be copied" in result.stderr
    origins = read_output(tmp_path / "b")["reused_from"].to_pylist()
    assert [origin is None for origin in origins] == [at // 10 == 2 or at % 8 == 0 for at in range(40)]
    assert run_job("verify", "b").exit_code == 0
    status = json.loads(run_job("status", "b", "--json").stdout)
    assert (status["rows"]["done"], status["errors"]["total"]) == (40, 5)


def test_a_stop_while_rows_are_copied_keeps_what_is_written(
    run_job: RunJob, command: Command, built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run_job(*command("a")).exit_code == 0
    finish_shard, flags = OpenShard.finish, list[StopFlag]()
    begin = StopFlag.begin_work
    monkeypatch.setattr(StopFlag, "begin_work", lambda self: (flags.append(self), begin(self))[1])

    def stop_after_it(self: OpenShard, *args: Any) -> None:
        finish_shard(self, *args)
        flags[-1].request("SIGTERM")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenShard, "finish", stop_after_it)
        result = run_job(*command("b", "--reuse", "a"))
    assert result.exit_code == 75 and "stopped on SIGTERM; finished rows are safe" in result.stderr, result.stderr
    assert 0 < len(list(Path("b/data").iterdir())) < 4 and list(Path("b/leases").iterdir()) == []
    assert run_job(*command("b")).exit_code == 0
    assert built == ["engine"] and read_output(tmp_path / "b").num_rows == 40


def test_rows_that_another_worker_computes_are_not_waited_for(
    run_job: RunJob, command: Command, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new row needs the model; a run of which too much is left is not even tried without it."""
    monkeypatch.setattr(leading, "PATIENCE_SECS", 0.0)
    assert run_job(*command("a", "--limit", 20)).exit_code == 0
    result = run_job(*command("a", "--limit", 40))
    assert result.exit_code == 0 and built == ["engine"] * 2 and NOT_LOADED not in result.stderr
    assert len(list(Path("a/metrics").iterdir())) == 2
    tried: list[Any] = []
    monkeypatch.setattr(leading, "Runner", lambda *args, **kwargs: tried.append(args))
    monkeypatch.setattr(leading, "FEW", 1)
    Path("a/data/part-00000.parquet").unlink()
    assert run_job(*command("a", "--limit", 40)).exit_code == 0 and tried == []


def test_all_processes_of_a_launch_end_without_a_model(run_job: RunJob, command: Command, tmp_path: Path) -> None:
    assert run_job(*command("a")).exit_code == 0
    args = command(str(tmp_path / "b"), "--reuse", tmp_path / "a", "--dataset", tmp_path / "rows.jsonl")
    results = finish(start_processes(["-m", "job", *args], 2))
    assert [result.exit_code for result in results] == [0, 0], results
    assert [NOT_LOADED in result.stderr for result in results] == [True, False]
    assert "40 rows in 4 parts" in results[0].stdout and results[1].stdout == ""
    assert run_job("verify", "b").exit_code == 0

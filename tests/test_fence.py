"""Workers that began before a fence: whatever state they were in, nothing counts that they write after it."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import job.engine.fake
import job.run.preparation
from job.engine.fake import FakeEngine
from job.errors import EXIT_STOPPED
from job.output.parts import plan, shard
from tests.conftest import Result
from tests.test_resume import exit_codes, start_until_journal_has
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]
ROWS = [{"id": idx, "prompt": f"{idx} and more"} for idx in range(60)]
CHANGED = [row if row["id"] != 45 else {"id": 450, "prompt": "another"} for row in ROWS]
APPENDED = [*CHANGED, *({"id": 900 + idx, "prompt": f"appended {idx}"} for idx in range(30))]


@pytest.fixture
def command(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return the command line of a run, given its dataset and its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 4)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=2))
    model = str(tiny_model())

    def of(data: str, output: str, *options: Any) -> list[str]:
        args = ["run", "--engine", "fake", "--model", model, "--dataset", data, "--output", output]
        return [*args, "--keep-columns", "id", "--rows-per-shard", "50", *map(str, options)]

    return of


def freeze(worker: Any) -> None:
    """Stop a process, and wait until it has stopped."""
    os.kill(worker.pid, signal.SIGSTOP)
    os.waitpid(worker.pid, os.WUNTRACED)


def forget(output: Path) -> None:
    """Let the time go by after which leases are stale."""
    for lease in (output / "leases").iterdir():
        os.utime(lease, (1, 1))


def wake(worker: Any) -> int:
    """Let a process go on to its end. Returns its exit code."""
    os.kill(worker.pid, signal.SIGCONT)
    return exit_codes([worker])[0]


@pytest.mark.parametrize("wakes", ["during the check", "after the check", "after the end"])
def test_a_worker_that_was_frozen_while_its_run_was_extended_writes_nothing_that_counts(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch, wakes: str
) -> None:
    """It has the rows of before in memory. It finished one of them, and its part, after the rows had been compared."""
    data, args = Path("growing.jsonl"), command("growing.jsonl", "a")
    write_jsonl(Path("now.jsonl"), APPENDED)
    assert run_job(*command("now.jsonl", "expected")).exit_code == 0
    write_jsonl(data, ROWS)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    worker = start_until_journal_has(2000, args, Path("a"), Path("log"))
    freeze(worker)
    num_known = json.loads(run_job("status", "a", "--json").stdout)["rows"]["done"]
    assert 0 < num_known < 40
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    Path("now.jsonl").rename(data)
    refused = run_job(*args, "--extend")
    assert refused.exit_code == 2 and "--extend: Workers are still active on this run (" in refused.stderr
    forget(Path("a"))
    codes = []
    extend, fence = job.run.preparation.check_extended, job.run.extend.add_fence
    if wakes == "during the check":
        monkeypatch.setattr("job.run.extend.add_fence", lambda *args: (codes.append(wake(worker)), fence(*args))[1])
    if wakes == "after the check":
        monkeypatch.setattr(
            job.run.preparation, "check_extended", lambda *args: (extend(*args), codes.append(wake(worker)))[0]
        )
    result = run_job(*args, "--extend")
    if wakes == "after the end":
        codes.append(wake(worker))
    if wakes == "during the check":  # its rows counted until then
        told = "--extend: row 45 of --dataset growing.jsonl asked something else when the run computed it."
        assert (result.exit_code, codes) == (2, [0]) and told in result.stderr
        return
    assert result.exit_code == 0, result.stderr
    log = Path("log").read_text()
    if wakes == "after the end":  # all that it knows of is done
        assert codes == [0], log
    else:
        assert codes == [EXIT_STOPPED] and "stopped on --extend by another launch, after which" in log, log
    assert read_output(Path("a")).equals(read_output(Path("expected")))
    assert run_job("verify", "a").exit_code == 0

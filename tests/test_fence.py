"""Workers that began before a fence: whatever state they were in, nothing counts that they write after it."""

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import job.engine.fake
import job.run.preparation
from job.engine.fake import FakeEngine
from job.errors import EXIT_STOPPED
from job.output.looking.found import FoundRun
from job.output.looking.retries import mark_for_retry, read_counts
from job.output.parts import plan, shard
from job.output.parts.growth import Growth, add_growth
from job.output.parts.journal import Journal
from job.output.parts.manifest import Manifest
from job.output.parts.retry_marks import Mark
from job.output.store.directory import RunDirectory
from tests.conftest import Result
from tests.run_files import RunFiles
from tests.test_resume import exit_codes, start_until_journal_has
from tests.test_run import read_output, write_jsonl
from tests.test_shard import PLAN, block, completion, open_shard, part_format

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


def test_a_worker_whose_draft_of_what_was_cut_is_discarded_by_a_fence_stops(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended as if the disk had failed."""
    write_jsonl(Path("growing.jsonl"), ROWS)

    def settle(directory: RunDirectory, shard_idx: int, cut: Any) -> None:
        add_growth(directory.store, (), Growth.now(None, len(ROWS), sealed={}))
        raise FileNotFoundError(errno.ENOENT, "the draft is gone", directory.names.cut(shard_idx))

    monkeypatch.setattr("job.run.in_flight.settle_cut_rows", settle)
    result = run_job(*command("growing.jsonl", "a"))
    assert result.exit_code == EXIT_STOPPED and "stopped on --extend by another launch" in result.stderr, result.stderr


def marked(paths: RunFiles, wanted: Mark) -> int:
    """Mark the rows of shard 0 as ``job retry`` does. Returns how many there are."""
    run = FoundRun(manifest=Manifest({"modes": {}, "columns": {}}, {}), plan=PLAN, directory=paths.directory)
    return mark_for_retry(run, read_counts(paths.directory), wanted).total()


@pytest.mark.parametrize("has_mark", [False, True])
def test_a_worker_that_was_frozen_before_a_retry_neither_answers_its_rows_nor_replaces_the_part(
    tmp_path: Path, has_mark: bool
) -> None:
    """Its rows counted for those of the retry, and its part, with the errors of before, took the place of the new one.
    Also if it had taken part in an earlier retry.
    """
    paths = RunFiles(tmp_path / "out", PLAN.num_shards)
    paths.directory.prepare()
    if has_mark:
        first = open_shard(paths, worker="n-0-aaaaaa")
        for row_idx in first.rows:
            first.add(completion(row_idx, error="engine_error: x" if row_idx in (3, 4) else None))
        first.keep(block(first.rows))
        first.finish()
        assert marked(paths, Mark(kinds=())) == 2
    frozen, other = (open_shard(paths, worker=f"n-{pid}-aaaaaa") for pid in (1, 2))
    for shard_ in (frozen, other):
        shard_.keep(block(shard_.rows))
        for row_idx in shard_.rows:
            shard_.add(completion(row_idx, "old", error="engine_error: x" if row_idx == 3 else None))
    other.finish()
    assert marked(paths, Mark(kinds=())) == 1
    with contextlib.suppress(FileNotFoundError):
        frozen.sync()
    stale = Journal(paths.store, frozen.directory.names.journal(0, "n-1-aaaaaa"), part_format().columns.journaled)
    stale.append(completion(3, error="engine_error: x"))  # as if it had begun its journal only now
    stale.close()
    retrying = open_shard(paths, worker="n-3-aaaaaa")
    assert not retrying.has((3, 0)) and retrying.has((4, 0))
    frozen.finish()
    assert paths.retry(0).exists(), "the rows are still to be retried"
    retrying.add(completion(3, "new"))
    killed = open_shard(paths, worker="n-4-aaaaaa")
    retrying.sync()
    killed.absorb()
    assert killed.has((3, 0)), "what the retry has finished counts for all of its workers"
    retrying.keep(block(retrying.rows))
    retrying.finish()
    frozen.finish()
    assert pq.read_table(paths.part(0))["completion"].to_pylist()[3] == "new" and not paths.retry(0).exists()

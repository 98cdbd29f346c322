"""Killed anywhere, started again with any number of workers: the same table as an undisturbed run.

Workers are forked from this process, which has imported everything: a launch takes milliseconds, so that a test can
afford many. Replicas meet only in the run directory, so processes that know nothing of each other are replicas enough.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.looking.found import find_run
from job.output.parts import plan, shard
from job.output.parts.plan import Plan
from job.report.timeline import read_timeline
from tests.conftest import Result
from tests.test_run import read_output, submitted_by, write_jsonl

NUM_ROWS, NUM_SAMPLES = 120, 2
fork = multiprocessing.get_context("fork")


def _launch(args: list[str], log: Path) -> None:
    from tqdm import tqdm

    from job.cli import main

    # Its own lock is one of all forked processes: a worker that is killed while it holds it would stop the others.
    tqdm.set_lock(threading.RLock())
    with log.open("a") as file:
        sys.stdout = sys.stderr = file
        main(args, prog_name="job")


def start_workers(num: int, args: list[str], log: Path) -> list[Any]:
    """Start workers that know nothing of each other on one run."""
    workers = [fork.Process(target=_launch, args=(args, log)) for _ in range(num)]
    for worker in workers:
        worker.start()
    return workers


def kill_some(rng: random.Random, args: list[str], log: Path, shortest: float, longest: float) -> int:
    """Start 1 to 3 workers and, after a time in seconds, kill all or some of them. Returns how many, after the rest."""
    workers = start_workers(rng.randrange(1, 4), args, log)
    time.sleep(rng.uniform(shortest, longest))
    alive = [worker for worker in workers[: rng.randrange(1, len(workers) + 1)] if worker.is_alive()]
    for worker in alive:
        os.kill(worker.pid, signal.SIGKILL)
    exit_codes(workers)
    return len(alive)


def exit_codes(workers: list[Any]) -> list[int]:
    """Wait for workers to end."""
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]


def start_until_journal_has(num_bytes: int, args: list[str], output: Path, log: Path) -> Any:
    """Start a worker and return it as soon as a journal of it is so long."""
    (worker,) = start_workers(1, args, log)
    while not [path for path in output.glob("journal/*.arrows") if path.stat().st_size > num_bytes]:
        assert worker.is_alive(), log.read_text()
        time.sleep(0.01)
    return worker


def sampled_run(model: Path, data: Path, output: object, *, rows_per_shard: int, num_samples: int) -> list[str]:
    """Return the command line of a run with samples and kept columns on the fake engine."""
    return [
        *["run", "--engine", "fake", "--model", str(model), "--dataset", str(data), "--output", str(output)],
        *["--rows-per-shard", str(rows_per_shard), "--keep-columns", "id", "--max-error-rate", "1"],
        *["--num-samples", str(num_samples), "--temperature", "1"],
    ]


@pytest.fixture
def run_args(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """Return the command line of a run whose rows are of all kinds, for an output directory."""
    rows = [{"id": i, "prompt": f"{i} and more" if i % 7 else None} for i in range(NUM_ROWS)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 8)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))

    return lambda output: sampled_run(tiny_model(), data, output, rows_per_shard=25, num_samples=NUM_SAMPLES)


@pytest.fixture
def expected(run_job: Callable[..., Result], run_args: Callable[[Path], list[str]], tmp_path: Path) -> Any:
    """Return the table of an undisturbed run."""
    assert run_job(*run_args(tmp_path / "undisturbed")).exit_code == 0
    return read_output(tmp_path / "undisturbed")


@pytest.mark.parametrize("seed", range(int(os.environ.get("JOB_KILL_SEEDS", "8"))))
def test_kills_at_random_moments_lose_and_double_nothing(
    run_args: Callable[[Path], list[str]],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Each round starts 1 to 3 workers and kills all or some of them, until one round is left in peace."""
    rng = random.Random(seed)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    args, log = run_args(tmp_path / "out"), tmp_path / "log"
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.02")
    num_kills = 0
    for _ in range(rng.randrange(2, 5)):
        num_kills += kill_some(rng, args, log, 0.05, 0.5)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    workers = start_workers(2, args, log)
    assert exit_codes(workers) == [0, 0], log.read_text()
    assert num_kills
    assert read_output(tmp_path / "out").equals(expected)
    assert not list((tmp_path / "out/journal").iterdir())
    assert not list((tmp_path / "out").glob(".part-*"))
    assert not [path for path in (tmp_path / "out/leases").iterdir() if not path.name.startswith(".")]


WRITES = ("fsync", "link", "replace", "rename", "unlink")
"""What changes a file system for good, of which the order matters."""


def _launch_and_die(step: int, args: list[str], log: Path) -> None:
    """Run until the process is killed just before its write number ``step``."""
    steps = itertools.count()

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*args, **options)

        return call

    for name in WRITES:
        setattr(os, name, dying(getattr(os, name)))
    _launch(args, log)


NAMES = ("manifest.json", "README.md", "totals.json", "data", "journal", "keys", "leases", "metrics")
"""What a run directory holds besides parts."""


@pytest.mark.slow
def test_a_kill_before_any_write_loses_and_doubles_nothing(
    run_job: Callable[..., Result], run_args: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    """One write after the other, two at a time, until a run comes to its end alive."""
    small = ["--limit", "20", "--rows-per-shard", "10"]
    assert run_job(*run_args(tmp_path / "undisturbed"), *small).exit_code == 0
    expected = read_output(tmp_path / "undisturbed")
    for first in itertools.count(0, 2):
        steps = (first, first + 1)
        runs = [([*run_args(tmp_path / f"out{step}"), *small], tmp_path / f"log{step}") for step in steps]
        codes = run_at_once(_launch_and_die, [(step, *run) for step, run in zip(steps, runs, strict=True)])
        assert set(codes) <= {0, -signal.SIGKILL}, [log.read_text() for _, log in runs]
        killed = [at for at, code in enumerate(codes) if code != 0]
        assert run_at_once(_launch, [runs[at] for at in killed]) == [0] * len(killed), [
            log.read_text() for _, log in runs
        ]
        for at in killed:
            assert_whole(tmp_path / f"out{steps[at]}", expected, f"killed before write {steps[at]}")
        if len(killed) < 2:
            break
    assert first + len(killed) > 40


def run_at_once(target: Callable[..., None], many: list[tuple[Any, ...]]) -> list[int]:
    """Call a function in a process for each tuple of arguments, and return their exit codes."""
    workers = [fork.Process(target=target, args=args) for args in many]
    for worker in workers:
        worker.start()
    return exit_codes(workers)


def assert_whole(output: Path, expected: Any, message: str) -> None:
    """See that a run directory holds the expected table, and that nothing visible is left over."""
    assert read_output(output).equals(expected), message
    names = {str(path.relative_to(output)) for path in output.rglob("*")}
    parts = {"data/part-00000.parquet", "data/part-00001.parquet"}
    left = {name for name in names - parts - set(NAMES) if not name.startswith(("metrics/", "keys/"))}
    assert all(Path(name).name.startswith(".") for name in left), f"{message}: {left}"


def test_all_workers_share_the_only_shard(
    run_args: Callable[[Path], list[str]], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One holds it and writes the part; the others help with slices. No row is computed twice."""
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.02)
    monkeypatch.setattr("job.run.open_shards.EXCHANGE_SECS", 0.02)
    monkeypatch.setattr("job.run.workers.OTHERS_SECS", 0.02)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.1")
    args = run_args(tmp_path / "out")
    args[args.index("--rows-per-shard") + 1] = str(NUM_ROWS)
    workers = start_workers(3, args, tmp_path / "log")
    assert exit_codes(workers) == [0] * 3, (tmp_path / "log").read_text()
    assert read_output(tmp_path / "out").equals(expected)
    figures = [json.loads(path.read_text().splitlines()[-1]) for path in (tmp_path / "out/metrics").iterdir()]
    shares = sorted(one["num_rows"] for one in figures)
    assert shares[0] >= NUM_ROWS * NUM_SAMPLES / 6, shares
    assert sum(shares) == NUM_ROWS * NUM_SAMPLES, shares
    assert not [path for path in (tmp_path / "out/leases").iterdir() if not path.name.startswith(".")]


def test_a_restart_computes_only_what_no_journal_holds(
    run_job: Callable[..., Result],
    run_args: Callable[[Path], list[str]],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows of a killed worker's journal are not given to the engine again."""
    args = run_args(tmp_path / "out")
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    worker = start_until_journal_has(4000, args, tmp_path / "out", tmp_path / "log")
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    submitted = submitted_by(monkeypatch)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    assert run_job(*args).exit_code == 0
    num_prompts = sum(prompt is not None for prompt in expected["prompt"].to_pylist())
    assert 0 < len(submitted) < num_prompts
    assert len(set(submitted)) == len(submitted)
    assert read_output(tmp_path / "out").equals(expected)


def test_a_finished_run_is_left_alone(
    run_job: Callable[..., Result], run_args: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    """The same command again says so and writes nothing."""
    args = run_args(tmp_path / "out")
    run_job(*args)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("data/part-*")}
    again = run_job(*args)
    assert again.exit_code == 0
    assert f"all {NUM_ROWS * NUM_SAMPLES} rows are already done" in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("data/part-*")} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_the_run_with_75_and_keeps_what_is_finished(
    run_job: Callable[..., Result],
    run_args: Callable[[Path], list[str]],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """Leases are given back, so that the next launch need not wait; a second signal changes nothing. Reports say so."""
    args = run_args(tmp_path / "out")
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    worker = start_until_journal_has(0, args, tmp_path / "out", tmp_path / "log")
    os.kill(worker.pid, number)
    if number != signal.SIGINT:
        os.kill(worker.pid, number)
    worker.join()
    assert worker.exitcode == 75, (tmp_path / "log").read_text()
    assert f"stopped on {number.name}" in (tmp_path / "log").read_text()
    assert list((tmp_path / "out/leases").iterdir()) == []
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    assert run_job(*args).exit_code == 0
    assert read_output(tmp_path / "out").equals(expected)
    timeline = read_timeline(find_run(tmp_path / "out").directory.store, active=[])
    assert timeline is not None and [event.kind for event in timeline.events] == ["start", "stop", "restart"]
    assert timeline.events[1].text == f"stopped: {number.name}"
    assert [(worker.left, worker.device) for worker in timeline.workers] == [(number.name, "cpu"), ("done", "cpu")]


def test_two_workers_may_start_in_the_same_instant(
    run_args: Callable[[Path], list[str]], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writes the manifest, both do the rows."""
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.02)
    barrier = fork.Barrier(4)

    def together() -> None:
        barrier.wait()
        _launch(run_args(tmp_path / "out"), tmp_path / "log")

    workers = [fork.Process(target=together) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert exit_codes(workers) == [0] * 4, (tmp_path / "log").read_text()
    assert read_output(tmp_path / "out").equals(expected)


def test_a_full_disk_ends_with_the_reason_and_the_same_command_continues(
    run_job: Callable[..., Result],
    run_args: Callable[[Path], list[str]],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part that could not be written is not there under its final name; those before it are."""
    args = run_args(tmp_path / "out")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "part-00002.parquet":
            raise OSError(28, "No space left on device", str(target))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        failed = run_job(*args)
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1] == (
        f"job: {tmp_path / 'out/data/part-00002.parquet'}: No space left on device. Rows already on disk are safe; "
        "fix this and run the same command to continue."
    )
    assert not (tmp_path / "out/data/part-00002.parquet").exists()
    assert (tmp_path / "out/data/part-00000.parquet").exists()
    assert run_job(*args).exit_code == 0
    assert read_output(tmp_path / "out").equals(expected)


def test_a_shard_of_which_others_have_every_slice_is_still_written(
    run_args: Callable[[Path], list[str]], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: its new holder had no row of it to compute, never opened it, and all waited for ever."""
    args, log = run_args(tmp_path / "out"), tmp_path / "log"
    args[args.index("--rows-per-shard") + 1] = str(NUM_ROWS)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.02)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.3")
    holder = start_until_journal_has(0, args, tmp_path / "out", log)
    helpers = start_workers(1, args, log)
    slices = len(Plan(num_rows=NUM_ROWS, rows_per_shard=NUM_ROWS).slices(0))
    while len(list((tmp_path / "out/leases").glob("*.[0-9]*"))) < slices:
        assert holder.is_alive()
        time.sleep(0.01)
    os.kill(holder.pid, signal.SIGKILL)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.01")
    assert exit_codes([*helpers, *start_workers(1, args, log)]) == [0, 0], log.read_text()
    assert read_output(tmp_path / "out").equals(expected)

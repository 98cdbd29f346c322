"""Rows that are claimed but not begun: offered to workers that have none, and left to the next launch at a limit."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import job.engine.fake
from job.config import EngineConfig
from job.engine.duplicates import SharedCompletions
from job.engine.fake import FakeEngine
from job.engine.protocol import Engine
from job.engine.reasoned_scores import ReasonedScores
from job.engine.static.engine import StaticEngine
from job.output.parts import plan, shard
from job.output.sharing.metrics import MetricsFile, MetricsReader, WorkerStats
from job.output.store.local import LocalStore
from job.records import Generation, Request
from job.run.workers import Workers
from job.tasks import Score
from tests.conftest import Result
from tests.run_files import RunFiles
from tests.serving import ask, finish, generate, load, make_engine, make_prompts, serve, tokens
from tests.test_reasoned_choices import asked
from tests.test_resume import exit_codes, kill_some, sampled_run, start_workers
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]

TASKS = {
    "generate": generate(),
    "draw": generate(temperature=1.0, seed=3),
    "score": Score(choice_ids=((7,), (8, 9), (8, 10, 11))),
    "reasoned": asked(5),
}
NUM_ROWS, NUM_SAMPLES = 120, 2


def make(model_dir: Path, kind: str) -> tuple[Engine, Any]:
    """Return an engine as the job wraps it, and the one inside."""
    if kind == "static":
        model, replica = load(model_dir)
        inner: Any = StaticEngine(model, EngineConfig(max_batch_rows=4), replica)
    else:
        inner = make_engine(serve(model_dir), config={"max_batch_rows": 4, "overlap": kind == "overlap"})
    return SharedCompletions(ReasonedScores(inner)), inner


@pytest.mark.parametrize("kind", ["paged", "overlap", "static"])
@pytest.mark.parametrize("task", TASKS)
def test_what_an_engine_has_not_begun_comes_back_and_may_be_submitted_again(
    tiny_model: Callable[..., Path], kind: str, task: str
) -> None:
    requests = [ask(prompt, TASKS[task], row_idx=idx) for idx, prompt in enumerate(make_prompts())]
    engine, inner = make(tiny_model(), kind)
    for request in requests:
        engine.submit(request)
    generations: list[Generation] = []
    for _ in range(1 if kind == "static" else 3):
        generations += engine.step()
    before, waiting = engine.num_pending, engine.withdraw()
    keys = {request.key for request in waiting}
    assert waiting and engine.num_pending == before - len(waiting) and engine.withdraw() == []
    assert kind == "static" or not keys & {request.key for request in engine.in_flight}
    generations += finish(engine, ())
    assert {generation.request.key for generation in generations} == {request.key for request in requests} - keys
    if kind != "static":
        assert not any(inner._tasks._kinds[Score].__dict__[name] for name in ("_scored", "_branches"))
    everything = sorted([*generations, *finish(engine, waiting)], key=lambda each: each.request.key)
    expected = finish(make(tiny_model(), kind)[0], requests)
    assert tokens(everything) == tokens(expected) and [each.request for each in everything] == requests
    numbers = [(a.numbers or [], b.numbers or []) for a, b in zip(everything, expected, strict=True)]
    assert all(np.allclose(found, wanted, atol=1e-4) for found, wanted in numbers)


@pytest.fixture
def run_args(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return the command line of a run whose first worker claims all rows at once."""
    rows = [{"id": i, "prompt": f"{i % 90} and more" if i % 7 else None} for i in range(NUM_ROWS)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 8)
    monkeypatch.setattr("job.output.sharing.claims.MIN_SLICE_ROWS", 4)
    monkeypatch.setattr("job.run.workers.OTHERS_SECS", 0.05)
    monkeypatch.setattr("job.output.sharing.metrics.WRITE_SECS", 0.05)
    monkeypatch.setattr("job.output.sharing.metrics.FRESH_SECS", 0.5)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    monkeypatch.setattr("job.run.open_shards.EXCHANGE_SECS", 0.1)

    class Greedy(FakeEngine):
        """Takes all rows, and begins with the latest, so that those that were taken first are not begun for long."""

        def __init__(self, **options: Any) -> None:
            super().__init__(rows_per_step=4, **options)
            self.max_pending = 10_000

        def submit(self, request: Request) -> None:
            assert request.key not in {pending.key for pending in self._pending}, "a row that is pending is not new"
            self._pending.appendleft(request)

    monkeypatch.setattr(job.engine.fake, "FakeEngine", Greedy)
    return lambda output, *options: [
        *sampled_run(tiny_model(), data, output, rows_per_shard=50, num_samples=NUM_SAMPLES),
        *map(str, options),
    ]


@pytest.fixture
def expected(run_job: RunJob, run_args: Callable[..., list[str]], tmp_path: Path) -> Any:
    assert run_job(*run_args(tmp_path / "undisturbed")).exit_code == 0
    return read_output(tmp_path / "undisturbed")


def rows_of_workers(output: Path) -> list[int]:
    """Return how many rows each worker has finished, by its last figures."""
    if not output.exists():
        return []
    return [latest.stats.num_rows for latest in MetricsReader(LocalStore(output)).read()]


@pytest.mark.parametrize("end", ["done", "killed", "stopped", "left alone"])
def test_a_worker_that_joins_when_all_is_claimed_gets_rows(
    run_args: Callable[..., list[str]], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """If it dies with them, or stops, the worker that had them first takes them back. If that one stops, the one that
    joined goes on with everything, and computes nothing twice that it has begun."""
    output, log = tmp_path / "out", tmp_path / "log"
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.1")
    first = start_workers(1, run_args(output), log)
    while sum(rows_of_workers(output)) < 20:
        time.sleep(0.01)
    second = start_workers(1, run_args(output), log)
    if end != "done":
        while not list(output.glob("leases/*.??????")) and not list(output.glob("leases/*.?????")):
            time.sleep(0.01)
        while len(numbers := rows_of_workers(output)) < 2 or not min(numbers):
            assert first[0].is_alive(), log.read_text()
            time.sleep(0.01)
        leaves = first if end == "left alone" else second
        os.kill(leaves[0].pid, signal.SIGKILL if end == "killed" else signal.SIGTERM)
    codes = {"done": (0, 0), "killed": (0, -signal.SIGKILL), "stopped": (0, 75), "left alone": (75, 0)}[end]
    assert (*exit_codes(first), *exit_codes(second)) == codes, log.read_text()
    assert read_output(output).equals(expected)
    assert min(rows_of_workers(output)) > (50 if end == "done" else 0)
    if end in ("done", "left alone"):
        assert sum(rows_of_workers(output)) == NUM_ROWS * NUM_SAMPLES, "none is computed twice"
    assert not [path for path in (output / "leases").iterdir() if not path.name.startswith(".")]


def test_at_its_limit_a_worker_waits_for_those_of_its_launch_alone(tmp_path: Path) -> None:
    """The launcher may stop them once one has ended. Another launch may have begun hours later, or have no limit."""
    paths = RunFiles(tmp_path, 1)
    paths.directory.prepare()
    now = ("me", "a", 0, ""), ("x", "a", 0, ""), ("y", "b", 5, ""), ("z", "b", 7, "SIGTERM")
    for worker_id, launch_id, num_at_work, left in now:
        figures = WorkerStats(worker_id=worker_id, launch_id=launch_id, num_at_work=num_at_work, left=left)
        MetricsFile(paths.store, paths.directory.names.metrics(worker_id)).write(figures)
    unused: Any = None
    workers = Workers(unused, paths.directory, plan.Plan(num_rows=9, rows_per_shard=9), "me", 1)
    assert workers.are_busy("b") and not workers.are_busy("a")
    assert workers.num_workers == 3
    assert workers.num_idle() == 1 and workers.num_idle() == 0, "once for all figures that were read"


def test_a_worker_that_was_frozen_ends_when_others_have_finished_the_rows_that_it_had_offered(
    run_args: Callable[..., list[str]], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have removed their journals with the rows: it would wait for these forever."""
    output, log = tmp_path / "out", tmp_path / "log"
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    monkeypatch.setenv("JOB_LEASE_STALE_SECS", "0.5")
    (first,) = start_workers(1, run_args(output), log)
    while sum(rows_of_workers(output)) < 20:
        time.sleep(0.01)
    second = start_workers(1, run_args(output), log)
    while not list(output.glob("leases/*.rows")):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    assert exit_codes(second) == [0], log.read_text()
    os.kill(first.pid, signal.SIGCONT)
    first.join(15)
    if first.is_alive():
        first.kill()
    assert first.exitcode == 0, log.read_text()
    assert read_output(output).equals(expected) and not list((output / "journal").iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_kills_while_rows_are_offered_lose_and_double_nothing(
    run_args: Callable[..., list[str]], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, output, log = random.Random(seed), tmp_path / "out", tmp_path / "log"
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.02")
    for _ in range(4):
        kill_some(rng, run_args(output), log, 0.2, 0.6)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    workers = start_workers(3, run_args(output), log)
    assert exit_codes(workers) == [0, 0, 0], log.read_text()
    assert read_output(output).equals(expected) and not list((output / "journal").iterdir())

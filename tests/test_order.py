"""``--order random`` and ``--stop-after``: a run that is stopped early is a random sample, and goes on to the end."""

import errno
import itertools
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import job.engine.fake
from job.config.stopping import Bound, read_bound
from job.data.at_random import at_random
from job.data.formats.parquet import ParquetSource
from job.data.source import ArrowSource
from job.engine.fake import FakeEngine
from job.errors import UsageError
from job.output.looking.found import find_run
from job.output.parts import plan, shard
from job.output.parts.finished_keys import FinishedKeys
from job.output.parts.order import shuffled
from job.output.sharing import pieces
from job.output.store.files import FileAppender
from job.records import Generation, Request
from job.run import in_flight, order_check, random_rows, stopping
from tests.conftest import Result
from tests.run_files import RunFiles
from tests.test_leases import elsewhere
from tests.test_resume import exit_codes, kill_some, sampled_run, start_workers
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]

NUM_ROWS, NUM_SAMPLES = 120, 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, {"rows": 10_000}) for text in ("10000", "10k", "10,000", "10_000 rows", "10k rows", "10000rows")),
        *((text, {"tokens": 5_000_000}) for text in ("5M tokens", "5000000tokens", "5 million tokens", "5Mtok")),
        *((text, {"secs": 5400.0}) for text in ("90m", "1h30m", "1.5 hours", "1:30:00", "5400s", "1H 30 min")),
        *((text, {"share": 0.05}) for text in ("5%", "5 % of rows", "5.0% of the rows")),
        ("1 row", {"rows": 1}),
        ("2d", {"secs": 172_800.0}),
    ],
)
def test_what_users_try_first_is_read(text: str, expected: dict[str, Any]) -> None:
    assert read_bound(text) == Bound(text=text, **expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *(
            (text, "it must be rows (10000, ")
            for text in ("", "-3", "abc", "10x", "1e4", "1.5", "150%", "5 apples", "9" * 400)
        ),
        *((text, "it must be more than 0: rows (10000, ") for text in ("0", "0h", "0%", "0 tokens")),
        ("5M", "it must be 5M rows, 5M tokens, or 5m for minutes."),
    ],
)
def test_what_means_nothing_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_bound(text)
    assert str(raised.value).startswith(f"--stop-after is {text!r}; {reason}")


def test_the_order_of_rows_depends_on_the_seed_and_on_no_other_row() -> None:
    """Rows that a run grows by find their places among the others."""
    order = shuffled(1000, seed=3)
    assert sorted(order) == list(range(1000)) and order.tolist() != sorted(order)
    assert order.tolist() == shuffled(1000, seed=3).tolist() != shuffled(1000, seed=4).tolist()
    assert [row for row in shuffled(5000, seed=3).tolist() if row < 1000] == order.tolist()


class SlowEngine(FakeEngine):
    """Rows take a step for each token of their prompt, the longest of those that wait are begun first."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.min_pending = 16
        self._running: list[tuple[Request, int]] = []
        """With the number of steps that are left."""

    @property
    def num_pending(self) -> int:
        return len(self._pending) + len(self._running)

    @property
    def in_flight(self) -> list[Request]:
        return [request for request, _ in self._running]

    def step(self) -> list[Generation]:
        if self._should_stop():
            return []
        for request in sorted(self._pending, key=lambda each: -len(each.prompt_ids))[: 8 - len(self._running)]:
            self._pending.remove(request)
            self._running.append((request, len(request.prompt_ids)))
        ended = [request for request, left in self._running if left == 1]
        self._running = [(request, left - 1) for request, left in self._running if left > 1]
        return [self._complete(request) for request in ended]


@pytest.fixture
def sorted_rows(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return the command line of a run over rows that are sorted by class, whose lengths grow with it."""
    rows = [{"prompt": "no" + "pe" * 9 * (idx // 150)} for idx in range(600)]
    data = write_jsonl(tmp_path / "sorted.jsonl", rows)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", SlowEngine)
    monkeypatch.setattr(pieces, "MIN_PIECE_ROWS", 8)
    run = [*("run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--no-chat")]
    return lambda output, *options: [*run, "--rows-per-shard", 50, "--output", output, *options]


def done_rows(output: Path) -> list[int]:
    """Return the finished rows of a run, in parts or journals."""
    run = find_run(output)
    keys = FinishedKeys(run.directory, run.plan)
    keys.look()
    rows: list[int] = keys.done_rows().tolist()
    return rows


def classes(rows: list[int]) -> Any:
    """Return the share of each class."""
    return np.bincount(np.array(rows) // 150, minlength=4) / len(rows)


@pytest.mark.parametrize(("limit", "num_seeds"), [("60", 12), ("4000 tokens", 30)])
def test_the_finished_rows_of_a_stopped_run_are_a_random_sample(
    run_job: RunJob, sorted_rows: Callable[..., list[Any]], tmp_path: Path, limit: str, num_seeds: int
) -> None:
    """On average, the shares of the classes are those of all rows, and they vary as those of simple random samples."""
    shares, sizes = [], []
    for seed in range(num_seeds):
        output = tmp_path / str(seed)
        result = run_job(*sorted_rows(output, "--order", "random", "--stop-after", limit, "--seed", seed))
        assert result.exit_code == 4, result.stderr
        rows = done_rows(output)
        assert set(rows) == set(shuffled(600, seed)[: len(rows)].tolist()), "the first rows of the order, without a gap"
        shares.append(classes(rows))
        sizes.append(len(rows))
    of_simple = np.mean([0.25 * 0.75 / size * (1 - size / 600) for size in sizes])
    bias = np.mean(shares, axis=0) - 0.25
    assert (np.abs(bias) < 3.5 * np.sqrt(of_simple / num_seeds)).all(), bias
    assert np.var(shares, axis=0).mean() < 1.5 * of_simple
    assert limit != "60" or set(sizes) == {60}


def test_a_limit_in_the_order_of_the_dataset_gives_the_first_rows(
    run_job: RunJob, sorted_rows: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for limit, rows in (("70", 70), ("10%", 70), ("100", 100), ("50%", 300)):
        result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", limit))
        assert result.exit_code == 4 and f"--stop-after {limit} is reached. Finished rows are safe" in result.stderr
        assert done_rows(tmp_path / "out") == list(range(rows))
    assert "shards in" not in result.stderr and len(list((tmp_path / "out/data").iterdir())) == 6
    assert "Stopped at --stop-after 50%, as asked. To go on, ask for more" in run_job("status", tmp_path / "out").stdout
    again = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "1000 tokens"))
    assert again.exit_code == 4 and "loading" not in again.stderr, "what is reached needs no model"
    result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "600"))
    assert result.exit_code == 0 and "--stop-after 600 has no effect: the run has 600 rows" in result.stderr


def test_a_limit_of_time_finishes_what_is_begun(
    run_job: RunJob, sorted_rows: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "0.0001s", "--order", "random"))
    assert (result.exit_code, done_rows(tmp_path / "out")) == (4, []), "the time was over before the first row"
    result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "1ms"))
    assert result.exit_code == 2 and "--stop-after is '1ms'; it must be rows" in result.stderr
    ticks = itertools.count()
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "20s", "--order", "random"))
    rows = done_rows(tmp_path / "out")
    assert result.exit_code == 4 and set(rows) == set(shuffled(600, 0)[: len(rows)].tolist())
    assert 8 <= len(rows) <= 20, "a row at each look at the clock, and none that is submitted is left"


def test_a_limit_in_the_order_of_the_dataset_begins_nothing_beyond_it(
    run_job: RunJob, sorted_rows: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in the engine and what is left of the slice goes to the next launch."""
    ticks = itertools.count()
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    submitted = []
    monkeypatch.setattr(
        SlowEngine, "submit", lambda self, each: (submitted.append(each), FakeEngine.submit(self, each))
    )
    result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "20s"))
    assert result.exit_code == 4 and len(submitted) == 16, result.stderr
    assert len(done_rows(tmp_path / "out")) == 8, "the slots of the engine"
    assert not list((tmp_path / "out/leases").glob("[0-9]*"))
    ticks = itertools.count()
    result = run_job(*sorted_rows(tmp_path / "out", "--stop-after", "600"))
    assert result.exit_code == 0 and done_rows(tmp_path / "out") == list(range(600))


@pytest.mark.parametrize(
    ("stop_after", "is_random", "expected"),
    [
        *((limit, False, 40) for limit in (None, "60", "5%")),
        *((limit, False, 10) for limit in ("9 tokens", "2h")),
        *((limit, True, 10) for limit in (None, "60")),
    ],
)
def test_an_engine_gets_few_rows_at_once_only_where_their_order_matters(
    tmp_path: Path, stop_after: str | None, is_random: bool, expected: int
) -> None:
    """Many at once share more of their prompts: with a limit on rows, a run over similar ones took 30 % more."""
    launch = SimpleNamespace(stop_bound=stop_after and read_bound(stop_after), is_random=is_random)
    prepared: Any = SimpleNamespace(
        config=SimpleNamespace(launch=launch),
        finished=None,
        plan=plan.Plan(num_rows=100, rows_per_shard=100),
        directory=RunFiles(tmp_path, 1).directory,
    )
    assert stopping.Limit(prepared).max_pending(FakeEngine(rows_per_step=10)) == expected


def test_rows_that_a_silent_worker_has_are_waited_for_and_counted(
    run_job: RunJob, sorted_rows: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: a launch stopped at its limit although a helper elsewhere had died with some of its rows."""
    monkeypatch.setenv("JOB_LEASE_STALE_SECS", "1")
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.1)
    assert run_job(*sorted_rows(tmp_path / "out", "--stop-after", "10")).exit_code == 4
    (tmp_path / "out/leases/00000.0001").write_bytes(elsewhere("b").to_json())
    assert run_job(*sorted_rows(tmp_path / "out", "--stop-after", "70")).exit_code == 4
    assert done_rows(tmp_path / "out") == list(range(70))


@pytest.fixture
def run_args(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return the command line of a run whose rows are of all kinds, duplicates and errors among them."""
    rows = [{"id": i, "prompt": f"{i % 90} and more" if i % 7 else None} for i in range(NUM_ROWS)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    for module in (shard, random_rows, in_flight):
        monkeypatch.setattr(module, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(random_rows, "SYNCED_PER_SEC", 10**6)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 8)
    monkeypatch.setattr(pieces, "MIN_PIECE_ROWS", 8)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    return lambda output, *options: [
        *sampled_run(tiny_model(), data, output, rows_per_shard=25, num_samples=NUM_SAMPLES),
        *map(str, options),
    ]


@pytest.fixture
def expected(run_job: RunJob, run_args: Callable[..., list[str]], tmp_path: Path) -> Any:
    assert run_job(*run_args(tmp_path / "undisturbed")).exit_code == 0
    return read_output(tmp_path / "undisturbed")


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_any_order_a_run_has_the_rows_of_an_undisturbed_one(
    run_job: RunJob,
    run_args: Callable[..., list[str]],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Workers of one run may even differ in their order, and in where they stop."""
    rng, output, log = random.Random(seed), tmp_path / "out", tmp_path / "log"
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.01")
    for _ in range(5):
        options = rng.choice([(), ("--order", "random"), ("--order", "random", "--stop-after", "60")])
        kill_some(rng, run_args(output, *options), log, 0.3, 0.9)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    workers = [*start_workers(2, run_args(output, "--order", "random"), log), *start_workers(1, run_args(output), log)]
    assert exit_codes(workers) == [0, 0, 0], log.read_text()
    assert read_output(output).equals(expected)
    assert run_job("verify", output).exit_code == 0
    assert not list(output.glob("journal/*")) and not list(output.glob("leases/*"))


def test_workers_stop_together_at_exactly_the_rows_that_were_asked_for(
    run_args: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.01")
    for order, first in (("random", shuffled(NUM_ROWS, 0).tolist()), ("dataset", list(range(NUM_ROWS)))):
        output, log = tmp_path / order, tmp_path / f"{order}.log"
        for num_rows in (35, 70):
            workers = start_workers(2, run_args(output, "--order", order, "--stop-after", num_rows), log)
            assert exit_codes(workers) == [4, 4], log.read_text()
            assert done_rows(output) == sorted(first[:num_rows])


def test_a_piece_that_another_worker_has_taken_over_and_finished_is_given_back(tmp_path: Path) -> None:
    """A worker that was paused for longer than its lease lasts ended with a traceback when it went on."""
    paths, few = RunFiles(tmp_path / "out", 1), plan.Plan(num_rows=64, rows_per_shard=64)
    paths.directory.prepare()
    expired: Any = SimpleNamespace(acquire_name=lambda name: True, release_name=lambda name: None)
    finished = FinishedKeys(paths.directory, few)
    paused, other = (pieces.Pieces(paths.directory, few, expired, finished, seed=0) for _ in range(2))
    mine, taken = paused.claim(), other.claim()
    assert mine is not None and taken is not None and mine.piece_idx == taken.piece_idx
    other.finish(taken)
    assert paused.claim() is not None and paused.claim(at_once=True) is None
    paused.finish(mine)
    assert paused.are_left


def test_a_retry_is_done_after_the_rows_that_are_new(
    run_job: RunJob, run_args: Callable[..., list[str]], expected: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run_job(*run_args(output, "--order", "random", "--limit", 50)).exit_code == 0
    assert run_job("retry", output).exit_code == 0
    assert run_job(*run_args(output, "--order", "random", "--stop-after", "80")).exit_code == 4
    assert run_job(*run_args(output, "--order", "random")).exit_code == 0
    assert read_output(output).equals(expected) and run_job("verify", output).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--order", "shuffle"], "'shuffle' is not one of 'dataset', 'random'"),
        (["--order", "random", "--reuse", "undisturbed"], "--order random does not go with --reuse"),
        (["--order", "random", "--rows-per-shard", "1"], "Use --rows-per-shard 12 or more in a new --output."),
    ],
)
def test_what_cannot_be_is_refused(
    run_job: RunJob,
    run_args: Callable[..., list[str]],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(order_check, "MAX_SHARDS", 10)
    result = run_job(*run_args(tmp_path / "out", *options))
    assert result.exit_code == 2 and message in result.stderr and not (tmp_path / "out").exists()


def test_a_chain_is_not_stopped_within_a_step(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "chain.toml").write_text(
        'model = "m"\ndataset = "d.jsonl"\noutput = "o"\n[steps.one]\nprompt-column = "q"\n'
    )
    result = run_job("chain", tmp_path / "chain.toml", "--stop-after", "10")
    assert result.exit_code == 2 and "step one: --stop-after is not possible in a chain" in result.stderr


def test_parquet_with_large_row_groups_is_unpacked_for_single_rows(tmp_path: Path) -> None:
    table = pa.table({"id": range(3000), "q": [f"row {idx}" for idx in range(3000)], "other": [None] * 3000})
    pq.write_table(table.slice(0, 2500), tmp_path / "a.parquet")
    pq.write_table(table.slice(2500), tmp_path / "b.parquet", row_group_size=100)
    source = ParquetSource([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])
    unpacked = at_random(source, ["q", "id"])
    assert type(unpacked) is ArrowSource and unpacked.schema.names == ["q", "id"]
    for row_idx in (0, 2499, 2500, 2999):
        [found] = unpacked.read(row_idx, row_idx + 1, ["q"], ["id"])
        [expected] = source.read(row_idx, row_idx + 1, ["q"], ["id"])
        assert list(found.rows) == list(expected.rows) and found.kept.equals(expected.kept)
    small = ParquetSource([str(tmp_path / "b.parquet")])
    assert at_random(small, ["q"]) is small


def test_what_is_finished_can_be_read_before_there_is_a_part(
    run_job: RunJob, run_args: Callable[..., list[str]], expected: Any, tmp_path: Path
) -> None:
    """With the kept columns, from the dataset, if that is still what it was."""
    output, to, columns = tmp_path / "out", tmp_path / "rows.parquet", ["--keep-columns", "prompt=question"]
    assert run_job(*run_args(output, *columns, "--order", "random", "--stop-after", 60)).exit_code == 4
    assert not list(output.glob("data/*"))
    refused = run_job("export", output)
    assert refused.exit_code == 2 and "with the same job run command, or give --partial." in refused.stderr
    result = run_job("export", output, "--partial", "--to", to)
    assert result.exit_code == 0 and "120 rows, 16 of them with an error, 120 not finished yet" in result.stderr
    rows, first = pq.read_table(to), sorted(shuffled(NUM_ROWS, 0)[:60].tolist())
    wanted = expected.filter(pc.is_in(expected["row_idx"], pa.array(first)))
    questions = [f"{idx % 90} and more" if idx % 7 else None for idx in first for _ in range(NUM_SAMPLES)]
    assert rows.drop_columns("question").equals(wanted) and rows["question"].to_pylist() == questions
    report = run_job("report", output, "--label", "completion", "--no-page").stdout
    assert (
        "The 60 finished rows are a random sample of the 120: shares and lengths here are estimates for all." in report
    )
    assert "52 rows with a completion" in report and "60 rows not finished yet" in report
    write_jsonl(tmp_path / "data.jsonl", [{"id": 1, "prompt": "other"}])
    result = run_job("export", output, "--partial")
    assert result.exit_code == 2 and "kept columns cannot be read again" in result.stderr


@pytest.mark.parametrize("order", ["random", "dataset"])
def test_where_one_journal_fails_at_a_stop_that_is_told_and_the_others_are_written(
    run_job: RunJob,
    sorted_rows: Callable[..., list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
) -> None:
    """The disk is full for rows that were finished since the last sync."""
    append, step, steps = FileAppender.append, SlowEngine.step, itertools.count()

    def fail(self: FileAppender, data: bytes, *, durable: bool = True) -> None:
        if "journal/00000." in str(self._path) and self._path.suffix == ".arrows":
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        append(self, data, durable=durable)

    def stopping_step(self: Any) -> list[Generation]:
        if next(steps) == 60:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 600.0)
    monkeypatch.setattr(random_rows, "JOURNAL_SYNC_SECS", 600.0)
    args = sorted_rows(tmp_path / "out", "--order", order, "--rows-per-shard", 300)
    with monkeypatch.context() as patch:
        patch.setattr(FileAppender, "append", fail)
        patch.setattr(SlowEngine, "step", stopping_step)
        result = run_job(*args)
    assert result.exit_code == 75
    where = "" if order == "random" else " of shard 0"
    assert f"the last rows{where} could not be stored, and will be recomputed: No space left on device" in result.stderr
    if order == "random":
        assert done_rows(tmp_path / "out") and min(done_rows(tmp_path / "out")) >= 300
    assert run_job(*args).exit_code == 0 and run_job("verify", tmp_path / "out").exit_code == 0

"""``job status``: what it says of a run that goes, that has stopped, whose workers are dead, silent or helping."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import job.cli.status
import job.engine.fake
import job.output.parts.shard
import job.run.status
from job.cli.status import give_watch_its_secs
from job.engine.fake import FakeEngine
from job.errors import JobError
from job.observe.progress import RunProgress, describe
from job.observe.status import Status
from job.observe.status_report import MAX_LINES, describe_status
from job.output.looking import footers, survey
from job.output.looking.found import find_run
from job.output.parts.counts import Counts
from job.output.parts.journal import Journal
from job.output.parts.part_schema import Columns
from job.output.parts.partials import PartialLog
from job.output.sharing import metrics
from job.output.sharing.leases import Leases
from job.output.sharing.metrics import MetricsFile, MetricsReader, WorkerStats
from job.output.sharing.settings import RunSettings, read_settings, set_settings
from job.output.sharing.worker import WorkerId
from job.output.store.local import LocalStore
from job.records import Completion, Partial, RowError
from job.run.status import Inspection
from tests.conftest import Result
from tests.run_files import RunFiles, files_of
from tests.test_imports import output_and_modules_of
from tests.test_leases import dead_worker, elsewhere, make_silent
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]
HEAVY = {"torch", "transformers", "datasets", "deepspeed"}


@pytest.fixture
def run_args(tiny_model: Any, tmp_path: Path) -> list[Any]:
    """Return the command line of a run of 47 rows in 5 shards, every tenth without a prompt."""
    rows = [{"prompt": f"question {i}?" if i % 10 else None} for i in range(47)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    return [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--rows-per-shard", 10, "--max-error-rate", 1],
    ]


@pytest.fixture
def output(run_job: RunJob, run_args: list[Any], tmp_path: Path) -> Path:
    """Return the directory of a run that is done."""
    result = run_job(*run_args)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "out"


@pytest.fixture
def unfinished(output: Path) -> RunFiles:
    """Return a run whose last two shards, of 10 and 7 rows, have no part, and whose workers are long gone."""
    paths = files_of(output)
    for shard_idx in (3, 4):
        paths.part(shard_idx).unlink()
    for path in paths.metrics_dir.iterdir():
        os.utime(path, (0, 0))
    return paths


def hold(paths: RunFiles, worker: WorkerId, *keys: Any, silent_secs: float = 0.0) -> None:
    """Lease shards, or (shard, slice), for a worker."""
    for key in keys:
        lease = paths.lease(*key) if isinstance(key, tuple) else paths.lease(key)
        lease.write_text(json.dumps(dataclasses.asdict(worker)))
        then = time.time() - silent_secs
        os.utime(lease, (then, then))


def tell(paths: RunFiles, worker: WorkerId, *, silent_secs: float = 0.0, **values: Any) -> None:
    """Write figures of a worker."""
    numbers = ("num_rows", "num_open_rows", "num_errors", "num_tokens", "num_at_work")
    nothing = {**dict.fromkeys(numbers, 0), "open_shards": ()}
    now = {"time": time.time() - silent_secs, "elapsed_secs": 10.0}
    figures: dict[str, Any] = {"worker_id": str(worker), "launch_id": "x", **now, **nothing, **values}
    path = paths.metrics(str(worker))
    MetricsFile(paths.store, paths.names.metrics(str(worker))).write(WorkerStats(**figures))
    os.utime(path, (time.time() - silent_secs,) * 2)


def leave_journal(paths: RunFiles, shard_idx: int, worker: WorkerId, rows: Any = (), error: str | None = None) -> None:
    """Add a journal of finished rows: positions within the shard, all with the same error, or none."""
    run = find_run(paths.root)
    schema = Columns.of(run.manifest).journaled
    journal = Journal(paths.store, paths.names.journal(shard_idx, str(worker)), schema)
    for position in rows:
        journal.append(finished_row(run.plan.rows(shard_idx)[position], error))
    journal.close()


def finished_row(row_idx: int, error: str | None = None) -> Completion:
    return Completion(
        row_idx=row_idx,
        sample_idx=0,
        prompt="p",
        completion=None if error else "c",
        finish_reason=None if error else "stop",
        num_prompt_tokens=2,
        num_completion_tokens=0 if error else 3,
        error=RowError.parse(error) if error else None,
    )


def look(paths: RunFiles) -> Status:
    return Inspection(paths.root).look()


def shards_of(status: Status) -> tuple[int, int, int, int]:
    """Return the numbers of shards, having checked that they add up."""
    numbers = status.num_done, status.num_in_work, status.num_stale, status.num_free
    assert sum(numbers) == status.num_shards
    return numbers


def last_line(status: Status) -> str:
    return describe_status(status).splitlines()[-1]


def test_a_run_that_is_done(run_job: RunJob, tiny_model: Any, output: Path, tmp_path: Path) -> None:
    """In a few lines; and nothing in the directory changes."""
    before = {path: path.stat().st_mtime_ns for path in [output, *output.rglob("*")]}
    result = run_job("status", output)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"  started  \d{4}-\d\d-\d\dT.*, last active \d+s later", lines.pop(3))
    assert lines == [
        str(output),
        f"  model    {tiny_model()}",
        f"  dataset  {tmp_path / 'data.jsonl'}",
        "  shards   5 of 5 done, 0 in progress, 0 free",
        "  rows     [####################] 47 of 47 (100.0%)",
        "  errors   5  (null_prompt 5)",
        "    null_prompt, first in row 0: column 'prompt' is null",
        "  cut      0 of 42 completions reached --max-new-tokens 256",
        f"Done: every row is in a part. job verify {output} checks them all.",
    ]
    assert result.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in [output, *output.rglob("*")]} == before


def test_json_has_stable_names(run_job: RunJob, tiny_model: Any, output: Path, tmp_path: Path) -> None:
    """Whoever reads them relies on them."""
    result = run_job("status", "--json", output)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    values = json.loads(result.stdout)
    totals = Counts()
    for part in output.glob("data/part-*"):
        totals.include(Counts.of_part(LocalStore(output), f"data/{part.name}"))
    assert values.pop("elapsed_secs") >= 0 and values.pop("started").startswith("20")
    assert values == {
        "output": str(output),
        "model": str(tiny_model()),
        "adapters": [],
        "dataset": str(tmp_path / "data.jsonl"),
        "done": True,
        "shards": {"total": 5, "done": 5, "in_work": 0, "stale": 0, "free": 0, "to_retry": 0},
        "rows": {"total": 47, "done": 47, "in_parts": 47, "samples_per_row": 1},
        "in_flight": {"rows": 0, "tokens": 0},
        "errors": {
            "total": 5,
            "in_parts": 5,
            "by_kind": {"null_prompt": 5},
            "first": {"null_prompt": {"row_idx": 0, "detail": "column 'prompt' is null"}},
        },
        "finish_reasons": {"stop": 42},
        "tallies": {},
        "tokens": {"prompt": totals.num_prompt_tokens, "completion": totals.num_completion_tokens},
        "parts": {"total": 5, "read": 5, "unreadable": 0, "partial": False},
        "journals": {"total": 0, "read": 0},
        "tokens_per_sec": 0.0,
        "eta_secs": None,
        "workers": [],
        "stale_leases": [],
        "published": None,
        "clock": "this_machine",
        "advice": f"Done: every row is in a part. job verify {output} checks them all.",
    }


@pytest.mark.parametrize("command", ["status", "verify"])
def test_libraries_of_models_are_not_imported(output: Path, command: str) -> None:
    """On a login node they take half a minute, or are not there."""
    _, loaded = output_and_modules_of(command, output)
    assert "pyarrow" in loaded and loaded & HEAVY == set()


def test_a_run_that_goes(run_job: RunJob, run_args: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at from inside its engine, after some steps."""
    seen: list[Status] = []
    step = FakeEngine.step

    def look_and_step(self: Any) -> Any:
        seen.append(Inspection(tmp_path / "out").look())
        return step(self)

    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    monkeypatch.setattr(MetricsFile, "write_if_due", MetricsFile.write)
    monkeypatch.setattr(metrics, "YOUNG_SECS", 0.0)
    monkeypatch.setattr(job.output.parts.shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(FakeEngine, "step", look_and_step)
    assert run_job(*run_args).exit_code == 0
    for status in seen:
        shards_of(status)
        (worker,) = status.workers
        assert worker.worker_id.endswith(f"-{worker.pid}-{worker.worker_id[-6:]}") and worker.pid == os.getpid()
        assert worker.heartbeat_age_secs < 30 and status.is_store_time
        assert last_line(status) == "Running. Nothing for you to do."
    rows = [status.num_rows for status in seen]
    assert rows == sorted(rows) and 0 < rows[len(rows) // 2] < 47
    middle = seen[len(seen) // 2]
    assert middle.workers[0].state == "working" and middle.num_in_work >= 1
    assert middle.num_rows > middle.num_part_rows
    assert middle.tokens_per_sec > 0 and middle.eta_secs is not None
    assert "tokens/s, time left " in describe_status(middle)
    assert look(files_of(tmp_path / "out")).is_done


def test_nobody_at_work(unfinished: RunFiles) -> None:
    """Says what to do."""
    status = look(unfinished)
    assert shards_of(status) == (3, 0, 0, 2)
    assert (status.num_rows, status.workers, status.stale_leases) == (30, [], [])
    assert last_line(status).startswith("No worker is active: run the same command to continue.")
    assert "time left unknown" in describe_status(status)


def test_a_dead_process_of_this_host_leaves_a_stale_lease(run_job: RunJob, unfinished: RunFiles) -> None:
    """At once, though its last heartbeat is young."""
    worker = dead_worker()
    hold(unfinished, worker, 3)
    tell(unfinished, worker, num_open_rows=4, num_tokens=100, open_shards=(3,))
    status = look(unfinished)
    assert shards_of(status) == (3, 0, 1, 1)
    (lease,) = status.stale_leases
    assert (lease.shard_idx, lease.worker_id, lease.is_dead) == (3, str(worker), True)
    assert status.workers == [] and status.tokens_per_sec == 0
    result = run_job("status", unfinished.root)
    assert "3 of 5 done, 0 in progress, 1 stale, 1 free" in result.stdout
    assert f"{worker} on {worker.host}: dead, silent for 0s, held shard 3" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("No worker is active")


def test_in_random_order_all_shards_are_in_progress_while_a_worker_is_active(unfinished: RunFiles) -> None:
    """They were called free."""
    piece = unfinished.root / unfinished.directory.names.piece("0-47", 3)
    piece.write_bytes(elsewhere("node7").to_json())
    status = look(unfinished)
    assert shards_of(status) == (3, 2, 0, 0)
    assert "3 of 5 done, 2 in progress at once, in random order, 0 free" in describe_status(status)
    make_silent(piece, 70)
    assert shards_of(look(unfinished)) == (3, 0, 0, 2)


@pytest.mark.parametrize(("silent_secs", "is_stale"), [(50.0, False), (70.0, True)])
def test_a_worker_of_another_host_is_judged_by_its_silence(
    unfinished: RunFiles, silent_secs: float, is_stale: bool
) -> None:
    hold(unfinished, elsewhere("node7"), 3, silent_secs=silent_secs)
    status = look(unfinished)
    assert (status.num_in_work, status.num_stale) == ((0, 1) if is_stale else (1, 0))
    assert ("node7-1-0 on node7: silent for 1m10s, held shard 3" in describe_status(status)) == is_stale
    assert len(status.workers) == (not is_stale)


def test_what_is_kept_of_rows_in_flight_is_counted_once(unfinished: RunFiles, run_job: Callable[..., Result]) -> None:
    """The longest of several logs, of the latest draw, without rows that are finished by now."""
    worker, other = WorkerId.of_this_process(), WorkerId.of_this_process()
    log = PartialLog(unfinished.directory, 3, str(worker))
    log.append([piece(row_idx, 0, 5) for row_idx in (30, 31, 32)])
    inspection = Inspection(unfinished.root)
    assert (inspection.look().num_kept_rows, inspection.look().num_kept_tokens) == (3, 15)
    log.append([piece(31, 5, 40), piece(32, 0, 3, attempt=1)])
    PartialLog(unfinished.directory, 3, str(other)).append([piece(31, 0, 7)])
    leave_journal(unfinished, 3, worker, [0])
    status = inspection.look()
    assert (status.num_kept_rows, status.num_kept_tokens) == (2, 48)
    assert "  kept     48 tokens of 2 rows in flight\n" in run_job("status", unfinished.root).stdout
    assert json.loads(run_job("status", unfinished.root, "--json").stdout)["in_flight"] == {"rows": 2, "tokens": 48}


def piece(row_idx: int, start: int, num_tokens: int, attempt: int = 0) -> Partial:
    return Partial(row_idx=row_idx, sample_idx=0, attempt=attempt, start=start, token_ids=[7] * num_tokens)


def test_living_workers_take_stale_leases_over(unfinished: RunFiles) -> None:
    hold(unfinished, elsewhere("a"), 3)
    hold(unfinished, elsewhere("b"), 4, silent_secs=100)
    assert last_line(look(unfinished)) == "Running. Nothing for you to do. Live workers take over from dead ones."


def test_ages_are_by_the_clock_of_the_file_system(unfinished: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is an hour ahead; where nothing can be written it is all there is, and the text says so."""
    hold(unfinished, elsewhere("a"), 3)
    hold(unfinished, elsewhere("b"), 4, silent_secs=100)
    now = time.time()
    monkeypatch.setattr(survey.time, "time", lambda: now + 3600)
    status = look(unfinished)
    assert shards_of(status) == (3, 1, 1, 0) and status.is_store_time
    assert "this machine's clock" not in describe_status(status)

    def refuse(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    status = look(unfinished)
    assert status.num_stale == 2 and not status.is_store_time
    assert "Ages are by this machine's clock" in describe_status(status)
    monkeypatch.setattr(survey.time, "time", lambda: now - 3600)
    assert shards_of(look(unfinished)) == (3, 1, 1, 0), "no clock of a file system is behind the heartbeats"


def test_a_look_leaves_no_file_behind(unfinished: RunFiles) -> None:
    hold(unfinished, elsewhere("a"), 3)
    before = sorted(unfinished.root.rglob("*"))
    assert look(unfinished).is_store_time
    assert sorted(unfinished.root.rglob("*")) == before


def test_slices_are_no_shards_and_their_holders_help(unfinished: RunFiles) -> None:
    """Temporary files are nothing; a slice of one's own shard is no help."""
    hold(unfinished, elsewhere("a"), 3, (3, 0), (3, 1))
    hold(unfinished, elsewhere("b"), (3, 7))
    hold(unfinished, elsewhere("c"), (3, 2), silent_secs=100)
    (unfinished.lease_dir / ".00004.b-1-0.tmp").write_text("{}")
    (unfinished.lease_dir / ".clock-b-1-0").touch()
    status = look(unfinished)
    assert shards_of(status) == (3, 1, 0, 1)
    assert [(w.host, w.state, w.shards, w.helps_with) for w in status.workers] == [
        ("a", "working", [3], []),
        ("b", "helping", [], [3]),
    ]
    assert [(lease.shard_idx, lease.slice_idx) for lease in status.stale_leases] == [(3, 2)]
    text = describe_status(status)
    assert "a-1-0  shard 3  0 rows" in text and "b-1-0  helps with shard 3  0 rows" in text
    assert "c-1-0 on c: silent for 1m40s, held slices of shard 3" in text


def test_a_worker_that_waits_for_a_shard_is_at_work(unfinished: RunFiles) -> None:
    """It looks at others' leases, and compares its clock for that. One that has just left has young figures only."""
    hold(unfinished, elsewhere("holds"), 3)
    for name in ("waits", "left"):
        tell(unfinished, elsewhere(name), num_rows=8)
    waits = Leases(unfinished.directory, elsewhere("waits"))
    left = Leases(unfinished.directory, elsewhere("left"))
    assert not waits.acquire(3) and not left.acquire(3)
    left.close()
    status = look(unfinished)
    assert [(w.host, w.pid, w.state, w.num_rows) for w in status.workers] == [
        ("holds", 1, "working", 0),
        ("waits", 1, "waiting", 8),
    ]
    assert "waits-1-0  waits for work  8 rows" in describe_status(status)
    (clock,) = unfinished.lease_dir.glob(".clock-*")
    os.utime(clock, (time.time() - 20,) * 2)
    assert [worker.host for worker in look(unfinished).workers] == ["holds"], "killed while it waited"
    clock.touch()
    unfinished.lease(3).unlink()
    assert look(unfinished).workers == [], "one that lives would have claimed the shard"
    waits.close()


def test_speed_and_time_left_are_those_of_the_living(unfinished: RunFiles) -> None:
    """Remaining rows x tokens per row / tokens per second: 17 - 5 rows, 10 tokens each, 12 a second."""
    for name, shard_idx, num_open_rows, num_tokens in [("a", 3, 4, 80), ("b", 4, 1, 40)]:
        hold(unfinished, elsewhere(name), shard_idx)
        tell(unfinished, elsewhere(name), num_rows=6, num_tokens=num_tokens, open_shards=(shard_idx,))
        leave_journal(unfinished, shard_idx, elsewhere(name), range(num_open_rows))
    tell(unfinished, elsewhere("gone"), silent_secs=500, num_tokens=10**6, num_rows=5)
    status = look(unfinished)
    assert (status.num_rows, status.num_part_rows) == (35, 30)
    assert status.tokens_per_sec == pytest.approx(12)
    assert status.eta_secs == pytest.approx(12 * 10 / 12)
    assert "35 of 47 (74.5%), 5 of them in journals" in describe_status(status)


@pytest.mark.parametrize(
    ("num_ended", "num_at_work", "num_tokens", "left"),
    [
        (0, 0, 0, "unknown"),
        (0, 256, 10_000, "unknown"),
        (14, 256, 50_000, "unknown"),
        (255, 256, 76_700, "unknown"),
        (256, 256, 76_800, "3m07s"),
        (1300, 19, 261_900, "2s"),
        (1319, 0, 263_800, "0s"),
    ],
)
def test_time_left_is_unknown_until_as_many_rows_have_ended_as_are_at_work(
    num_ended: int, num_at_work: int, num_tokens: int, left: str
) -> None:
    """A regression: 14 of 256 rows that had started together had ended, and all tokens were taken for theirs: 1h30m.

    Rows have 200 tokens each; 1,000 are computed a second.
    """
    position = RunProgress(
        num_rows=num_ended,
        total_rows=1319,
        unit="rows",
        num_errors=0,
        num_cut=0,
        is_partial=False,
        num_new_rows=num_ended,
        num_tokens=num_tokens,
        num_at_work=num_at_work,
        tokens_per_sec=1000.0,
    )
    assert describe(position).endswith(f"  left {left}")


def test_rows_at_work_are_half_done(unfinished: RunFiles) -> None:
    """Of the 17 rows left, 6 are at work: 14 rows, of 10 tokens each, by 12 tokens a second."""
    hold(unfinished, elsewhere("a"), 3)
    tell(unfinished, elsewhere("a"), num_rows=9, num_tokens=120, num_at_work=6, open_shards=(3,))
    assert look(unfinished).eta_secs == pytest.approx(14 * 10 / 12)
    tell(unfinished, elsewhere("a"), num_rows=9, num_tokens=120, num_at_work=10, open_shards=(3,))
    assert look(unfinished).eta_secs is None


def test_a_rate_is_that_of_the_last_minute(unfinished: RunFiles) -> None:
    """100 tokens a second at first, 10 now. Torn lines and lines of other programs are skipped."""
    worker = elsewhere("a")
    for secs in range(0, 200, 10):
        tell(unfinished, worker, elapsed_secs=float(secs), num_tokens=min(secs, 100) * 100 + max(0, secs - 100) * 10)
    with unfinished.metrics(str(worker)).open("a") as file:
        file.write('{"worker_id": "a"}\n[1]\nnull\n{"worker_id": "a-1-0", "elap')
    (unfinished.metrics_dir / "empty.jsonl").touch()
    (unfinished.metrics_dir / "odd.jsonl").write_bytes(b"\xff\x00{}\n")
    (found,) = [found for found in MetricsReader(unfinished.store).read() if found.stats.worker_id == str(worker)]
    assert found.tokens_per_sec == pytest.approx(10)
    assert found.stats.elapsed_secs == 190


def test_rows_in_journals_count_once(unfinished: RunFiles) -> None:
    """A shard that went through three hands; one whose part was written meanwhile; rows of no shard; a torn end."""
    leave_journal(unfinished, 3, elsewhere("first"), [0, 1, 2])
    leave_journal(unfinished, 3, elsewhere("second"), [2, 3, 4])
    leave_journal(unfinished, 2, elsewhere("second"), range(10))
    inspection = Inspection(unfinished.root)
    assert inspection.look().num_rows == 35
    leave_journal(unfinished, 3, elsewhere("third"), [9])
    leave_journal(unfinished, 4, elsewhere("third"), [0, 1])
    with unfinished.journal(4, str(elsewhere("third"))).open("r+b") as file:
        file.truncate(unfinished.journal(4, str(elsewhere("third"))).stat().st_size - 400)
    assert inspection.look().num_rows == look(unfinished).num_rows == 36
    unfinished.journal(3, str(elsewhere("first"))).unlink()
    assert inspection.look().num_rows == look(unfinished).num_rows == 34, "what is not there does not count"


def test_what_workers_report_does_not_count(unfinished: RunFiles) -> None:
    """After a graceful stop, status said 0 rows, because it trusted reports, and could not divide them by shards."""
    hold(unfinished, elsewhere("a"), 3)
    tell(unfinished, elsewhere("a"), open_shards=(3, 4), num_open_rows=9, num_errors=4)
    leave_journal(unfinished, 3, elsewhere("a"), range(6))
    status = look(unfinished)
    assert (status.num_rows, status.num_part_rows) == (36, 30)
    assert status.errors == {"null_prompt": 3}


def test_journals_that_there_is_no_time_to_read_are_named(
    unfinished: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_journal(unfinished, 3, elsewhere("a"), range(6))
    inspection = Inspection(unfinished.root)
    monkeypatch.setattr(job.run.status, "READ_SECS", 0.0)
    status = inspection.look()
    assert status.is_partial and status.num_rows == 30
    assert "without 1 journal not read yet; --watch reads on" in describe_status(status)
    monkeypatch.setattr(job.run.status, "READ_SECS", 5.0)
    status = inspection.look()
    assert not status.is_partial and status.num_rows == 36


def test_a_journal_that_is_damaged_is_named(unfinished: RunFiles) -> None:
    """What follows the damage will be recomputed, so it does not count."""
    leave_journal(unfinished, 3, elsewhere("a"), range(6))
    path = unfinished.journal(3, str(elsewhere("a")))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"stop" * 6)
    content[at] = ord("S")
    path.write_bytes(content)
    status = look(unfinished)
    assert status.num_rows == 30
    assert f"  {path} is damaged at byte " in describe_status(status)


def test_a_journal_that_cannot_be_read_is_named_and_ends_no_look(unfinished: RunFiles) -> None:
    """Workers look, too, to show their progress: the rows of others must not end them."""
    leave_journal(unfinished, 3, elsewhere("a"), range(6))
    path = unfinished.journal(3, str(elsewhere("b")))
    path.symlink_to(path)
    status = look(unfinished)
    assert status.num_rows == 36
    assert f"  {path} cannot be read: Too many levels of symbolic links" in describe_status(status)


def test_rows_of_a_run_that_was_stopped_are_counted(
    run_job: RunJob, run_args: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a real worker leaves behind when it stops in the middle of a shard."""
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    num_steps = 0
    step = FakeEngine.step

    def stop_after_some(self: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 7:
            os.kill(os.getpid(), 15)
        return step(self)

    monkeypatch.setattr(FakeEngine, "step", stop_after_some)
    assert run_job(*run_args).exit_code == 75
    paths = files_of(tmp_path / "out")
    status = look(paths)
    in_journals = sum(len(list(job_rows)) for job_rows in map(read_journal_keys, paths.journal_dir.iterdir()))
    assert status.num_rows == status.num_part_rows + in_journals and in_journals
    assert status.workers == [] and last_line(status).startswith("No worker is active")


def test_errors_of_rows_in_journals_are_shown(run_job: RunJob, unfinished: RunFiles) -> None:
    """Workers had reported 12 errors, and status said 0 until a shard of 10,000 rows was done."""
    leave_journal(unfinished, 3, elsewhere("a"), [0, 1, 2], error="engine_error: it\nbroke\x1b[2J")
    leave_journal(unfinished, 4, elsewhere("a"), [0, 1], error="null_prompt: column 'prompt' is null")
    status = look(unfinished)
    assert (status.errors, status.num_part_errors) == ({"null_prompt": 5, "engine_error": 3}, 3)
    text = describe_status(status)
    assert "  errors   8, 5 of them in journals  (null_prompt 5, engine_error 3)" in text
    assert "    null_prompt, first in row 0: column 'prompt' is null" in text
    assert "    engine_error, first in row 30: it broke\\x1b[2J" in text
    values = json.loads(run_job("status", "--json", unfinished.root).stdout)["errors"]
    assert (values["total"], values["in_parts"], values["by_kind"]) == (8, 3, {"null_prompt": 5, "engine_error": 3})
    assert values["first"]["engine_error"] == {"row_idx": 30, "detail": "it\nbroke\x1b[2J"}


def test_a_worker_counts_as_silent_after_the_runs_own_time(
    run_job: RunJob, run_args: list[Any], unfinished: RunFiles
) -> None:
    """A run with 600 s was shown stale after 60, and could be retried under its workers."""
    hold(unfinished, elsewhere("a"), 3, silent_secs=61)
    assert look(unfinished).num_stale == 1
    set_settings(unfinished.store, lease_timeout_secs=600)
    status = look(unfinished)
    assert (status.num_in_work, status.num_stale) == (1, 0)
    refused = run_job("retry", unfinished.root)
    assert refused.exit_code == 2 and "leases of killed workers expire after 600 s" in refused.stderr
    waits = Leases(
        unfinished.directory, elsewhere("b"), timeout_secs=read_settings(unfinished.store).lease_timeout_secs
    )
    assert not waits.acquire(3)
    waits.close()
    make_silent(unfinished.lease(3), 601)
    assert look(unfinished).num_stale == 1


def test_a_restart_may_change_the_lease_timeout(run_job: RunJob, run_args: list[Any], unfinished: RunFiles) -> None:
    """Without the option it keeps what is in the run."""
    assert run_job(*run_args, "--lease-timeout", 600).exit_code == 0
    assert read_settings(unfinished.store) == RunSettings(lease_timeout_secs=600)
    assert run_job(*run_args).exit_code == 0
    assert read_settings(unfinished.store) == RunSettings(lease_timeout_secs=600)
    assert run_job(*run_args, "--lease-timeout", 30).exit_code == 0
    assert read_settings(unfinished.store) == RunSettings(lease_timeout_secs=30)
    refused = run_job(*run_args, "--lease-timeout", "nan")
    assert refused.exit_code == 2 and "--lease-timeout" in refused.stderr


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"lease_timeout_secs": "x"}', b'{"lease_timeout_secs": -1}', b'{"a": 1}']
)
def test_settings_that_make_no_sense_are_the_defaults(unfinished: RunFiles, content: bytes) -> None:
    (unfinished.root / "settings.json").write_bytes(content)
    assert read_settings(unfinished.store) == RunSettings(lease_timeout_secs=60)


def read_journal_keys(path: Path) -> list[Any]:
    from job.output.parts.journal import JournalReader

    return [completion.key for completion in JournalReader(LocalStore(path.parent), path.name).read()]


def test_shards_to_be_retried_are_shown(output: Path) -> None:
    """They have a part, and are not done."""
    paths = files_of(output)
    paths.retry_dir.mkdir(exist_ok=True)
    for shard_idx in (0, 2):
        paths.retry(shard_idx).write_text('{"kinds": []}')
    status = look(paths)
    assert (shards_of(status), status.num_to_retry) == ((3, 0, 0, 2), 2)
    assert not status.is_done and (status.num_rows, status.errors) == (45, {"null_prompt": 3})
    text = describe_status(status)
    assert "3 of 5 done, 0 in progress, 2 free; 2 with rows to retry" in text
    assert last_line(status).startswith("No worker is active")


def test_damaged_parts_are_counted(run_job: RunJob, output: Path) -> None:
    paths = files_of(output)
    paths.part(0).write_bytes(b"")
    paths.part(1).write_bytes(paths.part(1).read_bytes()[:-100])
    paths.part(2).write_bytes(b"\xff\xff\xff\x7fPAR1")
    result = run_job("status", output)
    assert result.exit_code == 1
    names = "part-00000.parquet, part-00001.parquet, part-00002.parquet"
    assert f"  parts that cannot be read: 3 ({names})\n" in result.stdout.replace("data/", "")
    assert result.stdout.splitlines()[-1] == f"Some parts cannot be read: job verify {output} lists them, with reasons."


def test_odd_files_in_the_directories_are_ignored(unfinished: RunFiles) -> None:
    """What is no lease, and a lease that nobody can read."""
    (unfinished.lease_dir / "notes.txt").write_text("x")
    (unfinished.lease_dir / "99999").write_text("{}")
    unfinished.lease(3).write_bytes(b"\xff")
    unfinished.lease(4).write_text('{"host": [], "pid": 1, "start_time": "", "namespace": "", "nonce": ""}')
    (unfinished.journal_dir / "x.arrows").touch()
    (unfinished.root / "data/part-x.parquet").touch()
    (unfinished.root / "data/part-7.parquet").touch()
    status = look(unfinished)
    assert shards_of(status) == (3, 2, 0, 0)
    assert [worker.worker_id for worker in status.workers] == ["unknown"]


def test_directories_that_were_not_copied_are_not_needed(output: Path) -> None:
    import shutil

    for name in ("leases", "journal", "metrics"):
        shutil.rmtree(output / name)
    files_of(output).part(4).unlink()
    assert shards_of(look(files_of(output))) == (4, 0, 0, 1)


def test_many_workers_are_shown_in_part(unfinished: RunFiles) -> None:
    for number in range(MAX_LINES + 5):
        hold(unfinished, elsewhere(f"w{number}"), (3, number))
    text = describe_status(look(unfinished))
    assert text.count("helps with") == MAX_LINES and "    and 5 more" in text


def test_a_look_that_runs_out_of_time_says_so_and_the_next_goes_on(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspection = Inspection(output)
    monkeypatch.setattr(job.run.status, "READ_SECS", 0.0)
    status = inspection.look()
    assert status.is_partial and status.is_done
    assert "0, in 0 of 5 parts; --watch reads on" in describe_status(status)
    monkeypatch.setattr(job.run.status, "READ_SECS", 5.0)
    assert dict(inspection.look().errors) == {"null_prompt": 5}
    monkeypatch.setattr(job.run.status, "READ_SECS", 0.0)
    assert dict(inspection.look().errors) == {"null_prompt": 5}, "what was read is kept"
    files_of(output).part(0).unlink()
    assert dict(inspection.look().errors) == {"null_prompt": 4}, "but not what is there no more"


def test_a_part_that_is_replaced_is_read_again(run_job: RunJob, tiny_model: Any, output: Path, tmp_path: Path) -> None:
    """As ``job retry`` has it done: the same name, another file."""
    inspection = Inspection(output)
    assert inspection.look().errors == {"null_prompt": 5}
    part = files_of(output).part(0)
    other = tmp_path / "other.parquet"
    other.write_bytes(part.read_bytes().replace(b'{"null_prompt": 1}', b'{"other_error": 1}'))
    other.replace(part)
    assert inspection.look().errors == {"null_prompt": 4, "other_error": 1}


def test_a_run_is_counted_from_all_its_parts_or_the_damaged_one_is_named(output: Path) -> None:
    paths = files_of(output)
    totals = footers.count_all(paths.directory)
    assert (totals.num_rows, dict(totals.errors)) == (47, {"null_prompt": 5})
    paths.part(2).write_bytes(paths.part(2).read_bytes()[:-1])
    with pytest.raises(JobError, match=r"part-00002\.parquet is not a part of this run .* Remove it"):
        footers.count_all(paths.directory)


def test_watching_ends_when_the_run_is_done(
    run_job: RunJob, run_args: list[Any], unfinished: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is done while the watcher sleeps."""
    slept: list[float] = []

    def work(secs: float) -> None:
        slept.append(secs)
        assert run_job(*run_args).exit_code == 0

    monkeypatch.setattr(job.cli.status, "sleep", work)
    result = run_job("status", "--watch", "--json", unfinished.root)
    assert result.exit_code == 0
    assert [json.loads(line)["done"] for line in result.stdout.splitlines()] == [False, True]
    assert slept == [5.0]


def test_watching_ends_with_ctrl_c(run_job: RunJob, unfinished: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(secs: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job.cli.status, "sleep", interrupt)
    result = run_job("status", unfinished.root, "--watch", "0.5")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith("No worker is active")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--watch"], ["--watch=5.0"]),
        (["--watch", "--json", "o"], ["--watch=5.0", "--json", "o"]),
        (["o", "--watch", "3"], ["o", "--watch", "3"]),
        (["--watch", "0.5", "o"], ["--watch", "0.5", "o"]),
        (["--watch=7", "o"], ["--watch=7", "o"]),
    ],
    ids=str,
)
def test_watch_takes_a_number_or_none(args: list[str], expected: list[str]) -> None:
    assert give_watch_its_secs(args) == expected


@pytest.mark.parametrize("secs", ["-1", "0", "nan", "inf", "1e9", "x"])
def test_a_wrong_number_of_seconds_is_refused(run_job: RunJob, output: Path, secs: str) -> None:
    result = run_job("status", output, f"--watch={secs}")
    assert result.exit_code == 2
    assert result.stderr.startswith("job: ") and result.stderr.count("\n") == 1 and "--watch" in result.stderr


def test_a_run_that_vanishes_under_the_watch_ends_it(
    run_job: RunJob, unfinished: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.cli.status, "sleep", lambda secs: unfinished.root.rename(unfinished.root.parent / "x"))
    result = run_job("status", unfinished.root, "--watch")
    assert result.exit_code == 1
    assert result.stderr == f"job: {unfinished.root} cannot be read: No such file or directory.\n"


def test_a_run_whose_model_still_loads_has_no_status_yet(run_job: RunJob, tmp_path: Path) -> None:
    """In float16 the manifest is written after the model has run, but the directories are there before."""
    RunFiles(tmp_path / "out", 1).directory.prepare()
    result = run_job("status", tmp_path / "out")
    assert result.exit_code == 2 and "has no manifest.json yet. If a run is being started there" in result.stderr


@pytest.mark.parametrize(("option", "is_shown"), [("--show-rows", True), ("--no-show-rows", False), (None, False)])
def test_rows_are_shown_in_a_log_only_if_asked_for(
    run_job: RunJob, run_args: list[Any], option: str | None, is_shown: bool
) -> None:
    """Prompts may be private, and a log may be read by others. The first error of each kind is shown in any case."""
    result = run_job(*run_args, *([option] if option else []))
    assert result.exit_code == 0, result.stderr
    assert (" (stop): question " in result.stderr) == is_shown
    assert "  error null_prompt, first in row 0: column 'prompt' is null\n" in result.stderr


def test_a_restart_says_what_is_done_and_its_bar_counts_all(
    run_job: RunJob, run_args: list[Any], unfinished: RunFiles
) -> None:
    """Regression: it said "0 done" of rows in journals, and its bar counted the errors of this launch only."""
    leave_journal(unfinished, 3, elsewhere("a"), [1, 2, 3], error="engine_error: it broke")
    result = run_job(*run_args)
    assert "47 rows in 5 shards, 33 of 47 rows already done; loading " in result.stderr
    assert "rows 47/47 (100.0%)  errors 8  " in result.stderr
    assert "  errors      8  (null_prompt 5, engine_error 3)\n" in result.stdout
    assert look(unfinished).errors == {"null_prompt": 5, "engine_error": 3}

"""Runs in an object store: as good as those in a directory, through outages, lost answers and kills."""

import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.parts import plan
from job.output.store import segments
from job.output.store.addresses import open_store
from job.output.store.objects import ObjectStore
from tests.conftest import Result
from tests.s3 import S3
from tests.test_resume import exit_codes, kill_some, sampled_run, start_workers
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]
OUT = "s3://bucket/runs/a"
NUM_ROWS, NUM_SAMPLES = 40, 2
NUM_SEEDS = int(os.environ.get("JOB_KILL_SEEDS", "2"))


@pytest.fixture
def run_args(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list[str]]:
    """Return the command line of a run, for an output. Nothing waits."""
    rows = [{"id": i, "prompt": f"{i} and more" if i % 7 else None} for i in range(NUM_ROWS)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    monkeypatch.setenv("JOB_LEASE_STALE_SECS", "1")  # a run that ends in this process leaves leases of a live one
    monkeypatch.setattr(ObjectStore, "pause_secs", 0.0)
    monkeypatch.setattr("job.output.parts.shard.JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 8)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=8))

    return lambda output: sampled_run(tiny_model(), data, output, rows_per_shard=20, num_samples=NUM_SAMPLES)


@pytest.fixture
def expected(run_job: RunJob, run_args: Callable[[object], list[str]], tmp_path: Path) -> Any:
    """Return the table of a run in a directory."""
    assert run_job(*run_args(tmp_path / "undisturbed")).exit_code == 0
    return read_output(tmp_path / "undisturbed")


def table_in(s3: S3) -> Any:
    """Return the parts of the run, as a reader of the bucket finds them."""
    parts = [s3.read(key) for key in s3.keys if key.startswith("runs/a/data/")]
    return pa.concat_tables([pq.read_table(io.BytesIO(part)) for part in parts])


def assert_finished(s3: S3, expected: Any) -> None:
    """Check that the run is the undisturbed one, and that nothing is left of its work."""
    assert table_in(s3).equals(expected)
    left = [key.removeprefix("runs/a/") for key in s3.keys if "/metrics/" not in key]
    left = [key for key in left if not key.startswith(".probe-")]  # an empty object, of a process killed at its start
    parts = [f"data/part-{idx:05d}.parquet" for idx in range(2)]
    keys = [f"keys/{idx:05d}" for idx in range(2)]
    assert left == ["README.md", *parts, *keys, "manifest.json", "totals.json"]


def test_a_run_in_a_bucket_is_that_of_a_directory(
    s3: S3, run_job: RunJob, run_args: Any, expected: Any, tmp_path: Path
) -> None:
    """Every command works on it. Nothing contains the secret key."""
    results = [run_job(*run_args(f"{OUT}/"))]
    assert_finished(s3, expected)
    assert f"80 samples of 40 rows in 2 parts: {OUT}/data/part-*.parquet" in results[0].stdout
    for command, said in {
        ("status", OUT): f"Done: every row is in a part. job verify {OUT} checks them all.",
        ("verify", OUT): "Correct and complete.",
        ("show", OUT, "--row", "3"): "3 and more",
        ("export", OUT, "--to", tmp_path / "out.jsonl"): "80 rows",
        ("retry", OUT): "12 samples will be recomputed",
    }.items():
        results.append(run_job(*command))
        assert results[-1].exit_code == 0 and said in results[-1].stdout + results[-1].stderr
    assert run_job("verify", OUT).exit_code == 75
    results.append(run_job(*run_args(OUT)))
    assert_finished(s3, expected)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(expected)
    texts = [result.stdout + result.stderr for result in results] + [str(s3.read(key)) for key in s3.keys]
    assert not [text for text in texts if "SECRET" in text]
    again = run_job(*run_args(OUT), "--seed", "5")
    assert again.exit_code == 2 and f"{OUT}/manifest.json is another run: --seed was 0, now 5" in again.stderr


def test_a_pilot_in_a_bucket_grows_and_what_was_cut_is_redone(
    s3: S3, run_job: RunJob, run_args: Any, tmp_path: Path
) -> None:
    """The same commands give the table of a run in a directory."""
    local = tmp_path / "grown"
    for output in (OUT, str(local)):
        short = [*run_args(output), "--max-new-tokens", 2]
        for command in (
            [*short, "--limit", 25],
            short,
            ["retry", output, "--cut", "--max-new-tokens", 9],
            short,
        ):
            result = run_job(*command)
            assert result.exit_code == 0, result.stderr
        verified = run_job("verify", output)
        assert verified.exit_code == 0, verified.stdout
    found = table_in(s3)
    assert found.equals(read_output(local)) and found.num_rows == NUM_ROWS * NUM_SAMPLES
    assert max(found["num_completion_tokens"].drop_null().to_pylist()) > 2


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_conditions_is_refused(s3: S3, run_job: RunJob, run_args: Any, header: str) -> None:
    """Two workers would overwrite each other's parts and leases."""
    s3.ignored.add(f"HTTP_{header.upper().replace('-', '_')}")
    result = run_job(*run_args(OUT))
    assert result.exit_code == 2
    assert f"--output {OUT}: this store ignores {header}, so two workers could" in result.stderr
    assert "job publish" in result.stderr and s3.keys == []


def test_a_store_that_wants_versions_without_quotes_gets_them(s3: S3) -> None:
    """Ceph 16 refused every lease that was to be touched or taken over."""
    s3.reads_bare_versions = True
    store = open_store(OUT)
    store.prepare([""])
    assert store.create_exclusively("leases/1", b"ours", durable=False) and store.touch("leases/1")
    seen = store.look("leases/1")
    assert store.replace_if_same("leases/1", seen, b"theirs") and not store.replace_if_same("leases/1", seen, b"late")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": None}, "credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."),
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found."),
        ({}, "there is no bucket other."),
    ],
)
def test_what_is_wrong_with_the_store_is_one_line(
    s3: S3, run_job: RunJob, run_args: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], said: str
) -> None:
    for name, value in change.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    for command in (run_args("s3://other/a"), ["status", "s3://other/a"]):
        result = run_job(*command)
        assert result.exit_code == 2 and said in result.stderr.splitlines()[-1], result.stderr


def test_a_missing_package_is_named(run_job: RunJob, run_args: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    result = run_job(*run_args(OUT))
    assert result.exit_code == 2 and "pip install 'dataset-inference-job[s3]'" in result.stderr


@pytest.mark.parametrize("late", [False, True])
def test_every_request_may_fail(s3: S3, run_job: RunJob, run_args: Any, expected: Any, late: bool) -> None:
    """Each is sent again. ``late``: what it asked for was done, so that a condition no longer holds."""
    seen: set[str] = set()

    def is_new(request: str) -> bool:
        """The first request for each object and method."""
        is_first = request not in seen
        seen.add(request)
        return is_first

    s3.fail(is_new, late=late)
    result = run_job(*run_args(OUT))
    assert result.exit_code == 0, result.stderr
    assert_finished(s3, expected)
    assert len(seen) > 20


def test_a_store_that_stays_away_ends_the_run_and_the_same_command_continues(
    s3: S3, run_job: RunJob, run_args: Any, expected: Any
) -> None:
    s3.fail(lambda request: any("/data/part-00001" in each for each in s3.log))
    result = run_job(*run_args(OUT), "--hub-timeout", "0.2")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("job: The store s3://bucket "), result.stderr
    assert "503" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    s3.heal()
    result = run_job(*run_args(OUT))
    assert result.exit_code == 0 and " 0 of 80" not in result.stderr
    assert_finished(s3, expected)


def test_a_stop_is_heard_while_the_store_is_away(
    s3: S3, run_job: RunJob, run_args: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished and not stored is recomputed, and that is said."""
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 60.0)

    def is_away(request: str) -> bool:
        if request.startswith("PUT runs/a/journal") or os.getpid() in stopped:
            if not stopped:
                os.kill(os.getpid(), signal.SIGTERM)
            stopped.add(os.getpid())
        return bool(stopped)

    stopped: set[int] = set()
    s3.fail(is_away)
    start = time.monotonic()
    result = run_job(*run_args(OUT))
    assert result.exit_code == 75 and time.monotonic() - start < 30
    assert "the last rows of shard 0 could not be stored, and will be recomputed" in result.stderr
    s3.heal()
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)
    assert run_job(*run_args(OUT)).exit_code == 0
    assert_finished(s3, expected)


def kill_at_random(seed: int, args: list[str], log: Path, monkeypatch: pytest.MonkeyPatch, num_rounds: int) -> int:
    """Start 1 to 3 workers and kill all or some of them, several times. Returns how many were killed.

    Alone, a worker needs four seconds for its steps: it is not done before it is to be killed.
    """
    rng, num_kills = random.Random(seed), 0
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.4")
    for _ in range(num_rounds):
        num_kills += kill_some(rng, args, log, 0.6, 2.0)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    return num_kills


@pytest.mark.parametrize(
    ("seed", "num_rounds"),
    [
        (0, 2),
        *(pytest.param(seed, 4, marks=pytest.mark.slow) for seed in range(1, NUM_SEEDS)),
    ],
)
def test_kills_at_random_moments_lose_and_double_nothing(
    s3: S3,
    run_args: Any,
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    num_rounds: int,
) -> None:
    args, log = run_args(OUT), tmp_path / "log"
    assert kill_at_random(seed, args, log, monkeypatch, num_rounds)
    assert exit_codes(start_workers(2, args, log)) == [0, 0], log.read_text()
    assert_finished(s3, expected)
    assert "Traceback" not in log.read_text()


def test_a_part_is_never_replaced_by_a_worker_that_comes_late(s3: S3) -> None:
    """In a directory the last one wins. Here the first does, so that readers never see a part change."""
    store = open_store(OUT)
    with store.writing("data/part-00000.parquet") as file:
        file.write(b"first")
    with pytest.raises(FileNotFoundError), store.writing("data/part-00000.parquet") as file:
        file.write(b"late")
    stamp = store.stamp("data/part-00000.parquet")
    assert s3.read("runs/a/data/part-00000.parquet") == b"first"
    store.replace("data/part-00000.parquet", b"retried")
    with pytest.raises(FileNotFoundError), store.writing("data/part-00000.parquet", stamp) as file:
        file.write(b"late")
    assert s3.read("runs/a/data/part-00000.parquet") == b"retried"


def test_a_lease_that_was_taken_over_is_not_touched(s3: S3) -> None:
    """A heartbeat must not bring back a lease that another worker has, or has given back."""
    store = open_store(OUT)
    assert store.create_exclusively("leases/1", b"ours", durable=False)
    store.replace("leases/1", b"theirs")
    with pytest.raises(FileNotFoundError):
        store.touch("leases/1")
    assert s3.read("runs/a/leases/1") == b"theirs"
    store.delete("leases/1")
    with pytest.raises(FileNotFoundError):
        store.touch("leases/1")
    assert s3.keys == []


def test_a_heartbeat_does_not_wait_for_a_store_that_is_away(s3: S3) -> None:
    """Its thread has other leases to touch, and the next beat is not far."""
    store = open_store(OUT)
    store.create_exclusively("leases/1", b"ours", durable=False)
    s3.fail(lambda request: True, times=1)
    with pytest.raises(ConnectionError):
        store.touch("leases/1")
    store.touch("leases/1")


def test_what_is_appended_to_is_a_series_of_objects(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small appends replace the last object, so that there are few; large ones are not sent again."""
    monkeypatch.setattr(segments, "FULL_BYTES", 4)
    name, store = "journal/x", open_store(OUT)
    for piece in (b"01", b"23", b"4", b"5", b"6789", b"a"):
        with store.append(name) as end:
            end.append(piece)
    starts = [int(key.rpartition("/")[2].partition("-")[0]) for key in s3.keys]
    assert starts == [0, 4, 10] and store.list("journal") == open_store(OUT).list("journal")
    whole = b"0123456789a"
    assert [store.read(name, start) for start in range(12)] == [whole[start:] for start in range(12)]
    assert store.read(name, -3) == whole[-3:]
    with open_store(OUT).append(name) as end:  # as after a restart
        end.append(b"b")
    assert store.read(name) == whole + b"b"
    # A reader that is beyond the end of a journal has to notice that it was cut.
    assert store.look(name, 20)[1].num_bytes == len(whole) + 1


def test_what_lies_beyond_a_gap_does_not_count(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow worker goes on with a journal that was deleted since, because its shard is done."""
    monkeypatch.setattr(segments, "FULL_BYTES", 4)
    name, store = "journal/x", open_store(OUT)
    with store.append(name) as end:
        end.append(b"0123")
        open_store(OUT).delete(name)
        end.append(b"4567")
    assert store.exists(name), "its name is in use"
    with pytest.raises(FileNotFoundError):
        store.read(name)
    store.delete(name)
    assert s3.keys == []


def test_a_part_that_is_replaced_while_it_is_read_is_no_mixture(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.output.store.ranges.TAIL_BYTES", 4)
    monkeypatch.setattr("job.output.store.ranges.BLOCK_BYTES", 4)
    store = open_store(OUT)
    store.replace("x", b"0123456789")
    with store.open("x") as file:
        assert file.read(2) == b"01" and file.seek(-2, os.SEEK_END) == 8 and file.read() == b"89"
        store.replace("x", b"abcdefghij")
        file.seek(0)
        with pytest.raises(OSError, match="it was replaced while it was read"):
            file.read(8)

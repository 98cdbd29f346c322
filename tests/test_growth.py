"""A larger ``--limit`` on the same output: the pilot's rows stay, and every other row is computed once."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from job.data.runs import read_run
from job.errors import UsageError
from job.output.looking.found import find_run
from job.output.looking.verification import verify
from job.output.parts import manifest as manifests
from job.output.parts.differences import describe_differences
from job.output.parts.growth import Growth, read_growth
from job.output.parts.manifest import Manifest, claim_run_directory
from job.output.parts.plan import Plan
from job.output.store.local import LocalStore
from job.run.conclusion import conclude
from tests.conftest import Result
from tests.run_files import files_of
from tests.test_conclusion import prepared_of
from tests.test_resume import (
    NUM_ROWS,
    NUM_SAMPLES,
    exit_codes,
    expected,
    run_args,
    start_until_journal_has,
    start_workers,
)
from tests.test_run import read_output, submitted_by, write_jsonl

__all__ = ["expected", "run_args"]

RunJob = Callable[..., Result]
RunArgs = Callable[[Path], list[str]]


@pytest.mark.parametrize("seed", range(20))
def test_a_grown_plan_has_every_row_once_and_keeps_the_shards_of_before(seed: int) -> None:
    rng = random.Random(seed)
    totals = sorted(rng.sample(range(200), rng.randrange(1, 5)))
    rows_per_shard = rng.randrange(1, 30)
    before: list[range] = []
    for idx, num_rows in enumerate(totals):
        plan = Plan(
            num_rows=num_rows, rows_per_shard=rows_per_shard, cuts=tuple(cut for cut in totals[:idx] if cut > 0)
        )
        shards = [plan.rows(shard_idx) for shard_idx in range(plan.num_shards)]
        assert shards[: len(before)] == before or not any(map(len, before))
        assert [row_idx for rows in shards for row_idx in rows] == list(range(num_rows))
        assert all(plan.shard_of(row_idx) == at for at, rows in enumerate(shards) for row_idx in rows)
        assert all(len(rows) <= rows_per_shard for rows in shards) and not plan.rows(plan.num_shards)
        before = shards


def test_a_pilot_becomes_the_run(
    run_job: RunJob, run_args: RunArgs, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: to a larger limit, and to all rows. Status and verify are right at each stage."""
    args, output = run_args(tmp_path / "out"), tmp_path / "out"
    submitted = submitted_by(monkeypatch)
    written: dict[Path, bytes] = {}
    assert run_job(*args, "--limit", 40).exit_code == 0
    for limit, num_rows, parts in ((60, 60, [25, 15, 20]), (None, NUM_ROWS, [25, 15, 20, 25, 25, 10])):
        submitted.clear()
        options = [] if limit is None else ["--limit", limit]
        grown = run_job(*args, *options)
        assert grown.exit_code == 0, grown.stderr
        assert submitted and min(submitted)[0] >= sum(map(len, written.values()), 40 if limit else 60)
        assert len(set(submitted)) == len(submitted)
        found = sorted((output / "data").iterdir())
        assert [pq.read_metadata(path).num_rows for path in found] == [rows * NUM_SAMPLES for rows in parts]
        assert read_output(output).equals(expected.slice(0, num_rows * NUM_SAMPLES))
        checked = run_job("verify", output)
        assert (checked.exit_code, run_job("status", output).exit_code) == (0, 0), checked.stdout
        card = (output / "README.md").read_text()
        assert ("the first 60 rows" in card) == (limit == 60) and "the first 40 rows" not in card
        assert json.loads(run_job("status", output, "--json").stdout)["rows"]["total"] == num_rows * NUM_SAMPLES
    again = run_job(*args)
    assert f"all {NUM_ROWS * NUM_SAMPLES} rows are already done" in again.stderr
    history = [(each.limit, each.num_rows) for each in read_growth(LocalStore(output))]
    assert history == [(60, 60), (None, NUM_ROWS)]
    taken = read_run(output)
    assert taken is not None and (taken.num_rows, taken.num_missing) == (NUM_ROWS, 0)
    (output / "data/part-00001.parquet").unlink()
    taken = read_run(output)
    assert taken is not None and taken.state == f"15 of {NUM_ROWS} rows are missing"


def test_a_run_does_not_shrink(run_job: RunJob, run_args: RunArgs, tmp_path: Path) -> None:
    args = run_args(tmp_path / "out")
    where = f"job: {tmp_path / 'out'}/manifest.json is a run of more rows: --limit was "
    for limit, smaller, old in ((20, 10, "give --limit 20"), (30, 20, "give --limit 30"), (None, 30, None)):
        assert run_job(*args, *([] if limit is None else ["--limit", limit])).exit_code == 0
        refused = run_job(*args, "--limit", smaller)
        was = "not set" if limit is None else limit
        advice = f"Use a new --output for fewer rows, or {old or 'leave out --limit'} to go on."
        assert refused.exit_code == 2
        assert refused.stderr.splitlines()[-1] == (
            f"{where}{was}, now {smaller}. A run can grow, but not shrink. {advice}"
        )
    other = run_job(*args, "--limit", 200, "--seed", 5)
    assert other.exit_code == 2 and "--seed was 0, now 5" in other.stderr


@pytest.mark.parametrize(
    ("prices", "template", "told"),
    [
        ("1 2 2.5", "{{ price }}", "('price' was int64, now double), and the run's row 0 would have another prompt: "
         "'1' would be '1.0'. Use a new --output, or give --limit 2 to go on."),
        ("1 2 x", "{{ price + 1 }}", "('price' was int64, now string), and the run's row 0 would have another prompt"),
        ("1 2 x", "{{ price }}", None),
        ("1 2 3", "{{ price + 1 }}", None),
    ],
)  # fmt: skip
def test_a_pilot_keeps_its_prompts_when_later_rows_change_the_types(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, prices: str, template: str, told: str | None
) -> None:
    """Those of csv follow from all rows within ``--limit``."""
    data = tmp_path / "data.csv"
    data.write_text("price,name\n" + "".join(f"{price},n\n" for price in prices.split()))
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--max-error-rate", 1]
    args += ["--prompt-template", template, "--output"]
    assert run_job(*args, tmp_path / "out", "--limit", 2).exit_code == 0
    result = run_job(*args, tmp_path / "out")
    assert result.exit_code == (2 if told else 0) and (told or "") in result.stderr, result.stderr
    if told is None:
        run_job(*args, tmp_path / "whole")
        assert read_output(tmp_path / "out").equals(read_output(tmp_path / "whole"))


def test_a_pilot_of_which_a_kept_column_changes_its_type_is_refused(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "n": n} for n in (1, 2, 2.5)])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    assert run_job(*args, "--keep-columns", "n", "--limit", 2).exit_code == 0
    result = run_job(*args, "--keep-columns", "n")
    assert result.exit_code == 2
    kept = "what --id-column and --keep-columns keep"
    assert f"has columns of other types than with the larger --limit: {kept} was" in result.stderr
    assert (
        "was ['n: int64'], now ['n: double']. Types fit all rows. Use a new --output, or give --limit 2"
        in result.stderr
    )


def test_a_limit_beyond_the_data_may_grow_too(
    run_job: RunJob, run_args: RunArgs, expected: Any, tmp_path: Path
) -> None:
    """Then there is nothing to compute."""
    args = run_args(tmp_path / "out")
    assert run_job(*args, "--limit", NUM_ROWS + 1).exit_code == 0
    assert "already done" in run_job(*args, "--limit", NUM_ROWS + 2).stderr
    assert read_output(tmp_path / "out").equals(expected)
    assert run_job("verify", tmp_path / "out").exit_code == 0
    assert run_job(*args, "--limit", NUM_ROWS + 1).exit_code == 2


def test_an_unfinished_pilot_grows_and_keeps_its_journals(
    run_job: RunJob, run_args: RunArgs, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, args = tmp_path / "out", run_args(tmp_path / "out")
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    worker = start_until_journal_has(2000, [*args, "--limit", "40"], output, tmp_path / "log")
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    num_known = json.loads(run_job("status", output, "--json").stdout)["rows"]["done"]
    submitted = submitted_by(monkeypatch)
    assert run_job(*args).exit_code == 0
    num_prompts = sum(prompt is not None for prompt in expected["prompt"].to_pylist())
    assert num_known and len(set(submitted)) == len(submitted) < num_prompts
    assert read_output(output).equals(expected)
    assert run_job("verify", output).exit_code == 0


@pytest.mark.parametrize("seed", range(int(os.environ.get("JOB_TEST_CASES", "1"))))
def test_histories_of_growth_and_kills_lose_and_double_nothing(
    run_job: RunJob, run_args: RunArgs, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each round starts 1 to 3 workers, often with a larger limit than before, and kills some or none of them: workers
    of earlier rounds with smaller limits are at work beside them. What is there is right whenever it is looked at.
    """
    rng = random.Random(seed)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.01")
    args, log, limit, workers = run_args(tmp_path / "out"), tmp_path / "log", rng.randrange(1, 40), list[Any]()
    for _ in range(rng.randrange(2, 5)):
        workers += start_workers(rng.randrange(1, 4), [*args, "--limit", str(limit)], log)
        time.sleep(rng.uniform(0.05, 0.4))
        if (tmp_path / "out/manifest.json").exists():
            found = verify(find_run(tmp_path / "out"))
            assert not found.problems, found.problems
        for worker in rng.sample(workers, rng.randrange(len(workers))):
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
        limit += rng.choice([0, rng.randrange(1, 40)])
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    last = start_workers(2, args, log)
    assert exit_codes(last) == [0, 0], log.read_text()
    # Whoever has come too late with a smaller limit is refused; nobody else fails.
    assert set(exit_codes(workers)) <= {0, 2, -signal.SIGKILL}, log.read_text()
    assert "is another run" not in log.read_text()
    assert read_output(tmp_path / "out").equals(expected)
    assert run_job("verify", tmp_path / "out").exit_code == 0
    assert "already done" in run_job(*args).stderr
    assert "the first" not in (tmp_path / "out/README.md").read_text()


def manifest_of(limit: int, rows_per_shard: int = 10) -> Manifest:
    identity = {
        "dataset": {"limit": limit},
        "plan": {"num_rows": limit, "rows_per_shard": rows_per_shard},
        "sampling": {},
        "modes": {},
    }
    return Manifest(identity, {})


def test_a_larger_limit_is_not_named_among_what_differs() -> None:
    wanted = Manifest(manifest_of(20).identity | {"sampling": {"seed": 5}}, {})
    told = "is another run: --seed was 0, now 5. Use a new --output, or the old value."
    assert describe_differences(manifest_of(10), wanted) == told


def test_of_many_that_grow_at_once_all_agree(tmp_path: Path) -> None:
    """Each gets a run of at least its limit, or is refused because the run has grown further."""
    limits = [20, 30, 30, 40, 20, 50, 40, 30]
    store = LocalStore(tmp_path)
    claim_run_directory(store, manifest_of(10))
    barrier, outcomes = threading.Barrier(len(limits)), dict[int, Any]()

    def claim(at: int) -> None:
        barrier.wait()
        try:
            outcomes[at] = claim_run_directory(LocalStore(tmp_path), manifest_of(limits[at])).plan
        except UsageError as error:
            outcomes[at] = str(error)

    threads = [threading.Thread(target=claim, args=(at,)) for at in range(len(limits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    grown = [each.num_rows for each in read_growth(store)]
    assert grown == sorted(set(grown)) and grown[-1] == 50
    for at, outcome in outcomes.items():
        is_refused = isinstance(outcome, str)
        assert "can grow, but not shrink" in outcome if is_refused else outcome.num_rows == limits[at]
        assert is_refused or outcome.cuts == (10, *(rows for rows in grown if rows < limits[at]))


def test_a_run_whose_parts_have_no_more_names_does_not_grow(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    claim_run_directory(store, manifest_of(1000, rows_per_shard=1))
    assert claim_run_directory(store, manifest_of(100_000, rows_per_shard=1)).plan.num_shards == 100_000
    with pytest.raises(UsageError, match=r"would grow to 100,001 parts, but the names of its parts have room for 5"):
        claim_run_directory(store, manifest_of(100_001, rows_per_shard=1))
    assert len(read_growth(store)) == 1


def test_a_damaged_growth_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    claim_run_directory(store, manifest_of(10))
    claim_run_directory(store, manifest_of(20))
    (tmp_path / "growth/00001").write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"growth/00001 does not say how the run has grown"):
        manifests.read_manifest(store)


def test_a_worker_that_ends_with_a_smaller_limit_leaves_the_grown_run_alone(
    run_job: RunJob, run_args: RunArgs, tmp_path: Path
) -> None:
    """It sweeps only what belongs to shards that it knows, and writes no card of fewer rows."""
    output, args = tmp_path / "out", run_args(tmp_path / "out")
    assert run_job(*args, "--limit", 40).exit_code == 0
    prepared, files = prepared_of(output), files_of(output)
    claim_run_directory(LocalStore(output), grown(prepared.manifest, 100))
    (output / "README.md").unlink()
    leftovers = [files.journal(1, "w"), files.lease(1), files.lease(1, 0)]
    others = [files.journal(2, "w"), files.lease(2), files.lease(3, 1)]
    for path in (*leftovers, *others):
        path.write_bytes(b"")
    assert conclude(prepared).num_rows == 40 * NUM_SAMPLES
    assert all(path.exists() for path in others) and not any(path.exists() for path in leftovers)
    assert not (output / "README.md").exists()


def grown(manifest: Manifest, num_rows: int) -> Manifest:
    dataset, plan = ({**manifest.identity[name]} for name in ("dataset", "plan"))
    identity = manifest.identity | {
        "dataset": dataset | {"limit": num_rows},
        "plan": plan | {"num_rows": num_rows},
    }
    return Manifest(identity, manifest.about)


def test_verify_takes_no_part_of_a_growth_in_the_meantime_for_a_foreign_one(
    run_job: RunJob, run_args: RunArgs, tmp_path: Path
) -> None:
    output, args = tmp_path / "out", run_args(tmp_path / "out")
    assert run_job(*args, "--limit", 40).exit_code == 0
    found = find_run(output)
    assert run_job(*args, "--limit", 60).exit_code == 0
    assert not verify(found).problems
    foreign = output / "data/part-00003.parquet"
    foreign.write_bytes(b"")
    assert [str(problem) for problem in verify(found).problems] == [
        "data/part-00003.parquet is not a part of this run: the plan has data/part-00000.parquet to "
        "data/part-00002.parquet"
    ]


def test_the_growth_is_recorded_with_its_time() -> None:
    assert Growth.now(5, 4).created.startswith("2")

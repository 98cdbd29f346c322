"""The end of a run with many workers: one reads the footers of all parts, all report the same."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from job.errors import EXIT_TOO_MANY_ERRORS, JobError
from job.output.looking import totals
from job.output.looking.found import find_run
from job.output.parts.counts import Counts
from job.output.sharing.leases import Leases
from job.output.store.directory import RunDirectory
from job.run.conclusion import conclude, exit_code_of
from tests.conftest import Result
from tests.test_leases import dead_worker, elsewhere
from tests.test_run import write_jsonl

NUM_WORKERS = 8

RunJob = Callable[..., Result]


@pytest.fixture
def output(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Path:
    """Return the directory of a run of five parts that is done; nobody has left its totals."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"q {i}" if i % 10 else None} for i in range(47)])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    assert run_job(*args, "--rows-per-shard", 10).exit_code == EXIT_TOO_MANY_ERRORS
    (tmp_path / "out/totals.json").unlink()
    return tmp_path / "out"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[RunDirectory]:
    """Return a list that gains a run directory whenever all its footers are read."""
    calls: list[RunDirectory] = []
    count_all = totals.count_all

    def count(directory: RunDirectory) -> Counts:
        calls.append(directory)
        return count_all(directory)

    monkeypatch.setattr(totals, "count_all", count)
    return calls


def prepared_of(output: Path) -> Any:
    """What a leader knows at the end, as far as it matters here."""
    run = find_run(output)
    config = SimpleNamespace(output=SimpleNamespace(max_error_rate=0.05))
    return SimpleNamespace(directory=run.directory, manifest=run.manifest, config=config)


def test_one_of_many_workers_reads_all_footers(
    output: Path, counted: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every leader did: 64 of them asked a file system for 100,000 footers each, in the same minute."""
    somebody_waits, codes, barrier = threading.Event(), [], threading.Barrier(NUM_WORKERS)
    notes: list[str] = []
    add_up = totals.count_all

    def count_slowly(directory: RunDirectory) -> Counts:
        assert somebody_waits.wait(60)
        return add_up(directory)

    monkeypatch.setattr(totals, "count_all", count_slowly)

    def wait() -> bool:
        somebody_waits.set()
        return False

    def work(number: int) -> None:
        prepared = prepared_of(output)
        leases = Leases(prepared.directory, elsewhere(f"n{number}"))
        barrier.wait()
        codes.append(exit_code_of(conclude(prepared, leases, wait), prepared, notes.append))
        leases.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [EXIT_TOO_MANY_ERRORS] * NUM_WORKERS
    assert all("more than --max-error-rate 0.05: exit code 3" in note for note in notes) and notes
    assert len(counted) == 1
    assert list((output / "leases").iterdir()) == []


def test_a_worker_that_died_over_the_footers_is_replaced(output: Path, counted: list[RunDirectory]) -> None:
    prepared = prepared_of(output)
    assert Leases(prepared.directory, dead_worker()).acquire_name("leases/conclusion")
    leases = Leases(prepared.directory, elsewhere("a"))
    assert conclude(prepared, leases, lambda: pytest.fail("nobody lives to wait for")).num_rows == 47
    assert len(counted) == 1
    leases.close()


def test_a_worker_that_must_stop_does_not_wait_for_another(output: Path, counted: list[RunDirectory]) -> None:
    prepared = prepared_of(output)
    other = Leases(prepared.directory, elsewhere("other"))
    assert other.acquire_name("leases/conclusion")
    leases = Leases(prepared.directory, elsewhere("a"))
    assert conclude(prepared, leases, lambda: True).num_rows == 47
    leases.close()
    other.close()


def test_totals_of_other_parts_are_not_taken_for_true(output: Path, counted: list[RunDirectory]) -> None:
    """A part was replaced, or the directory copied: identities of files differ."""
    prepared = prepared_of(output)
    leases = Leases(prepared.directory, elsewhere("a"))
    for part in (None, output / "data/part-00001.parquet"):
        if part is not None:
            (output / "copy").write_bytes(part.read_bytes())
            (output / "copy").replace(part)
        assert conclude(prepared, leases).num_rows == 47
    assert len(counted) == 2
    (output / "totals.json").write_bytes(b"{")
    assert conclude(prepared, leases).num_rows == 47
    assert len(counted) == 3
    leases.close()


def test_a_damaged_part_is_named_and_its_lease_given_back(output: Path) -> None:
    prepared = prepared_of(output)
    (output / "data/part-00001.parquet").write_bytes(b"damaged")
    leases = Leases(prepared.directory, elsewhere("a"))
    with pytest.raises(JobError, match=r"part-00001\.parquet is not a part of this run"):
        conclude(prepared, leases)
    assert not (output / "leases/conclusion").exists() and not (output / "totals.json").exists()
    leases.close()

"""Metrics: each worker's latest line, and nothing from the torn or the gone."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from job.output.sharing import metrics
from job.output.sharing.metrics import FRESH_SECS, SILENT_SECS, TAIL_BYTES, WorkerStats
from job.output.store.local import LocalStore


def figures(num_rows: int = 1, **changes: Any) -> WorkerStats:
    values = {
        "worker_id": "w",
        "launch_id": "l",
        "time": 1.5,
        "elapsed_secs": 2.5,
        "num_open_rows": 0,
        "num_errors": 0,
        "num_tokens": 10,
        "num_at_work": 0,
        "open_shards": (3, 4),
    }
    return WorkerStats(**{**values, "num_rows": num_rows, **changes})


def metrics_file(path: Path, **options: Any) -> metrics.MetricsFile:
    return metrics.MetricsFile(LocalStore(path.parent.parent), f"metrics/{path.name}", **options)


class Reader:
    """One worker's view of the others."""

    def __init__(self, directory: Path) -> None:
        self._reader = metrics.MetricsReader(LocalStore(directory.parent))

    def read(self) -> list[WorkerStats]:
        return self._reader.read_others("metrics/own.jsonl")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """The directory of metrics of a run."""
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics"


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """What a worker that has just written its own figures reads others' with."""
    metrics_file(tmp_path / "own.jsonl").write(figures(worker_id="own"))
    return Reader(tmp_path)


def set_age(path: Path, secs: float) -> None:
    then = time.time() - secs
    os.utime(path, (then, then))


def test_the_last_line_of_each_other_worker_is_read(tmp_path: Path, reader: Reader) -> None:
    for name in "ab":
        for num_rows in (1, 2):
            metrics_file(tmp_path / f"{name}.jsonl").write(figures(num_rows, worker_id=name))
    latest = sorted(reader.read(), key=lambda found: found.worker_id)
    assert latest == [figures(2, worker_id="a"), figures(2, worker_id="b")]


def test_the_last_of_very_many_lines_is_read(tmp_path: Path, reader: Reader) -> None:
    file = metrics_file(tmp_path / "a.jsonl")
    for num_rows in range(300):
        file.write(figures(num_rows))
    assert (tmp_path / "a.jsonl").stat().st_size > 3 * TAIL_BYTES
    assert reader.read() == [figures(299)]


@pytest.mark.parametrize("num_lines", [1, 2])
def test_a_very_long_line_is_read(tmp_path: Path, reader: Reader, num_lines: int) -> None:
    """A worker that held 700 shards was not seen."""
    found = figures(open_shards=tuple(range(100_000, 110_000)))
    for _ in range(num_lines):
        metrics_file(tmp_path / "a.jsonl").write(found)
    assert reader.read() == [found]


def test_a_line_torn_at_any_byte_is_passed_over(tmp_path: Path, reader: Reader) -> None:
    line = json.dumps(dataclasses.asdict(figures(2))).encode()
    for size in range(len(line)):
        metrics_file(tmp_path / "a.jsonl").write(figures(1))
        with (tmp_path / "a.jsonl").open("ab") as file:
            file.write(line[:size])
        assert reader.read() == [figures(1)]
        (tmp_path / "a.jsonl").unlink()


@pytest.mark.parametrize(
    "content", ["", "\n", '{"num', "{}x}", "[]", '{"open_shards": [], "unknown": 1}', "x" * 10_000]
)
def test_a_file_without_a_whole_line_says_nothing(tmp_path: Path, reader: Reader, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert reader.read() == []


def test_workers_of_other_versions_are_seen(tmp_path: Path, reader: Reader) -> None:
    """A reader was strict: in a launch of mixed versions, workers did not see each other, and status saw both."""
    newer = json.loads(figures().to_json()) | {"worker_id": "newer", "gpu_temperature": 60, "launch_id": None}
    older = {"worker_id": "older", "time": 1.5, "num_rows": 3}
    for values in (newer, older):
        (tmp_path / f"{values['worker_id']}.jsonl").write_text(json.dumps(values) + "\n")
    assert sorted(reader.read(), key=lambda found: found.worker_id) == [
        figures(worker_id="newer", launch_id=""),
        WorkerStats(worker_id="older", time=1.5, num_rows=3),
    ]


@pytest.mark.parametrize(("silent_secs", "num_workers"), [(0, 1), (FRESH_SECS - 5, 1), (FRESH_SECS + 5, 0)])
@pytest.mark.parametrize("behind_secs", [0, 40, -40])
def test_a_worker_that_is_silent_for_long_does_not_count(
    tmp_path: Path, reader: Reader, silent_secs: float, num_workers: int, behind_secs: float
) -> None:
    """Whatever the time is by the clock of the file server: where it was 40 s behind, nobody was seen."""
    metrics_file(tmp_path / "a.jsonl").write(figures())
    set_age(tmp_path / "own.jsonl", behind_secs)
    set_age(tmp_path / "a.jsonl", behind_secs + silent_secs)
    assert len(reader.read()) == num_workers


def test_who_has_written_nothing_sees_nobody(tmp_path: Path) -> None:
    metrics_file(tmp_path / "a.jsonl").write(figures())
    assert Reader(tmp_path).read() == []


def test_files_of_workers_that_are_long_gone_are_not_opened_again(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 launches of 64 leave 6,400 files, and every worker asked for each of them every 10 s."""
    for name, age in (("alive", 0), ("silent", FRESH_SECS + 5), ("gone", SILENT_SECS + 5)):
        metrics_file(tmp_path / f"{name}.jsonl").write(figures(worker_id=name))
        set_age(tmp_path / f"{name}.jsonl", age)
    assert [found.worker_id for found in reader.read()] == ["alive"]
    opened: list[str] = []
    path_open = Path.open

    def record(path: Path, *args: Any, **options: Any) -> Any:
        opened.append(path.stem)
        return path_open(path, *args, **options)

    monkeypatch.setattr(Path, "open", record)
    set_age(tmp_path / "silent.jsonl", 0)
    assert {found.worker_id for found in reader.read()} == {"alive", "silent"}
    assert "gone" not in opened


def test_lines_are_written_when_they_are_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    file = metrics_file(tmp_path / "a", every_secs=10.0)
    for now in (100.0, 109.9, 110.0, 111.0):
        file.write_if_due(figures(int(now)))
    lines = (tmp_path / "a").read_text().splitlines()
    assert [json.loads(line)["num_rows"] for line in lines] == [100, 110]

"""Metrics: each worker's latest line, and nothing from the torn or the gone."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from job.observe import metrics
from job.observe.metrics import FRESH_SECS, Figures, MetricsFile, read_latest


def figures(num_rows: int = 1, **changes: Any) -> Figures:
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
    return Figures(**{**values, "num_rows": num_rows, **changes})


def test_the_last_line_of_each_worker_is_read(tmp_path: Path) -> None:
    for name in "ab":
        for num_rows in (1, 2):
            MetricsFile(tmp_path / name).write(figures(num_rows, worker_id=name))
    latest = read_latest([tmp_path / "a", tmp_path / "b"])
    assert latest == [figures(2, worker_id="a"), figures(2, worker_id="b")]


def test_the_last_of_very_many_lines_is_read(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "a")
    for num_rows in range(200):
        file.write(figures(num_rows))
    assert (tmp_path / "a").stat().st_size > 3 * 4096
    assert read_latest([tmp_path / "a"]) == [figures(199)]


def test_a_line_torn_at_any_byte_is_passed_over(tmp_path: Path) -> None:
    line = json.dumps(dataclasses.asdict(figures(2))).encode()
    for size in range(len(line)):
        MetricsFile(tmp_path / "a").write(figures(1))
        with (tmp_path / "a").open("ab") as file:
            file.write(line[:size])
        assert read_latest([tmp_path / "a"]) == [figures(1)]
        (tmp_path / "a").unlink()


@pytest.mark.parametrize("content", ["", "\n", '{"num', "{}x}", "[]", '{"open_shards": [], "unknown": 1}'])
def test_a_file_without_a_whole_line_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text(content)
    assert read_latest([tmp_path / "a", tmp_path / "gone"]) == []


@pytest.mark.parametrize(("silent_secs", "num_workers"), [(0, 1), (FRESH_SECS - 5, 1), (FRESH_SECS + 5, 0)])
def test_a_worker_that_is_silent_for_long_does_not_count(tmp_path: Path, silent_secs: float, num_workers: int) -> None:
    MetricsFile(tmp_path / "a").write(figures())
    then = time.time() - silent_secs
    os.utime(tmp_path / "a", (then, then))
    assert len(read_latest([tmp_path / "a"])) == num_workers


def test_lines_are_written_when_they_are_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    file = MetricsFile(tmp_path / "a", every_secs=10.0)
    for now in (100.0, 109.9, 110.0, 111.0):
        file.write_if_due(figures(int(now)))
    lines = (tmp_path / "a").read_text().splitlines()
    assert [json.loads(line)["num_rows"] for line in lines] == [100, 110]

"""The page of ``job report``: its numbers, its rows, and what a real browser makes of it."""

import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from job.errors import JobError, UsageError
from job.launch.energy import EnergyMeter
from job.output.looking.found import find_run
from job.output.sharing.metrics import WorkerStats
from job.report.cost import cost_of
from job.report.coverage import coverage_of
from job.report.lengths import lengths_of
from job.report.page.embedded import to_json
from job.report.page.html import to_html
from job.report.page.serving import HOST, Latest, PageServer
from job.report.row_sample import sample_rows
from job.report.timeline import STALL_SECS, make_timeline
from job.run.devices import Devices
from tests.browsing import Tab, open_browser
from tests.conftest import Result
from tests.labeled_runs import probs_of, write_run

RunJob = Callable[..., Result]

RUNS = Path(__file__).parent / "runs"
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;\u2028 <!-- end"
NUM_ROWS = 60


def history(worker: str, start: float, tokens: list[int], **last: Any) -> list[WorkerStats]:
    """Return figures of a worker, one each 10 seconds, that has computed so many tokens at each."""
    lines = [
        {"time": start + 10 * idx, "elapsed_secs": 10.0 * idx, "num_tokens": count, "num_rows": count // 10}
        for idx, count in enumerate(tokens)
    ]
    lines[-1] |= last
    common = {"worker_id": worker, "num_at_work": 4, "open_shards": (0,), "num_devices": 2}
    return [WorkerStats(**{**common, **line}) for line in lines]


def test_a_time_line_tells_restarts_stops_and_stalls() -> None:
    still = [1000, *[1000] * int(STALL_SECS // 10), 2000]
    runs = [
        history("a", 0, [0, *still], launch_id="1"),
        history("b", 500, [0, 500, 900], launch_id="2", left="SIGTERM"),
        history("c", 600, [0, 500, 1000], launch_id="3", left="done", num_at_work=0, open_shards=()),
        history("d", 700, [0, 500, 1000], launch_id="4"),
        history("e", 705, [0, 0, 0, 0], launch_id="5", left="done", open_shards=()),
    ]
    runs[-1] = [replace(line, num_at_work=0) for line in runs[-1]]
    for each in runs:  # a launch is one all the time
        each[:] = [WorkerStats(**{**values_of(line), "launch_id": each[-1].launch_id}) for line in each]
    found = make_timeline(runs, active=["d"])
    events = [(event.kind, event.worker_id, event.time) for event in found.events]
    end = 10 * (len(still))
    assert events == [
        ("start", "a", 0),
        ("stall", "a", 10),
        ("stop", "a", end),
        ("restart", "b", 500),
        ("stop", "b", 520),
        ("restart", "c", 600),
        ("restart", "d", 700),
        ("join", "e", 705),
    ]
    assert [worker.waits for worker in found.workers] == [(), (), (), (), ((705, 735),)]
    [stall] = [event for event in found.events if event.kind == "stall"]
    assert stall.secs == STALL_SECS and "4 rows in flight" in stall.text
    computed = (found.tokens_per_sec * found.bin_secs).sum(axis=1)
    assert np.allclose(computed, [2000, 900, 1000, 1000, 0], rtol=0.01)


def test_a_worker_that_was_killed_early_has_stopped() -> None:
    """It had reported once, before it had rows. A worker that has just reported may begin yet."""
    [only] = [history("a", 0, [0], num_at_work=0, open_shards=(), device="cpu")]
    kinds = [[event.kind for event in make_timeline([only], now=now).events] for now in (10, 100)]
    assert kinds == [["start"], ["start", "stop"]]
    assert [event.kind for event in make_timeline([only], ["a"], 100).events] == ["start"]
    older = [replace(line, device="") for line in only]  # of a version that never said why
    assert [event.kind for event in make_timeline([older], now=100).events] == ["start"]


def values_of(stats: WorkerStats) -> dict[str, Any]:
    return {name: getattr(stats, name) for name in stats.__slots__}


def test_cost_by_hand() -> None:
    """Two workers of two devices for 20 seconds each: 80 device seconds."""
    runs = [history("a", 0, [0, 500, 1000], joules=1.8e6), history("b", 5, [0, 500, 3000], num_completion_tokens=400)]
    cost = cost_of(make_timeline(runs), 3600.0)
    assert cost.device_hours == pytest.approx(80 / 3600) and cost.price == pytest.approx(80)
    assert cost.tokens_per_device_sec == 50 and cost.completion_tokens_per_device_sec == 5
    assert cost.price_per_1000_rows == pytest.approx(200) and cost.price_per_million_tokens == pytest.approx(2e5)
    assert cost.kwh == 0.5 and not cost.is_all_measured
    assert cost_of(make_timeline(runs), None).price is None


@pytest.mark.parametrize(
    ("missing", "expected"),
    [([], "are a random sample of the 300"), ([3, 80], "nearly a random sample of the 300: 2 that are begun")],
)
def test_a_random_sample_is_recognised(missing: list[int], expected: str) -> None:
    """By the rows that are finished; the first rows of the dataset, and other rows, are not taken for one."""
    order = np.random.default_rng(0).permutation(300)
    of_random = coverage_of(np.delete(order[:100], missing), 300, order)
    assert of_random is not None and expected in of_random.describe()
    of_first = coverage_of(np.delete(np.arange(100), missing), 300, order)
    assert of_first is not None and "the first ones of the dataset" in of_first.describe()
    of_others = coverage_of(np.arange(150, 200), 300, order)
    assert of_others is not None and "rows of 300 are not a random sample" in of_others.describe()
    nearly_all = coverage_of(np.arange(299), 300, order)
    assert nearly_all is not None and nearly_all.is_first and not nearly_all.is_random
    assert coverage_of(order, 300, order) is None and coverage_of(order[:0], 300, order) is None


class FakeNvml:
    """Counts 1,500 mJ more each time it is asked."""

    def __init__(self, *, counts: bool = True) -> None:
        self.counts, self.millijoules = counts, 10_000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        return 0 if uuid == b"GPU-1" else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, count: Any) -> int:
        self.millijoules += 1500
        count._obj.value = self.millijoules
        return 0 if self.counts else 3


def test_energy_counts_from_the_start_of_a_run() -> None:
    meter = EnergyMeter("GPU-1", FakeNvml())
    assert [meter.joules, meter.joules] == [1.5, 3.0]
    assert Devices(count=2, meter=meter).joules == 9.0 and Devices().joules is None
    assert EnergyMeter("GPU-2", FakeNvml()).joules is None
    assert EnergyMeter("GPU-1", FakeNvml(counts=False)).joules is None
    assert Devices.of(torch.device("cpu"), 2) == Devices(count=2, name="cpu")


@pytest.mark.parametrize("scale", [1, 30, 100_000])
def test_bars_of_lengths_hold_every_row(scale: int) -> None:
    numbers = (np.random.default_rng(0).lognormal(0, 1, 1000) * scale).astype(np.int64)
    found = lengths_of(numbers)
    assert found is not None and sum(count for *_, count in found.bars) == 1000 and len(found.bars) <= 60
    for first, last, count in found.bars:
        assert count == ((numbers >= first) & (numbers <= last)).sum()
    assert dict(found.quantiles)[0.5] == np.quantile(numbers, 0.5, method="higher")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last part is missing, with errors, evil texts, gold, and two workers, one of which was killed."""
    answers = [None if idx % 10 == 7 else ["yes", "no"][idx % 3 == 0] for idx in range(NUM_ROWS)]
    values = probs_of(answers, [0.5 + idx % 50 / 100 for idx in range(NUM_ROWS)])
    values["prompt"] = [f"question {idx}: {'apple' if idx % 4 == 0 else 'pear'}" for idx in range(NUM_ROWS)]
    values["num_prompt_tokens"] = [0 if answer is None else 5 + idx for idx, answer in enumerate(answers)]
    values["num_completion_tokens"] = [0 if answer is None else 1 + idx % 3 for idx, answer in enumerate(answers)]
    values["prompt"][2], values["finish_reason"] = EVIL, ["length" if idx == 3 else "stop" for idx in range(NUM_ROWS)]
    kept = {"gold": ["yes" if idx % 2 else "no" for idx in range(NUM_ROWS)], "note": [EVIL] * NUM_ROWS}
    output = tmp_path_factory.mktemp("page") / "run"
    write_run(output, answers, kept=kept, values=values, rows_per_shard=20, num_parts=2)
    (output / "metrics").mkdir()
    for worker in (history("n-1-a", 0, [0, 300, 500]), history("n-2-b", 60, [0, 200, 600], left="done")):
        lines = "".join(stats.to_json() for stats in worker)
        (output / "metrics" / f"{worker[0].worker_id}.jsonl").write_text(lines)
    return output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


def test_rows_of_a_sample(run: Path, tmp_path: Path) -> None:
    """Errors and cut rows are there however few are taken at random, and no sample is larger than asked."""
    sample = sample_rows(find_run(run), max_random=5)
    assert sample.num_rows == 40 and len(sample.completion_tokens) == 36
    why = [row["why"] for row in sample.rows]
    assert why.count("engine_error") == 4 and why.count("cut") == 1 and why.count("random") == sample.num_random >= 3
    assert [row["row_idx"] for row in sample.rows] == sorted(row["row_idx"] for row in sample.rows)
    few = sample_rows(find_run(run), max_bytes=2500)
    assert 1500 < len(to_json(few.rows).encode()) < 2600 and {"random", "engine_error"} <= {
        row["why"] for row in few.rows
    }
    long = write_run(tmp_path / "long", ["yes " * 50_000])
    [row] = sample_rows(find_run(long)).rows
    assert len(row["completion"]) < 4100 and "196,000 characters are not shown here" in row["completion"]


def test_a_page_that_cannot_be_written_in_full_leaves_the_one_of_before(
    run_job: RunJob, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, half a page had taken its place."""

    def full(file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.html").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    result = run_job("report", run, "--page", tmp_path / "a.html")
    assert result.exit_code == 1 and "a.html cannot be written: No space left on device." in result.stderr
    assert (tmp_path / "a.html").read_text() == "before" and len(list(tmp_path.glob("*a.html*"))) == 1
    assert "rows      60 = 36 done" in result.stdout, "the numbers are there even if the page is not"


def test_what_the_command_writes_and_prints(run_job: RunJob, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    result = run_job("report", run, "--page", file, "--price-per-gpu-hour", 2)
    assert result.exit_code == 0, result.stderr
    assert "rows      60 = 36 done + 4 errors + 20 pending" in result.stdout
    assert "1 restart, 1 stop, 0 stalls" in result.stdout and f"page: {file} (" in result.stdout
    assert "engine_error 4" in result.stdout and "price 0.0444" in result.stdout
    text = file.read_text(encoding="utf-8")
    assert "window.hacked" in text and EVIL not in text and "<img" not in text
    assert not (run / "report.html").exists()
    assert run_job("report", run, "--no-page").exit_code == 0 and not (run / "report.html").exists()
    printed = json.loads(run_job("report", run, "--json", "--price-per-gpu-hour", 2).stdout)
    assert printed["rows"] == {"total": 60, "done": 36, "errors": 4, "pending": 20}
    assert printed["errors"] == {"engine_error": 4} and round(printed["cost"]["price"], 4) == 0.0444
    assert printed["tokens"].keys() == {"prompt", "completion"} and printed["labels"]
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--page", "README.md"], "it must end in .html"),
        (["--page", "missing/a.html"], "the directory missing does not exist"),
        (["--page", "a.html", "--no-page"], "Give one of them"),
        (["--port", 80], "without --watch"),
        (["--watch", "--json"], "goes with neither"),
        (["--price-per-gpu-hour", "nan"], "is nan; it must be a number"),
        (["--price-per-gpu-hour", "1e999"], "is inf; it must be a number"),
        (["--price-per-gpu-hour", -1], "-1"),
        (["--price-per-gpu-hour", "2.5$"], "is not a valid float"),
    ],
)
def test_what_cannot_be_is_refused(run_job: RunJob, run: Path, args: list[Any], message: str) -> None:
    result = run_job("report", run, *args)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_what_is_no_run_is_refused(run_job: RunJob, tmp_path: Path) -> None:
    """One line, whatever is there."""
    (tmp_path / "empty").mkdir()
    torn, lost = write_run(tmp_path / "torn", ["yes"]), write_run(tmp_path / "lost", ["yes"])
    (torn / "manifest.json").write_bytes((torn / "manifest.json").read_bytes()[:-50])
    (lost / "manifest.json").unlink()
    write_run(tmp_path / "chain" / "judge", ["yes"])
    said = {
        "chain": "It contains runs: name one of judge.",
        "empty": "has no manifest",
        "none": "does not exist",
        "torn": "manifest.json is damaged",
        "lost": "manifest.json is missing",
    }
    for name, message in said.items():
        result = run_job("report", tmp_path / name)
        assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("completions", "equation"), [([], "0 = 0 done"), ([None] * 3, "3 = 0 done + 3 errors")])
def test_runs_without_a_completion(
    run_job: RunJob, tmp_path: Path, browser: Any, completions: list[None], equation: str
) -> None:
    """A dataset without a row, and one of errors alone, have a page that shows no empty section."""
    result = run_job("report", write_run(tmp_path / "run", completions))
    assert result.exit_code == 0 and equation in result.stdout and result.stderr == ""
    tab = Tab(browser, (tmp_path / "run" / "report.html").as_uri())
    assert tab.text("#equation").replace(" rows", "").startswith(equation) and tab.text("#state") == "Done"
    assert tab.text("#rows-note") == ("All 3 finished rows." if completions else "No row is finished yet.")
    links = [link.inner_text() for link in tab.page.locator("nav a").all() if link.is_visible()]
    assert links == ["Rows in and out", "Time", "Errors", "Labels", "Rows", "Settings"] and tab.troubles == []
    tab.close()


def damage_pages(part: Path) -> None:
    """Change every byte between the first and the footer: the numbers there can still be read."""
    data = bytearray(part.read_bytes())
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:at] = bytes(byte ^ 0x5A for byte in data[4:at])
    part.write_bytes(data)


def drop_column(part: Path) -> None:
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["finish_reason"]), part)


def lose_rows(part: Path) -> None:
    table = pq.read_table(part)
    pq.write_table(table.slice(0, 1), part)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_pages, "cannot be read"),
        (drop_column, "does not have the columns of this run"),
        (lose_rows, "The parts hold 3 rows, where there should be 4"),
    ],
)
def test_damage_that_footers_do_not_show(
    run_job: RunJob, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    run = write_run(tmp_path / "run", ["yes", "no"] * 2, rows_per_shard=2)
    damage(run / "data" / "part-00001.parquet")
    result = run_job("report", run)
    assert result.exit_code == 1 and "  damaged   " in result.stdout and message in result.stdout
    assert len(result.stderr.splitlines()) == 1 and "job verify" in result.stderr
    assert any(message in note for note in data_of(run / "report.html")["notes"])


@pytest.mark.parametrize("name", [path.name for path in sorted(RUNS.glob("*finished*"))])
def test_runs_of_older_versions_have_a_page(run_job: RunJob, tmp_path: Path, name: str) -> None:
    result = run_job("report", RUNS / name, "--page", tmp_path / "a.html")
    assert result.exit_code == 0 and result.stderr == ""
    data = data_of(tmp_path / "a.html")
    assert len(data["rows"]) == data["status"]["rows"]["done"] > 0 and data["notes"] == []


def test_runs_that_are_begun_or_damaged(run_job: RunJob, tmp_path: Path) -> None:
    """A page is made of what can be read; what cannot is named on it, and the exit code says so."""
    begun = write_run(tmp_path / "begun", ["yes", "no"], num_parts=0)
    result = run_job("report", begun)
    assert result.exit_code == 0 and "2 = 0 done + 0 errors + 2 pending" in result.stdout, result.stderr
    assert b"are not in a part yet" in (begun / "report.html").read_bytes()
    broken = write_run(tmp_path / "broken", ["yes", "no"], rows_per_shard=1)
    part = broken / "data" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    (broken / "metrics").mkdir()
    (broken / "metrics" / "w.jsonl").write_bytes(b'{"worker_id": "w", "time"\n\xff\xfe\n[]\n')
    result = run_job("report", broken)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "job verify" in result.stderr
    data = data_of(broken / "report.html")
    assert data["status"]["parts"]["unreadable"] == 1 and "part-00001" in data["notes"][0] and len(data["rows"]) == 1


def data_of(page: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_in_a_browser(run_job: RunJob, run: Path, tmp_path: Path, browser: Any) -> None:
    """No error, no request, the numbers of ``job status --json``, and texts of rows are shown, never run."""
    file = tmp_path / "a.html"
    assert run_job("report", run, "--page", file, "--gold", "gold").exit_code == 0
    tab = Tab(browser, file.as_uri())
    status = json.loads(run_job("status", run, "--json").stdout)
    shown = {key: tab.text(f"#tiles [data-key={key}] dd").split("\n")[0] for key in ("total", "done", "errors")}
    done = status["rows"]["done"] - status["errors"]["total"]
    assert shown == {"total": "60", "done": str(done), "errors": str(status["errors"]["total"])}
    assert tab.text("#equation") == "60 rows = 36 done + 4 errors + 20 pending"
    assert tab.text("#coverage").startswith("The 40 finished rows of 60 are the first ones of the dataset")
    assert "20" in tab.text("#equation") and tab.text("#state") == "Not finished"
    assert "engine_error" in tab.text("#kinds") and "ended without saying why" in tab.text("#events")
    assert (
        tab.text("#scores [data-key=gold_rows] dd").startswith("36") and tab.page.locator("#confusion td").count() == 4
    )
    tab.page.locator("#search").fill("window.hacked")
    tab.page.locator("#filter").select_option("finish:length")
    tab.wait_for("#found", "1 row found")
    tab.page.locator("#search").fill("question 4:")
    tab.wait_for("#found", "0 rows found")
    tab.page.locator("#filter").select_option("all")
    tab.page.locator("#search").fill("question 2")  # its own text is the evil one
    tab.wait_for("#found", "10 rows found")
    tab.page.locator("#search").fill("")
    tab.wait_for("#found", "40 rows found")
    tab.page.locator("[data-row='2.0'] summary").click()
    assert tab.text("[data-row='2.0'] pre.prompt") == EVIL
    tab.page.locator("#kinds button").click()
    assert tab.text("#found") == "4 rows found" and tab.page.locator("#list .bad").count() == 4
    assert tab.page.evaluate("typeof window.hacked") == "undefined" and tab.page.locator("img").count() == 0
    assert tab.troubles == [] and tab.requests == [file.as_uri()]
    tab.close()


def shown_table(tab: Tab, selector: str) -> list[list[str]]:
    """Return the cells of a table's rows."""
    rows = tab.page.locator(f"{selector} tbody tr").all()
    return [[text.strip() for text in row.locator("td").all_inner_texts()] for row in rows]


def test_every_number_is_that_of_status(run_job: RunJob, run: Path, tmp_path: Path, browser: Any) -> None:
    """What the page holds is what ``job status --json`` prints, and it shows the same: counts, tokens, kinds, rates."""
    file = tmp_path / "a.html"
    assert run_job("report", run, "--page", file).exit_code == 0
    data, status = data_of(file), json.loads(run_job("status", run, "--json").stdout)
    timeless = [
        {name: value for name, value in each.items() if name != "elapsed_secs"} for each in (data["status"], status)
    ]
    assert timeless[0] == timeless[1]
    rows, tokens = data["reconciliation"], status["tokens"]
    assert rows["done"] + rows["errors"] == status["rows"]["done"] and rows["total"] == status["rows"]["total"]
    assert sum(rows.values()) == 2 * rows["total"]
    lengths = data["lengths"]  # rows with an error have no tokens here
    assert {name: each["total"] for name, each in lengths.items()} == tokens
    assert all(each["count"] == rows["done"] for each in lengths.values())
    assert data["labels"]["labels"] == status["tallies"]["labels"] if "labels" in status["tallies"] else True
    data["status"] |= {"tokens_per_sec": 1234.0, "eta_secs": 75.0, "workers": [{"worker_id": "n-1-a"}]}
    file.write_bytes(to_html(data, "a"))
    tab = Tab(browser, file.as_uri())
    tile = {key: tab.text(f"#tiles [data-key={key}] dd").split("\n") for key in ("tokens", "speed", "errors")}
    assert tile["tokens"] == [f"{tokens['completion']}", f"and {tokens['prompt']:,} of prompts"]
    assert tile["speed"] == ["1,234", "in the last minute; about 1 min 15 s left"]
    assert tile["errors"][0] == f"{status['errors']['total']}" and tab.text("#state") == "Was running"
    finish = {cells[0].split("\n")[0]: int(cells[1]) for cells in shown_table(tab, "#finish")}
    assert finish == status["finish_reasons"]
    first = status["errors"]["first"]["engine_error"]
    assert shown_table(tab, "#kinds table") == [
        ["engine_error", "4", f"row {first['row_idx']}: {first['detail']}", "show rows"]
    ]
    assert {name: int(count) for name, count, *_ in shown_table(tab, "#labels-table")} == data["labels"]["labels"]
    tab.page.locator("#workers-summary").click()
    of_workers = [cells[:5] for cells in shown_table(tab, "#workers")]
    assert of_workers == [["n-1-a", "2", "20 s", "50", "0"], ["n-2-b", "2", "20 s", "60", "0"]]
    tab.close()


DRAWN = """() => [...document.querySelectorAll("canvas")].filter((canvas) => canvas.offsetParent).map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
})"""


def test_both_colour_schemes_and_a_phone(run_job: RunJob, run: Path, tmp_path: Path, browser: Any) -> None:
    """The page is light or dark as the system is, every chart is drawn, and nothing is wider than a phone."""
    file = tmp_path / "a.html"
    assert run_job("report", run, "--page", file, "--gold", "gold").exit_code == 0
    lightness = {}
    for scheme, width in (("light", 1200), ("dark", 390)):
        tab = Tab(browser, file.as_uri(), scheme=scheme, width=width)
        drawn = tab.page.evaluate(DRAWN)
        assert len(drawn) == 7 and min(drawn) > 3, drawn
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        tab.page.locator("#list details summary").first.click()
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        color = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness[scheme] = sum(map(int, re.findall(r"\d+", color)[:3])) / 3
        assert tab.troubles == []
        tab.close()
    assert lightness["light"] > 200 and lightness["dark"] < 60


def test_labels_that_need_more_gold(run_job: RunJob, tmp_path: Path, browser: Any) -> None:
    """Rows to label next are shown as texts, and why the interval of a share should not be trusted."""
    answers = ["yes", "no"] * 20
    kept = {"id": [f"r{n}" for n in range(40)], "gold": [*answers[:20], *[None] * 20], "text": [EVIL] * 40}
    values = probs_of(answers, [0.9 - n / 100 for n in range(40)])
    values["prompt"] = [None] * 40
    run = write_run(tmp_path / "run", answers, kept=kept, values=values, id_column="id")
    result = run_job("report", run, "--gold", "gold", "--label-next", 4)
    assert result.exit_code == 0, result.stderr
    tab = Tab(browser, (run / "report.html").as_uri())
    assert "Fewer than 3 rows with gold have a label that is wrong about yes, no:" in tab.text("#shares-note")
    assert tab.text("#label-next-note") == (
        "4 rows for a person to label: 2 at random, 2 of which the model is least certain."
    )
    rows = shown_table(tab, "#label-next")
    assert len(rows) == 4 and sorted(row[1] for row in rows) == ["random", "random", "uncertain", "uncertain"]
    assert {row[4].strip() for row in rows} == {EVIL[:300].strip()} and all(int(row[0][1:]) >= 20 for row in rows)
    assert tab.page.evaluate("typeof window.hacked") == "undefined" and tab.troubles == []
    tab.close()


def test_a_script_that_is_not_ours_does_not_run(tmp_path: Path, browser: Any) -> None:
    """Even if markup got into a page, the policy would keep it from running."""
    data = {"live_secs": None}
    page = to_html(data, "a").replace(
        b"<main>", b"<main><img src=x onerror='window.hacked=1'><script>window.hacked=2</script>"
    )
    (tmp_path / "a.html").write_bytes(page)
    tab = browser.new_page()
    tab.goto((tmp_path / "a.html").as_uri())
    assert tab.evaluate("typeof window.hacked") == "undefined" and tab.evaluate("typeof Chart") == "function"
    tab.close()


def test_a_served_page_follows_the_run(run: Path, browser: Any) -> None:
    """On loopback, behind a token; new numbers come without a click, and what is typed stays."""
    from job.cli.page import Asked, Pages

    asked = Asked.of(None, False, None, True, None, False)
    pages = Pages(str(run), lambda: (None, None), asked)
    num_made = 0

    def numbers() -> dict[str, Any]:
        nonlocal num_made
        num_made += 1
        values = pages.make(live_secs=0.1).to_dict()
        values["reconciliation"]["done"] = 100 if num_made == 1 else 200
        return values

    server = PageServer(Latest(numbers, 0.0), "title")
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        assert server.url.startswith(f"http://{HOST}:{server.port}/") and HOST == "127.0.0.1"
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://{HOST}:{server.port}/")
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{server.url}other")
        tab = Tab(browser, server.url)
        tab.page.locator("#search").fill("pear")
        tab.wait_for("#tiles [data-key=done] dd", "200")
        tab.wait_for("#found", "29 rows found")
        assert tab.page.locator("#search").input_value() == "pear"
        assert tab.troubles == []
        tab.close()
        with pytest.raises(UsageError, match="cannot be opened"):
            PageServer(Latest(numbers, 0.0), "title", server.port)
    finally:
        server.close()
        thread.join()


def test_a_served_run_that_cannot_be_read_is_said() -> None:
    def numbers() -> dict[str, Any]:
        raise JobError("runs/a cannot be read: Stale file handle.")

    server = PageServer(Latest(numbers, 0.0), "title")
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with pytest.raises(HTTPError, match="503") as found:
            urlopen(server.url)
        assert b"Stale file handle" in found.value.read()
    finally:
        server.close()
        thread.join()

"""Figures for Prometheus: what is served, when, and that the dashboard asks for what there is."""

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from job.cli import main
from job.cli.chain_file import OF_LAUNCH
from job.config import LaunchConfig
from job.config.launch import PORT_NEED
from job.engine.fake import FakeEngine
from job.engine.protocol import Load
from job.errors import UsageError
from job.report.live.exposition import COMMON, FAMILIES, HISTOGRAM, INFO, NAMES, STATE
from job.report.live.figures import Figures, Seen, Tally
from job.report.live.server import FiguresServer
from job.run.live import Live
from tests.conftest import Result
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]
ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "scripts/grafana/dashboard.json").read_text("utf-8"))


def distribution(*values: float) -> Any:
    tally = Tally((1.0, 10.0))
    for value in values:
        tally.add(value)
    return tally.seen


def figures(**changed: Any) -> Figures:
    values = {
        "run": "runs/a",
        "worker": "n1-7",
        "about": {"version": "1", "model": 'a"b\\c\nd'},
        "start_time": 1.0,
        "time": 2.0,
        "finish_reasons": {"stop": 3, "length": 1},
        "errors": {"null_prompt": 2},
        "joules": None,
        "num_prompt_tokens": 40,
        "num_completion_tokens": 50,
        "num_computed_tokens": 90,
        "num_running": 4,
        "num_waiting": 5,
        "num_cache_tokens": 100,
        "num_used_cache_tokens": 25,
        "num_preemptions": 6,
        "num_open_shards": 1,
        "num_devices": 2,
        "secs": {"load": 1.5, "waiting for rows": 2.5},
        "num_run_rows": 10,
        "num_run_rows_pending": 4,
        "step_secs": distribution(0.5, 2, 20, 30),
        "prompt_tokens": distribution(),
        "completion_tokens": distribution(5),
    }
    return Figures(**{**values, **changed})


def scraped(url: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return what a server shows: sample name to labels to value, without the common labels."""
    with urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parse(text):
        for sample in family.samples:
            labels = tuple(item for item in sorted(sample.labels.items()) if item[0] not in COMMON)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.fixture
def server() -> Any:
    """Return a function that opens a server on any port; all are closed."""
    opened = []

    def make(see: Any = lambda: Seen(), port: int = 0) -> FiguresServer:
        opened.append(FiguresServer("127.0.0.1", port, see))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_figures_are_read_by_prometheus_own_parser(server: Any) -> None:
    seen = Seen(state="computing", figures=figures(), labels={"run": "runs/a", "worker": "n1-7"})
    found = scraped(server(lambda: seen).url)
    assert found["job_rows_completed_total"] == {(("finish_reason", "stop"),): 3, (("finish_reason", "length"),): 1}
    assert found["job_rows_failed_total"] == {(("kind", "null_prompt"),): 2}
    assert found["job_stage_seconds_total"][(("stage", "waiting_for_rows"),)] == 2.5
    assert found["job_kv_cache_usage_ratio"] == {(): 0.25} and found["job_computed_tokens_total"] == {(): 90}
    assert found[INFO] == {(("model", 'a"b\\c\nd'), ("version", "1")): 1}
    assert found[STATE][(("state", "computing"),)] == 1 and sum(found[STATE].values()) == 1
    steps = {dict(labels)["le"]: value for labels, value in found["job_step_seconds_bucket"].items()}
    assert steps == {"1.0": 1, "10.0": 2, "+Inf": 4} and found["job_step_seconds_sum"] == {(): 52.5}
    assert found["job_row_prompt_tokens_count"] == {(): 0}
    assert "job_energy_joules_total" not in found, "it is not measured, which is not 0"
    assert "process_resident_memory_bytes" in found


def test_all_metrics_are_shown_and_documented(server: Any) -> None:
    seen = Seen(state="computing", figures=figures(joules=5.0))
    found = scraped(server(lambda: seen).url)
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in found if not name.startswith("process_")}
    assert shown - {f"{name}_created" for name in NAMES} == set(NAMES)
    table = (ROOT / "README.md").read_text("utf-8").partition("| metric |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(job_\w+)`", table)) == set(NAMES)


def test_before_the_first_row_only_the_state_is_known(server: Any) -> None:
    found = scraped(server(lambda: Seen(state="loading", labels={"run": "runs/a"})).url)
    assert {name for name in found if name.startswith("job_")} == {STATE}


def test_the_next_free_port_is_taken(server: Any) -> None:
    first = server()
    second = server(port=first.port)
    assert first.port < second.port < first.port + 64


def live(config: LaunchConfig, place: int = 0) -> tuple[Live, list[str]]:
    notes: list[str] = []
    found = Live()
    found.open(config, place, notes.append)
    return found, notes


def test_a_port_that_is_taken_is_told_and_the_run_goes_on(server: Any) -> None:
    port = server().port
    found, [note] = live(LaunchConfig(metrics_port=str(port)))
    assert re.fullmatch(rf"port {port} is taken: figures for Prometheus: http://127.0.0.1:\d+/metrics", note)
    found.close()


@pytest.mark.parametrize("address", ["no-such-host.invalid:9400", "192.0.2.1:9400", f"{'a' * 70}:9400"])
def test_an_address_that_is_not_ours_is_told_and_the_run_goes_on(address: str) -> None:
    found, [note] = live(LaunchConfig(metrics_port=address))
    assert note.startswith(f"--metrics-port {address}: ") and note.endswith("goes on without figures for Prometheus")
    found.show(lambda: pytest.fail("nobody can ask"))
    found.close()


@pytest.mark.parametrize(
    "value", ["", "x", "-1", "65536", ":9400", "::1:9400", "http://h:1", "h:", "h:9400/metrics", "9 "]
)
def test_what_is_not_a_port_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--metrics-port is {value!r}; it must be {PORT_NEED}")):
        LaunchConfig(metrics_port=value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.config.launch.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dataset-inference-job\[metrics\]'"):
        LaunchConfig(metrics_port="9400")


def test_a_run_is_scraped_while_a_step_goes_on(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two steps waits until the scrape was answered."""
    seen: list[dict[str, Any]] = []
    urls: list[str] = []
    monkeypatch.setattr("job.run.live.SNAPSHOT_SECS", 0.0)
    opening, step = FiguresServer.__init__, FakeEngine.step

    def open_and_tell(self: FiguresServer, *args: Any) -> None:
        opening(self, *args)
        urls.append(self.url)

    def step_slowly(self: FakeEngine) -> Any:
        scraping = threading.Thread(target=lambda: seen.append(scraped(urls[0])))
        scraping.start()
        scraping.join()
        return step(self)

    monkeypatch.setattr(FiguresServer, "__init__", open_and_tell)
    monkeypatch.setattr(FakeEngine, "step", step_slowly)
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"question {i}" if i else None} for i in range(100)])
    config = tmp_path / "run.toml"
    config.write_text("metrics-port = 0\n[data]\nlimit = 100\n")
    result = run_job(
        *("run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "SECRET"),
        *("--config", config),
    )
    assert result.exit_code == 0, result.stderr
    first, second, *_ = seen
    assert first[STATE][(("state", "computing"),)] == 1
    assert second["job_rows_completed_total"] == {(("finish_reason", "stop"),): 64}
    assert second["job_rows_failed_total"] == {(("kind", "null_prompt"),): 1}
    assert second["job_run_rows"] == {(): 100} and second["job_run_rows_pending"] == {(): 35}
    assert second["job_rows_running"] == {(): 35} and second["job_row_completion_tokens_count"] == {(): 64}
    assert second["job_step_seconds_count"] == {(): 1}
    with pytest.raises(OSError):
        urlopen(urls[0], timeout=5)


def test_the_engine_s_load_is_shown(tiny_model: Any) -> None:
    assert FakeEngine().load == Load(num_running=0)


def test_a_chain_has_one_server() -> None:
    assert {"metrics_port", "on_end"} <= OF_LAUNCH.keys()
    options = {name for param in main.commands["run"].params for name in param.opts}
    assert {"--metrics-port", "--on-end"} <= options


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    samples = {name for name in NAMES if name not in {f.full_name for f in FAMILIES if f.kind is HISTOGRAM}}
    samples |= {f"{f.full_name}_{part}" for f in FAMILIES if f.kind is HISTOGRAM for part in ("bucket", "sum", "count")}
    labels = {*COMMON, "le", "state", "version", "model", "engine", "device", "launch", "instance"}
    labels |= {f.label for f in FAMILIES if f.label}
    exprs = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    exprs += [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert len(exprs) > 10
    for expr in exprs:
        names = set(re.findall(r"\b(?:job|process)_\w+", expr))
        assert names and {name for name in names if name.startswith("job_")} <= samples, expr
        used = set(re.findall(r"(\w+)=~?\"", expr)) | {
            name.strip()
            for group in re.findall(r"(?:by|on|group_left) *\(([^)]*)\)", expr)
            for name in group.split(",")
        }
        assert used - {""} <= labels, expr


def test_the_server_listens_only_where_it_was_told(server: Any) -> None:
    opened = server()
    assert opened.url == f"http://127.0.0.1:{opened.port}/metrics"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", opened.port), timeout=5):
        pass

"""``--on-end``: word of the end of a launch, to a command or a webhook, which can neither fail it nor hold it up."""

import contextlib
import json
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from job import run as run_from_python
from job.engine.fake import FakeEngine
from job.errors import EXIT_STOPPED, PeerFailed, Unavailable
from job.launch import notice
from job.launch.notice import post, run_command
from job.launch.stop import StopFlag
from job.output.looking.totals import completed_by
from job.output.sharing.metrics import WorkerStats
from job.run import ending
from job.run.ending import Ending
from job.run.options import values_of
from job.run.parsing import to_config
from tests.conftest import Result
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]

SECRET = "T0/B0/s3cret"

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only briefly between SIGTERM and SIGKILL."""
    monkeypatch.setattr(notice, "KILL_SECS", 0.2)


@pytest.fixture
def job(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Any:
    """Return a function that runs a job of ten rows, two of which are null, with ``--on-end``; and what that got."""
    rows = [{"prompt": f"question {i}" if i > 1 else None} for i in range(10)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)

    def call(*args: Any, on_end: str | None = None, output: str = "out") -> tuple[Result, dict[str, Any] | None]:
        told = tmp_path / "told.json"
        told.unlink(missing_ok=True)
        result = run_job(
            *("run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / output),
            *("--max-error-rate", 1, "--on-end", on_end or f"cat > {told}", *args),
        )
        return result, json.loads(told.read_text()) if told.exists() else None

    return call


class Hook:
    """A webhook."""

    def __init__(self, answers: list[int], *, hangs: bool = False) -> None:
        """Answer with these codes, one after the other; the last one again and again."""
        self.received: list[dict[str, Any]] = []
        self.auth: list[str | None] = []
        self.over = threading.Event()
        hook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.received.append(json.loads(body))
                hook.auth.append(self.headers["Authorization"])
                if hangs:
                    hook.over.wait(60)
                code = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(code)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.host}/services/{SECRET}?token=s3cret"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hook]]:
    """Return a function that opens a webhook."""
    monkeypatch.setattr(notice, "PAUSE_SECS", 0.01)
    opened: list[Hook] = []

    def make(*answers: int, **options: Any) -> Hook:
        opened.append(Hook(list(answers or (200,)), **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_the_end_of_a_run_is_told_with_all_documented_fields(job: Any, tmp_path: Path) -> None:
    result, told = job()
    assert result.exit_code == 0 and "--on-end" not in result.stderr, result.stderr
    assert told is not None
    (tmp_path / "out/report.html").write_text("")
    assert told["rows"] == {"total": 10, "done": 8, "errors": 2, "pending": 0, "is_partial": False}
    assert (told["state"], told["exit_code"], told["run_done"], told["completed_run"]) == ("done", 0, True, True)
    assert told["errors"] == {"null_prompt": 2} and told["tokens"]["prompt"] > 8
    assert told["launch"]["rows"] == 10 and told["launch"]["workers"] == 1 and told["launch"]["seconds"] > 0
    assert told["text"].startswith(f"{tmp_path / 'out'}: done; 10 of 10 rows, 2 with an error; this launch: 10 rows in")
    assert told["report"] is None
    keys = {*told, *(f"{name}.{key}" for name in ("rows", "tokens", "launch") for key in told[name])}
    table = (ROOT / "README.md").read_text("utf-8").partition("| key of the JSON |")[2].partition("\n\n")[0]
    names = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`([a-z_.]+)`", " ".join(names))) == keys - {"rows", "tokens", "launch"}
    again = job()[1]
    assert (again["run_done"], again["completed_run"], again["launch"]["rows"]) == (True, False, 0)
    assert again["report"] == f"{tmp_path / 'out'}/report.html"


def test_a_command_gets_variables_and_none_of_a_launch(job: Any, tmp_path: Path, capfd: Any) -> None:
    result, _ = job(on_end='echo "$JOB_STATE/$JOB_EXIT_CODE/$JOB_RUN/$JOB_TEXT/$RANK$WORLD_SIZE/"')
    assert result.exit_code == 0
    output, errors = capfd.readouterr()
    assert f"done/0/{tmp_path / 'out'}/{tmp_path / 'out'}: done; 10 of 10" in errors and "//" not in output
    assert errors.rstrip().endswith("//"), "a job that the command starts is no process of this launch"


def test_a_process_with_many_open_files_runs_its_command(job: Any, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with contextlib.ExitStack() as files:
            while files.enter_context(Path(os.devnull).open("rb")).fileno() < 1100:
                pass
            result, _ = job(on_end=f"cat > {tmp_path}/summary.json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result.exit_code == 0 and "--on-end: " not in result.stderr
    assert json.loads((tmp_path / "summary.json").read_bytes())["state"] == "done"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("exit 3", "the command failed with exit code 3"),
        ("no-such-program", "the command was not found (exit code 127)"),
        ("kill -9 $$", "the command died of SIGKILL"),
        ("sleep 60 & sleep 60", "the command took too long and was ended"),
    ],
)
def test_a_command_that_fails_changes_nothing(
    job: Any, monkeypatch: pytest.MonkeyPatch, command: str, line: str
) -> None:
    monkeypatch.setattr(ending, "SECS", 0.5)
    start = time.monotonic()
    result, _ = job(on_end=command)
    assert result.exit_code == 0 and "10 rows in 1 part" in result.stdout
    assert [text for text in result.stderr.splitlines() if f"--on-end: {line}" in text], result.stderr
    assert ("there is no program 'no-such-program' here" in result.stderr) == (command == "no-such-program")
    assert time.monotonic() - start < 20


def test_a_second_ctrl_c_ends_the_command_and_not_what_the_run_has_done(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "Aborted!" with exit code 1, though every row was in a part."""

    def interrupted(*args: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("job.run.ending.run_command", interrupted)
    result, _ = job()
    assert result.exit_code == 0 and "--on-end: ended by Ctrl-C" in result.stderr


def test_all_that_a_command_has_started_ends_with_it(tmp_path: Path) -> None:
    end = time.monotonic() + 0.3
    mark = tmp_path / "mark"
    problem = run_command(f"(sleep 1; touch {mark}) & sleep 60", "", {}, lambda: end - time.monotonic())
    assert problem == "took too long and was ended"
    time.sleep(1.2)
    assert not mark.exists()


def test_a_launcher_that_stops_all_below_a_process_does_not_stop_the_command(tmp_path: Path) -> None:
    """A regression: DeepSpeed's launcher does so when one process of a launch has failed, and no word came of that."""
    own = psutil.Process()
    before, end = set(own.children(recursive=True)), time.monotonic() + 20

    def stop_all() -> float:
        if (tmp_path / "begun").exists():
            for child in set(own.children(recursive=True)) - before:
                child.terminate()
            (tmp_path / "stopped").touch()
        return end - time.monotonic()

    command = f"touch {tmp_path}/begun; until [ -e {tmp_path}/stopped ]; do sleep 0.05; done; cat > {tmp_path}/told"
    assert run_command(command, "grüße", {}, stop_all) is None
    assert (tmp_path / "told").read_text() == "grüße"


def test_a_command_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    end = time.monotonic() + 0.3
    command = f"trap '' TERM; touch {tmp_path}/begun; sleep 1; touch {tmp_path}/mark"
    assert run_command(command, "", {}, lambda: end - time.monotonic()) == "took too long and was ended"
    assert (tmp_path / "begun").exists()
    time.sleep(0.8)
    assert not (tmp_path / "mark").exists()


def test_a_command_that_leaves_something_running_is_not_waited_for(tmp_path: Path) -> None:
    start = time.monotonic()
    assert run_command("sleep 20 &", "x" * 1_000_000, {}, lambda: 15) is None
    assert time.monotonic() - start < 10


def test_a_webhook_gets_the_same_json_and_nobody_sees_its_address(job: Any, hook: Any) -> None:
    hooked = hook(503, 500, 200)
    result, _ = job(on_end=hooked.url.replace("//", "//me:pw@"))
    assert result.exit_code == 0 and "--on-end" not in result.stderr
    assert len(hooked.received) == 3 and hooked.received[-1]["state"] == "done"
    assert hooked.auth[0] == "Basic bWU6cHc="
    hooked = hook(500)
    result, _ = job("--on-end", hooked.url, on_end="true")
    assert f"--on-end: {hooked.host} answered 500 (3 attempts)" in result.stderr and len(hooked.received) == 3
    assert "--on-end was given 2 times; the last one counts" in result.stderr
    assert SECRET not in result.stderr + result.stdout and "s3cret" not in result.stderr + result.stdout


@pytest.mark.parametrize(("code", "num_sent"), [(404, 1), (302, 1), (429, 3), (204, 1)])
def test_a_webhook_is_asked_again_only_if_that_can_help(hook: Any, code: int, num_sent: int) -> None:
    hooked = hook(code)
    problem = post(hooked.url, "{}", lambda: 30, "0")
    attempts = "3 attempts" if num_sent == 3 else "1 attempt"
    assert problem == (None if code == 204 else f"answered {code} ({attempts})")
    assert len(hooked.received) == num_sent


def test_a_webhook_that_hangs_or_is_not_there_is_given_up(hook: Any) -> None:
    end = time.monotonic() + 0.3
    hooked = hook(200, hangs=True)
    assert post(hooked.url, "{}", lambda: end - time.monotonic(), "0") in (
        "did not answer in time",
        "cannot be reached: no answer in time (1 attempt)",
    )
    assert post("http://127.0.0.1:9/s3cret", "{}", lambda: 30, "0") == (
        "cannot be reached: Connection refused (3 attempts)"
    )


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("", "--on-end is empty"),
        ("echo 'x", "--on-end is not a command that a shell understands"),
        ("ftp://host/s3cret", "--on-end is an address that nothing can be sent to. It must be http://HOST or https://"),
        ("https:///s3cret", "--on-end is an address that nothing can be sent to"),
        ("https://host:99999/s3cret", "--on-end is an address that nothing can be sent to"),
    ],
)
def test_what_cannot_be_sent_to_is_refused_before_anything_is_started(run_job: RunJob, value: str, line: str) -> None:
    result = run_job("run", "--model", "m", "--dataset", "d.jsonl", "--output", "o", "--on-end", value)
    assert result.exit_code == 2 and f"job: {line}" in result.stderr and "s3cret" not in result.stderr


def test_a_stop_is_told_and_leaves_less_time(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[StopFlag] = []
    step = FakeEngine.step

    def stop_after(self: FakeEngine) -> Any:
        found = step(self)
        flags[0].request("SIGTERM")
        return found

    original = StopFlag.__init__
    monkeypatch.setattr(StopFlag, "__init__", lambda self, *a, **k: (original(self, *a, **k), flags.append(self))[0])
    monkeypatch.setattr(FakeEngine, "step", stop_after)
    result, told = job("--num-samples", 20, "--temperature", 1)
    assert result.exit_code == 75 and told is not None
    assert (told["state"], told["reason"], told["run_done"]) == ("stopped", "SIGTERM", False)
    rows = told["rows"]
    assert rows["total"] == 200 == rows["done"] + rows["errors"] + rows["pending"] and rows["done"] >= 64
    assert told["text"].endswith(". SIGTERM")
    monkeypatch.setattr(ending, "STOPPED_SECS", 0.5)
    flags.clear()
    result, _ = job("--num-samples", 20, "--temperature", 1, on_end="sleep 60", output="b")
    assert result.exit_code == 75 and "took too long" in result.stderr


def test_a_failure_is_told_once_and_what_was_not_started_is_not(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job("--prompt-column", "nowhere")[1] is None
    result, told = job("--max-error-rate", 0)
    assert result.exit_code == 3 and told["state"] == "done" and told["exit_code"] == 3

    def fail(self: FakeEngine) -> Any:
        raise OSError(28, "No space left on device", "x.arrows")

    monkeypatch.setattr(FakeEngine, "step", fail)
    result, told = job(output="b")
    assert result.exit_code == 1 and (told["state"], told["exit_code"]) == ("failed", 1)
    assert told["reason"].startswith("x.arrows: No space left on device") and told["rows"]["pending"] == 8
    assert result.stderr.splitlines()[-1].startswith("job: x.arrows: No space left")


def test_a_bug_is_told_too_without_secrets(job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: FakeEngine) -> Any:
        raise ZeroDivisionError("with hf_" + "a" * 30)

    monkeypatch.setattr(FakeEngine, "step", fail)
    with pytest.raises(ZeroDivisionError):
        job()
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["exit_code"], told["reason"]) == (1, "ZeroDivisionError: with hf_***")


def test_one_launch_of_many_has_completed_the_run(job: Any, tmp_path: Path) -> None:
    """Another launch that ends at the same moment reads the totals that the first has left."""
    _, told = job()
    directory = ending.find_run(str(tmp_path / "out")).directory
    assert completed_by(directory) == told["launch"]["id"]
    (tmp_path / "out/totals.json").unlink()
    assert job()[1]["completed_run"], "the launch that should have added up had died before"


def test_only_the_first_process_tells_and_the_others_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Launchers stop all processes as soon as one ends with another code than 0, also the one that runs the command."""
    calls: list[Any] = []

    class Fake:
        launch_id = "l"

        def wait_for_report(self, secs: float) -> None:
            calls.append("waited")

        def say_ended(self) -> None:
            calls.append("said")

    values = {"model": "m", "dataset": "d.jsonl", "output": str(tmp_path), "on_end": f"echo >> {tmp_path}/told"}
    config = to_config(values_of(values))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(PeerFailed), Ending(config, StopFlag(), lambda text: None) as end:
            end.joined(Fake())  # type: ignore[arg-type]
            raise PeerFailed(EXIT_STOPPED)
    assert calls == ["said", "waited"] and (tmp_path / "told").read_text() == "\n"


def test_a_stop_that_another_worker_s_failure_caused_says_so() -> None:
    """Launchers answer the failure of one process with SIGTERM to the others."""
    config = to_config(values_of({"model": "m", "dataset": "d.jsonl", "output": "o", "on_end": "true"}))
    stop = StopFlag()
    stop.request("SIGTERM")
    end = Ending(config, stop, lambda text: None)
    end.exit_code = 75
    assert end._outcome(None) == (75, "SIGTERM")
    for left in ("SIGTERM", "done", "", "the end of its launcher", "x.arrows: No space left on device"):
        end.add([WorkerStats(worker_id="a", left=left)])
    assert end._outcome(None) == (
        75,
        "SIGTERM, after a worker of this launch failed: x.arrows: No space left on device",
    )
    assert end._outcome(Unavailable("The Hub does not answer"))[0] == 1


def test_of_a_chain_the_end_is_told_once(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    (tmp_path / "c.toml").write_text(
        f'model = "{tiny_model()}"\ndataset = "{data}"\noutput = "{tmp_path}/out"\nengine = "fake"\n'
        f"on-end = 'cat >> {tmp_path}/told'\nmetrics-port = 0\n"
        "[steps.draft]\n[steps.judge]\nprompt-template = '{{ completion }}?'\n"
    )
    result = run_job("chain", tmp_path / "c.toml")
    assert result.exit_code == 0 and result.stderr.count("figures for Prometheus: ") == 1, result.stderr
    [line] = (tmp_path / "told").read_text().splitlines()
    told = json.loads(line)
    assert (told["run"], told["step"], told["launch"]["rows"]) == (f"{tmp_path}/out/judge", "judge", 2)
    text = (tmp_path / "c.toml").read_text()
    (tmp_path / "c.toml").write_text(text.replace("[steps.judge]", "[steps.judge]\non-end = 'https://host/s3cret'"))
    result = run_job("chain", tmp_path / "c.toml")
    assert result.exit_code == 2 and "--on-end is given in several ways. It must be" in result.stderr
    assert "s3cret" not in result.stderr


def test_a_run_from_python_tells_it_too(tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    options = {"model": tiny_model(), "dataset": data, "output": tmp_path / "out", "engine": "fake"}
    run_from_python(**options, on_end=f"cat > {tmp_path}/told", metrics_port=0, progress=False)
    assert json.loads((tmp_path / "told").read_text())["state"] == "done"

"""Trouble of a network: what is retried, for how long, what is said meanwhile, and how a command ends."""

import errno
import importlib
import io
import json
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from job.errors import Unavailable, UsageError, explain
from job.launch import activity
from job.launch.activity import answers, fails, telling_what_takes_long
from job.remote import patience
from job.remote.patience import patiently, set_patience
from job.remote.transient import is_transient, reason_of_trouble
from tests.conftest import ANN, Result, finish, start_processes
from tests.hub import Hub
from tests.test_run import read_output
from tests.test_watchdog import wait_for

HTTPX: Any = importlib.import_module(type(huggingface_hub.get_session()).__module__.partition(".")[0])
"""The client of ``huggingface_hub``: httpx2, or httpx up to version 1."""

THE_HUB = "the Hub (acme/data)"
SIGNED = "http://cdn/blob?Expires=1&Signature=SIGNED-12ab"


class Clock:
    """A time that passes only in pauses."""

    def __init__(self) -> None:
        """Start at 0."""
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, secs: float) -> None:
        """Let time pass."""
        self.pauses.append(secs)
        self.now += secs


@pytest.fixture(autouse=True)
def default_patience() -> Iterator[None]:
    set_patience(600)
    yield
    set_patience(600)
    answers(THE_HUB)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(activity, "time", clock)
    return clock


def answer(status: int, url: str = "http://hub/x", kind: Any = HfHubHTTPError, **headers: str) -> Exception:
    """Return the error of the client for an answer of a server."""
    response = HTTPX.Response(status, headers=headers, request=HTTPX.Request("GET", url))
    error: Exception = kind(f"{status} for {url}", response=response)
    return error


def caused_by(error: Exception, cause: BaseException) -> Exception:
    """Return the error as a library raises it ``from`` another one."""
    error.__cause__ = cause
    return error


def from_botocore(status: int, code: str) -> Exception:
    error = RuntimeError("An error occurred when calling the GetObject operation")
    error.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error


UNTRUSTED = ssl.SSLCertVerificationError(
    1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1016)"
)

TRANSIENT = [
    *(answer(status) for status in (408, 425, 429, 500, 502, 503, 504, 522)),
    answer(403, SIGNED),
    HTTPX.ConnectError("[Errno 111] Connection refused"),
    HTTPX.ReadError("[Errno 104] Connection reset by peer"),
    HTTPX.ReadTimeout("The read operation timed out"),
    HTTPX.RemoteProtocolError("peer closed connection without sending complete message body"),
    HTTPX.ProxyError("503 Service Unavailable"),
    requests.exceptions.ConnectionError("reset"),
    requests.exceptions.ChunkedEncodingError("cut off"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    OSError("Consistency check failed: file should be of size 9 but has size 4 (a)."),
    caused_by(LocalEntryNotFoundError("An error happened, and we cannot find the files"), answer(503)),
    caused_by(OSError(errno.EIO, "reduce your request rate"), from_botocore(503, "SlowDown")),
    from_botocore(400, "RequestTimeout"),
    caused_by(OSError("Can't load the model"), HTTPX.ReadError("reset")),
    RuntimeError("Cannot send a request, as the client has been closed."),
]
PERMANENT = [
    *(answer(status) for status in (400, 401, 403, 404, 410, 416, 501)),
    answer(403, kind=GatedRepoError),
    caused_by(LocalEntryNotFoundError("An error happened, and we cannot find the files"), answer(403)),
    HTTPX.UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol."),
    HTTPX.LocalProtocolError("Illegal header value"),
    HTTPX.ProxyError("407 Proxy Authentication Required"),
    caused_by(HTTPX.ConnectError("certificate verify failed"), UNTRUSTED),
    caused_by(requests.exceptions.SSLError("bad"), UNTRUSTED),
    OfflineModeIsEnabled("offline"),
    caused_by(ConnectionError("Couldn't reach 'acme/data' on the Hub"), OfflineModeIsEnabled("offline")),
    from_botocore(403, "AccessDenied"),
    OSError(errno.ENOSPC, "No space left on device"),
    caused_by(PermissionError(errno.EACCES, "denied"), ConnectionResetError()),
    caused_by(UsageError("our own word"), ConnectionResetError()),
    FileNotFoundError(errno.ENOENT, "No such file"),
    ValueError("a bug"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_trouble_of_a_network_or_a_server_is_retried(error: Exception, clock: Clock) -> None:
    failures = iter([error, error])

    def action() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert is_transient(error) and patiently(THE_HUB, action) == "done"
    assert len(clock.pauses) == 2


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_what_waiting_does_not_help_is_raised_at_once(error: Exception, clock: Clock) -> None:
    def action() -> None:
        raise error

    with pytest.raises(Exception) as raised:
        patiently(THE_HUB, action)
    assert not is_transient(error) and clock.pauses == []
    assert raised.value is error or "SSL_CERT_FILE" in str(raised.value)


def test_a_certificate_of_a_proxy_is_explained(clock: Clock) -> None:
    def action() -> None:
        raise HTTPX.ConnectError(str(UNTRUSTED.strerror)) from UNTRUSTED

    with pytest.raises(UsageError) as raised:
        patiently(THE_HUB, action)
    assert str(raised.value) == (
        "The Hub (acme/data) has a certificate that is not trusted: self-signed certificate. If a proxy of your site "
        "signs them, set SSL_CERT_FILE to a file with its certificates."
    )


def test_pauses_grow_differ_and_end_at_the_limit(clock: Clock) -> None:
    """A hundred tasks of a job array, refused together, must not come back together."""

    def action() -> None:
        raise answer(503, "https://hub/x?token=abc")

    set_patience(300)
    with pytest.raises(Unavailable) as raised:
        patiently(THE_HUB, action)
    assert clock.now == pytest.approx(300)
    first, *others = clock.pauses
    assert 0.5 <= first <= 1.5 and max(others) <= 30 and sum(others[:4]) < sum(others[4:8])
    assert str(raised.value) == (
        "The Hub (acme/data) has not answered for 300 s: 503 Service Unavailable. Nothing is lost: run the same "
        "command again once it is back, or let it wait longer with --hub-timeout."
    )
    once, clock.pauses = clock.pauses, []
    with pytest.raises(Unavailable):
        patiently(THE_HUB, action)
    assert clock.pauses != once


def test_nothing_is_retried_with_a_timeout_of_0(clock: Clock) -> None:
    set_patience(0)
    with pytest.raises(Unavailable, match="does not answer: reset"):
        patiently(THE_HUB, lambda: (_ for _ in ()).throw(HTTPX.ReadError("reset")))
    assert clock.pauses == []


@pytest.mark.parametrize("headers", [{"Retry-After": "40"}, {"RateLimit": '"api";r=0;t=40'}], ids=repr)
def test_a_server_is_asked_again_when_it_said_but_once_more_within_the_limit(
    clock: Clock, headers: dict[str, str]
) -> None:
    def action() -> None:
        raise answer(429, **headers)

    set_patience(50)
    with pytest.raises(Unavailable):
        patiently(THE_HUB, action)
    assert 40 < clock.pauses[0] < 42 and sum(clock.pauses) == pytest.approx(50)


def test_success_of_another_thread_starts_the_limit_anew(clock: Clock) -> None:
    """One of 16 threads fetches, the others are refused: the Hub answers."""

    def action() -> None:
        if clock.now < 550:
            answers(THE_HUB)  # as a thread does that has fetched its file
        raise HTTPX.ReadError("reset")

    with pytest.raises(Unavailable, match="has not answered for 600 s"):
        patiently(THE_HUB, action)
    assert 1100 < clock.now < 1200


@pytest.mark.parametrize("only_servers", [False, True])
def test_a_line_says_which_server_does_not_answer(only_servers: bool) -> None:
    """And why, rather than what the threads that wait for it are about to do; once, not once for each thread."""
    told: list[str] = []
    fails(THE_HUB, "503 Service Unavailable")
    try:
        with telling_what_takes_long(told.append, first_secs=0.01, only_servers=only_servers):
            for idx in range(16):
                activity.doing("fetching files", f"{idx} of 16")
                fails(THE_HUB, "503 Service Unavailable")
            wait_for(lambda: told)
    finally:
        answers(THE_HUB)
    assert told == ["still waiting for the Hub (acme/data): 503 Service Unavailable (0 s)"], told


def test_reasons_have_no_address_and_no_secret() -> None:
    """A link to a large file is as good as a password until its signature expires."""
    assert reason_of_trouble(answer(403, SIGNED)) == "403 Forbidden (the link to the file has expired)"
    assert reason_of_trouble(HTTPX.ReadError(f"reset: {SIGNED}")).endswith("Expires=1&Signature=***")
    assert explain(answer(404, SIGNED)).endswith("Expires=1&Signature=***")
    assert explain(ValueError("at https://me:pw@host/x with Bearer abc")) == "at https://***@host/x with Bearer ***"
    assert reason_of_trouble(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"


def test_a_stalled_request_ends(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the Hub sets no limit for most of its requests: a stalled answer was waited for without end."""
    from huggingface_hub import HfApi

    hub.create("dataset", "acme/data")
    monkeypatch.setattr(patience, "STALL_SECS", 0.05)
    set_patience(600)
    hub.fault(match="GET /api", stall_secs=0.5)
    with pytest.raises(HTTPX.ReadTimeout):
        HfApi().dataset_info("acme/data")


def lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts).encode()


@pytest.fixture
def args(hub: Hub, tiny_model: Callable[..., Path], tmp_path: Path) -> list[Any]:
    """Return the options of a run over a model and a dataset of the Hub."""
    hub.create("model", "acme/tiny").commit({path.name: path for path in tiny_model().iterdir()})
    hub.create("dataset", "acme/data").commit({f"train-{idx}.jsonl": lines(f"question {idx}") for idx in range(3)})
    return [
        *["--model", "acme/tiny", "--dataset", "acme/data", "--no-chat", "--max-new-tokens", 4, "--engine", "static"],
        *["--output", tmp_path / "out", "--dtype", "float32"],
    ]


PHASES = {
    "the commit of the model": r"GET /api/models/acme/tiny(/revision/.*)?$",
    "the listing of the model": "GET /api/models/acme/tiny/tree",
    "the configuration": "config.json",
    "the tokenizer": "tokenizer.json",
    "the weights": "/cdn/",
    "the commit of the dataset": r"GET /api/datasets/acme/data(/revision/.*)?$",
    "the listing of the dataset": "GET /api/datasets/acme/data/tree",
    "a file of the dataset": "train-1",
}
"""What is asked for while a run is prepared."""


@pytest.mark.parametrize("trouble", [{"status": 503}, {"reset_after": 5}], ids=str)
@pytest.mark.parametrize("phase", PHASES)
def test_trouble_that_stays_is_no_wrong_usage_and_no_traceback(
    hub: Hub,
    run_job: Callable[..., Result],
    args: list[Any],
    phase: str,
    trouble: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A regression: exit code 2, with advice about a file pytorch_model.bin; or a traceback."""
    hub.fault(match=PHASES[phase], **trouble)
    result = run_job("run", *args, "--hub-timeout", 0.01)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("job: ")]
    assert result.exit_code == 1 and line.startswith("job: The Hub (acme/"), line
    monkeypatch.setenv("JOB_EXIT_UNAVAILABLE", "76")
    of_preview = run_job("preview", *args, "--hub-timeout", 0)
    assert of_preview.exit_code == (0 if phase == "the weights" else 76), of_preview.stderr


def test_trouble_that_passes_costs_nothing(
    hub: Hub, run_job: Callable[..., Result], args: list[Any], tmp_path: Path
) -> None:
    for match in PHASES.values():
        hub.fault(match=match, status=503, times=2)
        hub.fault(match=match, reset_after=3, times=1)
    result = run_job("run", *args)
    assert result.exit_code == 0, result.stderr
    assert read_output(tmp_path / "out")["prompt"].to_pylist() == [f"question {idx}" for idx in range(3)]


@pytest.mark.parametrize("command", ["preview", "publish"])
def test_a_wait_for_the_hub_ends_with_a_signal(
    hub: Hub,
    run_job: Callable[..., Result],
    args: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """At once and in one line; threads that fetch files were waited for."""
    if command == "publish":
        assert run_job("run", *args, "--engine", "fake").exit_code == 0
        args = [tmp_path / "out", "ann/answers"]
        monkeypatch.setenv("HF_TOKEN", ANN)
    fault = hub.fault(match="train-1|/api/repos|/api/datasets/ann", stall_secs=60)
    (process,) = start_processes(["-m", "job", command, *args])
    wait_for(lambda: fault.struck_at is not None)
    process.send_signal(signal.SIGINT)
    since = time.monotonic()
    (result,) = finish([process])
    assert time.monotonic() - since < 20, "it waited for the Hub, which answers after 60 s"
    assert (result.exit_code, "Traceback" in result.stderr) == (75, False)
    assert result.stderr.splitlines()[-1].startswith("job: stopped on SIGINT.")


def private_data(hub: Hub) -> None:
    """Make what only ann may read, and give each answer of the Hub a link that anybody may use for a while."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"prompt": [f"question {idx}" for idx in range(20)]}), stream)
    data = hub.create("dataset", "acme/private", private=True, readers=("ann",))
    data.commit({"train.parquet": stream.getvalue()})


WITH_A_BUG = """
from job.run.runner import Runner
def report(self):
    raise RuntimeError("at http://ann:pass-WORD@host/x?Signature=SIGNED-12ab with Bearer hf_ann_SECRET_0123456789")
Runner._report = report
from job.cli import program
program()
"""


def test_no_secret_is_in_a_file_a_log_or_a_traceback(
    hub: Hub, args: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every switch on that makes libraries talk, and a bug of ours that has secrets in its message."""
    private_data(hub)
    monkeypatch.setenv("HF_TOKEN", ANN)
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
        monkeypatch.setenv(name, "debug")
    monkeypatch.setenv("HF_DEBUG", "1")
    more = ["--dataset", "acme/private", "--streaming", "--engine", "fake", "--verbose"]
    (result,) = finish(start_processes(["-c", WITH_A_BUG, "run", *args, *more]))
    assert "RuntimeError: at http://***@host/x?Signature=*** with Bearer ***" in result.stderr
    assert result.stderr.count("Signature=***") > 1, "the debug log does not have the link"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.is_relative_to(tmp_path / "out/metrics") for path in files)
    written = b"".join([result.stdout.encode(), result.stderr.encode(), *files.values()])
    assert [secret for secret in (ANN, "SIGNED-", "pass-WORD") if secret.encode() in written] == []


def test_a_link_that_stays_refused_is_reported_without_its_signature(
    hub: Hub, run_job: Callable[..., Result], args: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    private_data(hub)
    monkeypatch.setenv("HF_TOKEN", ANN)
    hub.fault(match="GET /cdn", status=403)
    result = run_job("run", *args, "--dataset", "acme/private", "--engine", "fake", "--hub-timeout", 0)
    assert result.exit_code == 1 and "answered 403" in result.stderr
    assert "SIGNED-" not in result.stdout + result.stderr

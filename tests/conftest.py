"""Fixtures: tiny models made once per session, and ways to run ``job`` in this process or in others."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hub import Hub

ANN = "hf_ann_SECRET_0123456789"
"""A token of the user ann."""

HUB = Hub(tokens={ANN: "ann", "hf_bob_SECRET_0123456789": "bob"})
HUB.start()
os.environ["HF_ENDPOINT"] = HUB.url  # the clients read it when they are imported
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ.pop("HF_TOKEN", None)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the fixture ``hub`` goes online
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Tiny models gain nothing from a second thread, and on a busy machine threads wait for each other: 70 s instead of 1.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; see tests/interpreting.py


LONGEST = (
    *("launch", "stop", "paged_engine", "launch_command", "engine", "bench_gpu", "scoring", "constraint", "kernels"),
    *("remote_output", "mixed_tasks", "patience", "hub_models", "packaging", "fit", "run", "watchdog", "compile_ahead"),
    *("reasoned_choices", "resume", "store", "fused", "layout", "status", "hub_histories"),
)
"""Test files that take more than some seconds of processor time, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: at the end, one of the processes of scripts/test would be alone with them."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def r1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model whose prompts begin the reasoning."""
    from tests.tiny import make_chat_model

    return make_chat_model(tmp_path_factory.mktemp("r1"), "deepseek_r1")


@pytest.fixture(scope="session", autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep converted data out of the user's home."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")
    os.environ["HF_DATASETS_CACHE"] = str(datasets.config.HF_DATASETS_CACHE)
    os.environ["JOB_CACHE"] = str(tmp_path_factory.mktemp("job-cache"))


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """Let writes in this process not wait for the disk: no test cuts the power, and slow disks take minutes for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a tiny model once per session and returns its directory."""
    from tests.tiny import make_model

    made: dict[str, Path] = {}

    def get(name: str = "llama", **options: Any) -> Path:
        key = f"{name}-{sorted(options.items())}"
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(name), name, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return two processes of one replica, which run jobs: ``Ranks``."""
    from tests.ranks import Ranks

    processes = Ranks(tmp_path_factory.mktemp("two-ranks"), 2)
    yield processes
    processes.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return an empty hub, and go online: in this process, and in those that a test starts.

    The caches of the clients are empty, and their own retries do not wait.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    home = tmp_path / "hf"
    for name, value in {"HF_HOME": home, "HF_HUB_CACHE": home / "hub", "JOB_CACHE": home / "job"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    without_pauses = SimpleNamespace(**{**vars(time), "sleep": lambda secs: None})  # the hub's own sleeps are real
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", without_pauses)
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    with contextlib.suppress(ImportError, AttributeError):  # from version 2 on
        from huggingface_hub import _tree_cache

        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    HUB.repos.clear()
    HUB.blobs.clear()
    HUB.log.clear()
    HUB.heal()
    yield HUB
    HUB.heal()


@pytest.fixture(scope="session")
def s3_server() -> Any:
    """Return an S3 server, which tests reach through the fixture ``s3``."""
    from tests.s3 import S3

    return S3()


@pytest.fixture
def s3(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an S3 server with one empty bucket, ``s3://bucket``, which the clients find: ``tests.s3.S3``."""
    s3_server.reset()
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)
    return s3_server


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Watch what the schedulers of paged engines do during a test: ``serving.Observed``."""
    from tests.serving import observe

    return observe(monkeypatch)


@dataclass(frozen=True)
class Result:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_job() -> Callable[..., Result]:
    """Return a function that runs ``job`` in this process: no start-up, for everything that needs one process."""
    from click.testing import CliRunner

    from job.cli import main
    from job.remote import patience

    def run(*args: Any) -> Result:
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        handlers = [signal.getsignal(number) for number in numbers]
        try:
            result = CliRunner().invoke(main, [str(arg) for arg in args])
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            patience._current.wait = patience._sleep  # a run that was stopped waits for nothing more
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


def free_port() -> int:
    """Return a port that nobody listens on."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start_processes(
    args: Sequence[Any], world_size: int = 1, env: dict[str, str] | None = None, **streams: Any
) -> list[subprocess.Popen[str]]:
    """Start ``python args`` in ``world_size`` processes with the environment that torchrun would give them."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    port = free_port()
    processes = []
    # A run inside the test process has left its own there.
    inherited = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
    for rank in range(world_size):
        variables = {**inherited, "OMP_NUM_THREADS": "1", **(env or {})}
        if world_size > 1:
            variables |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, args)],
                env=variables,
                text=True,
                cwd=Path(__file__).parents[1],
                **streams,
            )
        )
    return processes


def finish(processes: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[Result]:
    """Wait for processes; end all of them if one takes too long."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Result(p.returncode, out, err) for p, (out, err) in zip(processes, outputs, strict=True)]

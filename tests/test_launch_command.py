"""``job launch``: one command for several processes, with the signals and exit codes of ``job run``."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Result, finish
from tests.test_run import read_output, write_jsonl
from tests.test_watchdog import wait_for

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run_of(tiny_model: Callable[..., Path], tmp_path: Path) -> list[Any]:
    """Return the options of a run without a model, of which each shard takes a while."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(640)])
    options = ["--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    return [*options, "--rows-per-shard", 64, "--max-new-tokens", 4]


def start(args: list[Any], cwd: Path, step_secs: float = 0) -> subprocess.Popen[str]:
    """Start ``job launch``, in a directory with a file that would run in place of this program."""
    (cwd / "job.py").write_text("print('a foreign job')")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JOB_FAKE_STEP_SECS": str(step_secs)}
    code = "from job.cli import program; program()"
    command = [sys.executable, "-P", "-c", code, "launch", *map(str, args)]
    return subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def busy(run_of: list[Any], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a launch of two processes that both have work."""
    process = start(["--processes", 2, *run_of], tmp_path, step_secs=1)
    wait_for(lambda: len({path.read_text() for path in (tmp_path / "out").glob("leases/0*")}) >= 2, 200)
    yield process
    process.kill()


@pytest.mark.slow
def test_a_launch_starts_processes_that_share_the_work(run_of: list[Any], tmp_path: Path) -> None:
    """Whatever lies in the working directory. One summary on stdout, nothing of the launcher's own."""
    (result,) = finish([start(["--processes", 2, *run_of], tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert "starting 2 processes on the CPU: 2 copies of the model" in result.stderr
    assert result.stdout.startswith("640 rows in 10 parts") and result.stdout.count("rows in 10 parts") == 1
    assert read_output(tmp_path / "out")["prompt"].to_pylist() == [f"number {i}" for i in range(640)]
    assert len(list((tmp_path / "out/metrics").iterdir())) == 2


@pytest.mark.slow
def test_exit_codes_are_those_of_job_run(run_of: list[Any], tmp_path: Path) -> None:
    """torchrun makes 1 of all of them."""
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}, {"prompt": None}])
    (result,) = finish([start(["--processes", 2, *run_of, "--max-error-rate", 0], tmp_path)])
    assert result.exit_code == 3, result
    assert "Traceback" not in result.stderr and "exits with return code" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_processes(busy: subprocess.Popen[str], tmp_path: Path, number: signal.Signals) -> None:
    """``deepspeed`` dies of TERM and USR1, and leaves its processes behind."""
    processes = psutil.Process(busy.pid).children(recursive=True)
    busy.send_signal(number)
    (result,) = finish([busy])
    assert result.exit_code == 75, result
    assert f"stopped on {number.name}" in result.stderr
    assert list((tmp_path / "out/leases").iterdir()) == []
    assert [process for process in processes if process.is_running()] == []


def test_a_signal_before_anything_was_started_ends_a_launch(run_of: list[Any], tmp_path: Path) -> None:
    """The launcher imports DeepSpeed for seconds before it starts a process."""
    process = start(["--processes", 2, *run_of], tmp_path)
    wait_for(lambda: bool(psutil.Process(process.pid).children()), 180)
    process.terminate()
    (result,) = finish([process])
    assert result.exit_code == 75, result
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_no_process_outlives_a_launch_that_is_killed(busy: subprocess.Popen[str]) -> None:
    """They would hold the GPUs, unnoticed."""
    processes = psutil.Process(busy.pid).children(recursive=True)
    assert len(processes) == 3
    busy.kill()
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert alive == []


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        ([], {}, "No GPU is visible. Use --processes N"),
        (["--gpus", 2, "--device", "cpu"], {}, "the device is the CPU. Use --processes"),
        (["--gpus", 3, "--tensor-parallel-size", 2], {}, "3 GPUs cannot be shared out with"),
        (["--gpus", 3], {"CUDA_VISIBLE_DEVICES": "4,5"}, "--gpus is 3, but CUDA_VISIBLE_DEVICES names 2: '4,5'"),
        ([], {"CUDA_VISIBLE_DEVICES": "-1"}, "No GPU is visible"),
        (["--processes", 2, "--device", "cuda"], {}, "--processes and --device cuda were given together"),
        (["--processes", 2], {"RANK": "0", "WORLD_SIZE": "2"}, "deepspeed has already started 2. Use job run here"),
        (["--processes", 2, "--limti", 4], {}, "No such option '--limti'"),
        (["--processes", 2, "--limit", 0], {}, "--limit is 0"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_is_started(
    run_job: Callable[..., Result],
    tmp_path: Path,
    options: list[Any],
    env: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With exit code 2."""
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    more = ["--engine", "fake"] if "--tensor-parallel-size" not in options else []
    result = run_job("launch", "--model", "m", "--dataset", "d.jsonl", "--output", tmp_path / "out", *more, *options)
    assert result.exit_code == 2 and message in result.stderr, result


@pytest.fixture
def chain_file(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(40)])
    head = f'model = "{tiny_model()}"\ndataset = "{data}"\noutput = "{tmp_path / "out"}"\nengine = "fake"\n'
    steps = '[steps.a]\nmax-new-tokens = 4\n[steps.b]\nprompt-template = "{{ completion }} b"\n'
    (tmp_path / "c.toml").write_text(f"{head}rows-per-shard = 8\n{steps}")
    return tmp_path / "c.toml"


@pytest.mark.slow
def test_a_chain_is_launched_in_several_processes(chain_file: Path, tmp_path: Path) -> None:
    (result,) = finish([start(["--processes", 2, "chain", chain_file, "--limit", 20], tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert "starting 2 processes on the CPU: 2 copies of the model" in result.stderr
    assert result.stderr.count("step 1 of 2: a") == result.stderr.count("step 2 of 2: b") == 1
    for name in ("a", "b"):
        assert len(read_output(tmp_path / "out" / name)) == 20
        assert len(list((tmp_path / "out" / name / "metrics").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", 0], "step a: --max-new-tokens is 0"),
        (["--tensor-parallel-size", 2], "3 processes cannot be shared out with --tensor-parallel-size 2"),
        (["--dry-run"], "--dry-run of a chain starts nothing. Use job chain FILE --dry-run."),
        ([], None),
    ],
    ids=str,
)
def test_mistakes_in_a_chain_are_told_before_it_is_launched(
    run_job: Callable[..., Result],
    chain_file: Path,
    options: list[Any],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("job.launch.one_node.start_on_this_node", lambda *args: started.append(args) or 0)
    more = ["--engine", "paged"] if "--tensor-parallel-size" in options else []
    result = run_job("launch", "--processes", 3, "chain", chain_file, *options, *more)
    if message is None:
        assert result.exit_code == 0 and started == [([], 3, ("chain", str(chain_file), "--device", "cpu"))]
    else:
        assert result.exit_code == 2 and message in result.stderr and not started, result

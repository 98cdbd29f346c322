"""A stalled engine, and a launcher that is gone: both end the process, and say why."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.launch.parents import launchers_above
from tests.conftest import finish, free_port, start_processes
from tests.test_run import write_jsonl

ROOT = Path(__file__).parents[1]


def test_a_stalled_engine_ends_with_the_rows_it_was_at(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(200)])
    args = ["-m", "job", "run", "--engine", "fake", "--model", tiny_model(), "--dataset", data]
    args += ["--output", tmp_path / "out", "--stall-timeout", 0.5, "--on-end", f"cat > {tmp_path}/told"]
    (result,) = finish(start_processes(args, env={"JOB_FAKE_STEP_SECS": "3600"}))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("job: ")]
    assert "the engine has not finished a step for" in line
    assert "In flight: rows 0, 1, 2, 3, 4, 5, 6, 7 and 56 more." in line
    told = json.loads((tmp_path / "told").read_text())
    assert (told["state"], told["exit_code"]) == ("failed", 1) and told["reason"].endswith("(--stall-timeout)")


def wait_for(condition: Callable[[], Any], secs: float = 180) -> Any:
    """Return what the condition gives as soon as it is true."""
    end = time.monotonic() + secs
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def children_of(pid: int) -> list[int]:
    """Return the processes that one has started."""
    output = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]


def descendants_of(pid: int) -> list[int]:
    """Return the processes below one."""
    children = children_of(pid)
    return [*children, *(below for child in children for below in descendants_of(child))]


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "number"), [("deepspeed", signal.SIGTERM), ("torchrun", signal.SIGKILL)])
def test_no_worker_outlives_its_launcher(
    tiny_model: Callable[..., Path], tmp_path: Path, launcher: str, number: signal.Signals
) -> None:
    """deepspeed dies of SIGTERM and leaves its workers; a torchrun that is killed does, too. They stop cleanly."""
    command = {
        "deepspeed": ["-q", "--num_gpus", "2", "--master_port", str(free_port()), "--module", "job"],
        "torchrun": ["--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "job"],
    }[launcher]
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(6400)])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    bin_dir = Path(sys.executable).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{bin_dir}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [bin_dir / launcher, *command, *map(str, [*args, "--rows-per-shard", 100])],
        env={**env, "JOB_FAKE_STEP_SECS": "0.5"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    below: list[int] = []
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob("data/part-*"))) >= 2)
        below = descendants_of(process.pid)
        assert len(below) >= 2
        process.send_signal(number)
        process.wait(timeout=180)
        wait_for(lambda: not any(map(is_alive, below)))
    finally:
        process.kill()
        for pid in filter(is_alive, below):
            os.kill(pid, signal.SIGKILL)
    assert [path for path in (tmp_path / "out/leases").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "number"),
    [("torchrun", 1), ("deepspeed", 1), ("prterun", 1), ("nohup", 0), ("deepspeed-eval.py", 0), ("my-torchrun", 0)],
)
def test_only_launchers_are_watched(tmp_path: Path, name: str, number: int) -> None:
    """A shell, or a test, may end before what it has started, also one whose name or arguments hold a launcher's."""
    assert launchers_above(os.getpid()) == []
    code = "import os; from job.launch.parents import launchers_above; print(len(launchers_above(os.getpid())))"
    start = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    (tmp_path / name).write_text(start)
    command = [sys.executable, "-u", tmp_path / name, code, "deepspeed"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == str(number), result.stderr

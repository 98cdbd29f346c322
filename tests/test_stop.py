"""Signals before the first row: the process ends at once, also while it waits in C; with exit code 75, and one line."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import job
from job.engine.fake import FakeEngine
from job.records import Generation
from tests.conftest import Result, finish, free_port, start_processes
from tests.test_run import read_output, write_jsonl
from tests.test_watchdog import wait_for

REACTION_SECS = 20
"""Some tenths of a second where nothing else runs. What is slow here takes 60 s, and deepspeed's patience is 30 s."""

SLOW_CONVERSION = """
import sys, time
import job.data.conversions as conversions
def slowly(*args):
    print("it converts", file=sys.stderr, flush=True)
    time.sleep(60)
conversions._made = slowly
from job.cli import program
program()
"""

SLOW_LOADING = """
import sys, time
import job.engine.model.loading as loading
def slowly(*args):
    print("it loads", file=sys.stderr, flush=True)
    time.sleep(60)
loading.read_weights = slowly
from job.cli import program
program()
"""


def start(code: str, args: list[Any], marker: str, tmp_path: Path, world_size: int = 1) -> list[subprocess.Popen[str]]:
    """Start processes that run ``job`` slowly, and wait until one of them has come to the slow place."""
    processes = start_processes(["-c", code, *args], world_size, env={"JOB_CACHE": str(tmp_path / "cache")})
    assert processes[0].stderr is not None
    assert any(marker in line for line in iter(processes[0].stderr.readline, ""))
    return processes


def told(results: list[Result]) -> list[str]:
    """Return the lines that the user got."""
    return [line for result in results for line in result.stderr.splitlines() if line.startswith("job: ")]


@pytest.mark.parametrize(
    ("number", "code", "marker"),
    [
        (signal.SIGTERM, SLOW_CONVERSION, "it converts"),
        (signal.SIGUSR1, SLOW_LOADING, "it loads"),
        (signal.SIGINT, SLOW_LOADING, "it loads"),
    ],
    ids=["TERM", "USR1", "INT"],
)
def test_a_signal_before_the_first_row_ends_the_process_at_once(
    tiny_model: Callable[..., Path],
    run_job: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    marker: str,
    number: signal.Signals,
) -> None:
    """A regression: it only set a flag, which was read after the conversion and after loading, so that Slurm killed the
    process and did not requeue it. The same command continues with what is left half-done.
    """
    (tmp_path / "d.csv").write_text("prompt\n" + "".join(f"number {i}\n" for i in range(20)))
    args = ["run", "--model", tiny_model(), "--dataset", tmp_path / "d.csv", "--output", tmp_path / "out"]
    args += ["--dtype", "float32", "--max-new-tokens", 4, "--on-end", f"cat > {tmp_path}/told"]
    (process,) = start(code, args, marker, tmp_path)
    process.send_signal(number)
    since = time.monotonic()
    results = finish([process])
    assert time.monotonic() - since < REACTION_SECS
    assert results[0].exit_code == 75, results
    assert told(results) == [
        f"job: stopped on {number.name} before the first row. Nothing is lost; run the same command again."
    ]
    word = json.loads((tmp_path / "told").read_text())
    assert (word["state"], word["reason"], word["launch"]["rows"]) == ("stopped", number.name, 0)
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    again = run_job(*args)
    assert again.exit_code == 0, again.stderr
    assert read_output(tmp_path / "out")["prompt"].to_pylist() == [f"number {i}" for i in range(20)]


WAITING = """
import job.launch.rendezvous as rendezvous
rendezvous.TELL_SECS = rendezvous.TELL_AGAIN_SECS = 0.1
from job.cli import program
program()
"""


@pytest.mark.parametrize("variables", ["torch", "srun"])
def test_a_process_that_waits_for_the_others_says_so_and_hears_a_signal(
    tiny_model: Callable[..., Path], tmp_path: Path, variables: str
) -> None:
    """A shell of ``srun -n4 --pty``, or RANK left over in a container: it was silent for half an hour, and deaf."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    environment = {
        "torch": {"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": str(free_port())},
        "srun": {
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": "0",
            "SLURM_STEP_NUM_TASKS": "4",
            "SLURM_STEP_NODELIST": "localhost",
            "MASTER_PORT": str(free_port()),
        },
    }[variables]
    (process,) = start_processes(["-c", WAITING, *args], env=environment)
    assert process.stderr is not None
    line = ""
    while "waiting" not in line:
        last, line = line, process.stderr.readline()
        assert line, last
    assert "waiting for 3 of 4 processes (ranks 1, 2, 3)" in line
    remedy = {
        "torch": "For a single process, unset RANK and WORLD_SIZE.",
        "srun": "put srun before the command. For a single process, unset SLURM_STEP_ID",
    }[variables]
    assert remedy in line
    process.terminate()
    since = time.monotonic()
    results = finish([process])
    assert time.monotonic() - since < REACTION_SECS
    assert results[0].exit_code == 75 and len(told(results)) == 1, results


@pytest.mark.parametrize("whom", [0, 1])
def test_a_stop_before_all_have_joined_ends_those_that_have(
    tiny_model: Callable[..., Path], tmp_path: Path, whom: int
) -> None:
    """It ended only the one that it reached; the others went on waiting for the missing, and now for it."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    processes = [
        *start_processes(["-c", WAITING, *args], env={**environment, "RANK": "0"}),
        *start_processes(["-c", WAITING, *args], env={**environment, "RANK": "1"}),
    ]
    stderr = processes[0].stderr
    assert stderr is not None
    try:
        assert any("waiting for 1 of 3 processes (rank 2)" in line for line in iter(stderr.readline, ""))
        processes[whom].terminate()
    finally:
        results = finish(processes)
    assert [result.exit_code for result in results] == [75, 75], results


def test_a_run_speaks_before_it_imports_anything_heavy(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """The imports take seconds, on a cold network disk minutes."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}])
    code = "import sys; sys.modules['pyarrow'] = None\nfrom job.cli import program\nprogram()"
    args = ["run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    (result,) = finish(start_processes(["-c", code, *args]))
    assert f"job {job.__version__}: preparing the run" in result.stderr.partition("Traceback")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "code", "marker"), [(0, SLOW_LOADING, "it loads"), (1, SLOW_CONVERSION, "it converts")], ids=[0, 1]
)
def test_a_stop_that_reaches_one_process_ends_all(
    tiny_model: Callable[..., Path], tmp_path: Path, code: str, marker: str, whom: int
) -> None:
    """With 75 and not 1, and one line: the others would wait for it, or say that it is gone."""
    (tmp_path / "d.csv").write_text("prompt\na\n")
    args = ["run", "--model", tiny_model(), "--dataset", tmp_path / "d.csv", "--output", tmp_path / "out"]
    processes = start(code, [*args, "--tensor-parallel-size", 2], marker, tmp_path, world_size=2)
    processes[whom].terminate()
    since = time.monotonic()
    results = finish(processes)
    assert time.monotonic() - since < REACTION_SECS
    assert [result.exit_code for result in results] == [75] * 2, results
    assert len(told(results)) == 1 and "stopped on SIGTERM before the first row" in told(results)[0]


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_between_two_tokens(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """A follower's signal was nobody's: only leaders looked at their flags. Its own leader and another stop here."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(64)])
    args = ["run", "--model", tiny_model(max_position_embeddings=100_000), "--dataset", data, "--dtype", "float32"]
    args += ["--output", tmp_path / "out", "--max-new-tokens", 90_000, "--ignore-eos", "--rows-per-shard", 8]
    processes = start_processes(["-m", "job", *args, "--tensor-parallel-size", 2], 4)
    wait_for(lambda: len(list((tmp_path / "out").glob("leases/0*"))) >= 2, 200)
    processes[1].terminate()
    results = finish(processes)
    assert [result.exit_code for result in results] == [75] * 4, results
    assert list((tmp_path / "out/leases").iterdir()) == []


def test_ctrl_c_while_the_command_line_is_imported_prints_nothing() -> None:
    """It was a traceback from the middle of an import. Once that is over, Ctrl-C is Python's again."""
    interrupt = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'job.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import job.__main__\n"
    )
    begin = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import job.__main__, job.cli.group as group\n"
        "group.main = lambda **options: print(signal.getsignal(signal.SIGINT).__name__)\n"
        "group.program()\n"
    )
    killed, begun = (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
        )
        for code in (interrupt, begin)
    )
    assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGINT, "", "")
    assert (begun.returncode, begun.stdout, begun.stderr) == (0, "default_int_handler\n", "")


def test_a_second_ctrl_c_ends_a_run_in_one_line(
    run_job: Callable[..., Result], tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "Aborted!" with the exit code of a failure."""

    def interrupted(self: FakeEngine) -> list[Generation]:
        raise KeyboardInterrupt

    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    monkeypatch.setattr(FakeEngine, "step", interrupted)
    args = ["--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    result = run_job("run", *args)
    assert result.exit_code == 75
    assert result.stderr.endswith("\njob: ended by Ctrl-C. What was finished is kept; run the same command again.\n")
    assert list((tmp_path / "out/leases").iterdir()) == []

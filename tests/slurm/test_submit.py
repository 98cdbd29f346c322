"""``job submit``: the script that it makes, with stand-ins for Slurm's commands, and on a real Slurm."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result
from tests.slurm.cluster import PATIENCE_SECS, ROOT, Cluster, until
from tests.test_run import read_output, write_jsonl

RUN = (
    "--engine",
    "fake",
    "--model",
    "m",
    "--dataset",
    "d.jsonl",
    "--prompt-template",
    "{{ a }} 'b'\n",
    "--output",
    "o",
)


def test_the_script_asks_for_what_the_options_say(run_job: Callable[..., Result]) -> None:
    """And for what a restart needs; options for sbatch come last, because the last one wins."""
    asked = ["--nodes", 2, "--gpus-per-node", 4, "--array", "0-7%2", "--time", "02:00:00", "--partition", "gpu"]
    asked += ["--account", "me", "--job-name", "questions", "--mem", 0, "--sbatch-option", "qos=high"]
    script = run_job("submit", "--dry-run", *asked, *RUN, "--sbatch-option", "--mem=8G").stdout
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert lines == [
        *["job-name=questions", "account=me", "partition=gpu", "array=0-7%2", "nodes=2", "ntasks-per-node=4"],
        *["gpus-per-node=4", "cpus-per-task=8", "mem=0", "time=02:00:00", "signal=USR1@180", "requeue"],
        *["open-mode=append", "output=%x-%A_%a.log", "qos=high", "mem=8G"],
    ]


def test_the_script_runs_the_command_and_requeues(run_job: Callable[..., Result], tmp_path: Path) -> None:
    """By itself: nothing of the repository is needed but the program."""
    script = run_job("submit", "--dry-run", "--processes-per-node", 2, *RUN, "--max-requeues", 7).stdout
    assert "gpus-per-node" not in script
    stubs = {
        "srun": 'while [ "$1" != bash ]; do shift; done; shift 4; printf "<%s>" "$@" >"$CALLS"; exit 75',
        "scontrol": 'echo "$*" >>"$CALLS.scontrol"',
        "sleep": ":",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "7"}
    env |= {"SLURM_JOB_NODELIST": "node1"}
    ended = subprocess.run(["bash"], input=script, env=env, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert ended.returncode == 75 and "restart 1 of at most 7" in ended.stderr
    words = "".join(f"<{word}>" for word in (sys.executable, "-P", "-m", "job", "run", *RUN, "--device", "cpu"))
    assert (tmp_path / "calls").read_text() == words
    assert (tmp_path / "calls.scontrol").read_text() == "requeue 7\n"


def test_a_chain_is_submitted_like_a_run(run_job: Callable[..., Result], tmp_path: Path) -> None:
    """And checked before."""
    head = 'model = "m"\ndataset = "d.jsonl"\noutput = "o"\nengine = "fake"\n'
    (tmp_path / "c.toml").write_text(head + "[steps.a]\n[steps.b]\nmax-new-tokens = 3\n")
    script = run_job("submit", "--dry-run", "--gpus-per-node", 2, "chain", tmp_path / "c.toml", "--limit", 4).stdout
    assert "ntasks-per-node=2\n" in script
    assert f"COMMAND=({sys.executable} -P -m job chain {tmp_path / 'c.toml'} --limit 4)\n" in script
    refused = run_job("submit", "--dry-run", "chain", tmp_path / "c.toml", "--max-new-tokens", 0)
    assert refused.exit_code == 2 and "step a: --max-new-tokens is 0" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus-per-node", 2, "--processes-per-node", 2], "were given together"),
        (["--nodes", 3, "--tensor-parallel-size", 2], "3 processes (nodes x processes per node) cannot be shared out"),
        (["--limit", 0], "--limit is 0"),
        ([], "There is no sbatch here"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_is_submitted(
    run_job: Callable[..., Result], options: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 2."""
    monkeypatch.setenv("PATH", "/nowhere")
    run = RUN[2:] if "--tensor-parallel-size" in options else RUN
    result = run_job("submit", *run, *options)
    assert result.exit_code == 2 and message in result.stderr, result


class Site:
    """A directory to submit from, on a real Slurm."""

    def __init__(self, cluster: Cluster, directory: Path, model: Path) -> None:
        """Make a dataset of 1,280 rows."""
        self.cluster, self.directory, self.output = cluster, directory, directory / "out"
        data = write_jsonl(directory / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(1280)])
        self._run = ["--engine", "fake", "--model", model, "--dataset", data, "--output", self.output]
        self._run += ["--rows-per-shard", 320, "--max-new-tokens", 4]

    def submit(self, *options: Any, step_secs: float = 0) -> str:
        """Submit a run, and return the id that is printed."""
        more = ["--processes-per-node", 1, "--cpus-per-task", 1, "--time", 10, *options]
        command = [sys.executable, "-m", "job", "submit", *map(str, [*self._run, *more])]
        env = {**self.cluster.env, "PYTHONPATH": str(ROOT), "JOB_FAKE_STEP_SECS": str(step_secs)}
        done = subprocess.run(
            command, env=env, cwd=self.directory, capture_output=True, text=True, timeout=PATIENCE_SECS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, job_id: str, *fields: str) -> Sequence[str]:
        """Wait until a job has ended for good, and return what Slurm says of it."""

        def found() -> dict[str, str] | None:
            job = self.cluster.show(job_id)
            return job if job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") else None

        job = until(found, lambda: f"{self.cluster.states()}\n{self.log}")
        return [job[field] for field in fields]

    @property
    def log(self) -> str:
        """Everything that was logged."""
        return "\n".join(path.read_text() for path in self.directory.glob("*.log"))


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, tiny_model: Callable[..., Path]) -> Site:
    """Return a directory to submit from."""
    return Site(cluster, tmp_path, tiny_model())


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_SECS)
def test_a_job_is_stopped_requeued_cancelled_and_done(site: Site) -> None:
    """One output through all of it: preempted once, cancelled once, and finished by two array tasks."""
    first = site.submit(step_secs=1)
    until(lambda: list(site.output.glob("leases/0*")), lambda: site.log)
    site.cluster.command("scancel", "--signal=TERM", first)
    until(lambda: "stopped, and requeued: restart 1 of at most 50" in site.log, lambda: site.log)
    until(lambda: "restart 1 of at most 50\n" in site.log.partition("and requeued")[2], lambda: site.log)
    until(lambda: list(site.output.glob("leases/0*")), lambda: site.log)
    site.cluster.command("scancel", first)
    assert site.wait(first, "JobState", "Restarts") == ["CANCELLED", "1"]
    array = site.submit("--array", "0-1", "--job-name", "questions")
    for idx in range(2):
        assert site.wait(f"{array}_{idx}", "JobState", "ExitCode") == ["COMPLETED", "0:0"]
    assert (site.directory / f"questions-{array}_1.log").exists()
    assert read_output(site.output)["prompt"].to_pylist() == [f"question {i}?" for i in range(1280)]


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_SECS)
def test_a_failure_keeps_its_exit_code(site: Site) -> None:
    """And is not requeued."""
    job = site.submit("--prompt-column", "text")
    assert site.wait(job, "JobState", "ExitCode", "Restarts") == ["FAILED", "2:0", "0"], site.log
    assert "has no column 'text'" in site.log

"""A real Slurm of several nodes on this machine, and runs submitted to it with the scripts of ``slurm/``."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLURM_UP = ROOT / "tests/slurm-up.sh"
NUM_NODES = 10
GPUS_PER_NODE = 6
LEASE_STALE_SECS = 5
ROWS_PER_SHARD = 320
NUM_ROWS = 12_800
FAKE = ("--engine", "fake")

FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}

SLOW = 1.0
"""Seconds a step of a run that something is to happen to: 64 rows. No machine must finish it before it happened."""

PATIENCE_SECS = 600
"""How long anything is waited for. It only bounds a failure: slow machines need minutes for what takes seconds."""

ACTIVATE = """
export PATH={bin}:$PATH
[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] || export HF_HUB_OFFLINE=1
"""
"""In place of a virtual environment's. A run that was started again needs no Hub."""


def until(condition: Callable[[], Any], what: Callable[[], str]) -> Any:
    """Poll until a condition holds, and return its value."""
    end = time.monotonic() + PATIENCE_SECS
    while not (value := condition()):
        assert time.monotonic() < end, what()
        time.sleep(0.1)
    return value


def set_pace(home: Path, step_secs: float) -> Path:
    """Say how long the fake engine takes for a step of the runs of a home, and return the file that says so."""
    path, new = home / "step-secs", home / "step-secs.new"
    new.write_text(str(step_secs))
    return new.replace(path)


class Cluster:
    """The daemons, and what can happen to a node."""

    def __init__(self, directory: Path) -> None:
        """Start them."""
        self.directory = directory
        env = {"NODES": str(NUM_NODES), "GPUS": str(GPUS_PER_NODE), "CPUS": "16", "MEM": "200000"}
        env |= {"KILLWAIT": "20", "GRACE": "120"}  # what is stopped has time to say so
        subprocess.run([SLURM_UP, "up", directory], env={**os.environ, **env}, check=True, timeout=PATIENCE_SECS)
        self.env = {**os.environ, "SLURM_CONF": str(directory / "etc/slurm.conf")}
        self.has_networks = "MODE=netns" in (directory / "vars").read_text()

    def down(self) -> None:
        """Stop everything and leave nothing behind."""
        subprocess.run([SLURM_UP, "down", self.directory], check=True, timeout=PATIENCE_SECS)

    def command(self, *args: Any) -> str:
        """Run a command of Slurm and return what it prints."""
        return subprocess.run(
            [str(arg) for arg in args], env=self.env, check=True, timeout=PATIENCE_SECS, capture_output=True, text=True
        ).stdout

    def node(self, action: str, name: str, *args: Any) -> None:
        """Do something to a node: ``kill-node``, ``cut-net``, or ``exec`` a command in it."""
        subprocess.run([SLURM_UP, action, self.directory, name, *map(str, args)], check=True, timeout=PATIENCE_SECS)

    def show(self, job_id: str) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command("scontrol", "show", "job", job_id, "-o")))

    def states(self) -> str:
        """Return an overview, for messages."""
        return self.command("squeue", "-a", "-t", "all", "-o", "%i %P %j %T %r %N")


@dataclass(frozen=True)
class Submitted:
    """One submission of a script."""

    cluster: Cluster
    job_id: str
    output: Path
    home: Path
    arguments: list[Any]
    """The command line of the run, but for its output."""

    @property
    def log(self) -> str:
        """Everything that the job and its tasks have said, and Slurm of them."""
        return "\n".join(path.read_text() for path in sorted(self.home.glob("*.log")))

    def explain(self) -> str:
        """Return what there is to know when it does not do what it should."""
        return f"{self.cluster.states()}\n{self.log}"

    def task(self, task_idx: int) -> "Submitted":
        """Return one task of an array."""
        return replace(self, job_id=f"{self.job_id}_{task_idx}")

    def show(self) -> dict[str, str]:
        """Return what Slurm knows of it."""
        return self.cluster.show(self.job_id)

    def speed_up(self) -> None:
        """Let the fake engine take no time from now on."""
        set_pace(self.home, 0)

    def set_time_limit(self, minutes: int) -> None:
        """Change the time limit of the job, which may be running."""
        self.cluster.command("scontrol", "update", f"JobId={self.job_id}", f"TimeLimit={minutes}")

    def wait_for(self, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Wait until what Slurm knows of it is as it should be."""

        def found() -> dict[str, str] | None:
            job = self.show()
            return job if condition(job) else None

        job: dict[str, str] = until(found, self.explain)
        return job

    def wait(self) -> dict[str, str]:
        """Wait until it has ended for good."""
        return self.wait_for(lambda job: job["JobState"] in FINAL_STATES)

    def wait_done(self) -> dict[str, str]:
        """Wait until it has ended with success."""
        job = self.wait()
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), self.explain()
        return job

    def hosts_at_work(self) -> set[str]:
        """Return the hosts whose workers have finished rows of shards that are not final."""
        found = set()
        for path in self.output.glob("journal/*"):
            with contextlib.suppress(FileNotFoundError):  # its shard has just become final
                if path.stat().st_size > 0:
                    found.add(path.name.split(".")[1].split("-")[0])
        return found

    def wait_for_workers(self, num_hosts: int) -> None:
        """Wait until workers on so many hosts are in the middle of their work."""
        until(lambda: len(self.hosts_at_work()) >= num_hosts, self.explain)

    def metrics(self, host: str) -> str:
        """Return the figures that workers on a host have written."""
        return "".join(path.read_text() for path in sorted(self.output.glob(f"metrics/{host}-*")))

    def leases(self) -> dict[str, tuple[str, int]]:
        """Return the shards in work, and the host and process that hold each. (Leases of slices have a dot.)"""
        found = {}
        for path in self.output.glob("leases/[0-9]*"):
            if path.suffix:
                continue
            try:
                holder = json.loads(path.read_text())
            except (FileNotFoundError, ValueError):
                continue  # given back, or just being written
            found[path.name] = (holder["host"], holder["pid"])
        return found


class Lab:
    """Submits the scripts of ``slurm/`` as they stand: all that differs is said on the command line of ``sbatch``."""

    def __init__(self, cluster: Cluster, directory: Path, model: Path, dataset: Path) -> None:
        """Name what all runs have in common."""
        self.cluster, self.directory, self._model, self._dataset = cluster, directory, model, dataset

    def submit(
        self,
        script: str,
        name: str,
        *,
        nodes: Sequence[int],
        num_rows: int = NUM_ROWS,
        step_secs: float = 0,
        sbatch: Sequence[str] = (),
        options: Sequence[Any] = FAKE,
        env: Mapping[str, str] | None = None,
    ) -> Submitted:
        """Submit a script to some of the nodes.

        Args:
            script: its name.
            name: of the run; the same name again is the same output.
            nodes: numbers of the nodes that it may use.
            num_rows: rows of the dataset to complete.
            step_secs: time that the fake engine takes for 64 rows, until it is told to ``speed_up``.
            sbatch: options of sbatch, which win over the script's.
            options: options of ``job run``, about the engine.
            env: more environment variables.
        """
        home = self._make_home(name)
        others = [f"node{i + 1}" for i in range(NUM_NODES) if i + 1 not in nodes]
        small = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=0", "--time=10"]
        variables = {
            **self.cluster.env,
            "DS_ACCELERATOR": "cpu",
            "JOB_FAKE_STEP_SECS": str(set_pace(home, step_secs)),
            "JOB_LEASE_STALE_SECS": str(LEASE_STALE_SECS),
            **(env or {}),
        }
        output = self.directory / "out" / name
        command = ["sbatch", "--parsable", f"--exclude={','.join(others)}", *small, *sbatch, ROOT / "slurm" / script]
        arguments = [*self.arguments(num_rows), *options]
        job_id = subprocess.run(
            [str(arg) for arg in [*command, *arguments, "--output", output]],
            env=variables,
            cwd=home,
            check=True,
            timeout=PATIENCE_SECS,
            capture_output=True,
            text=True,
        ).stdout.strip()
        return Submitted(self.cluster, job_id, output, home, arguments)

    def arguments(self, num_rows: int) -> list[Any]:
        """Return the options of a run, but for its output and its engine."""
        return [
            *["--model", self._model, "--dataset", self._dataset, "--prompt-column", "prompt", "--id-column", "id"],
            *["--rows-per-shard", ROWS_PER_SHARD, "--limit", num_rows],
        ]

    def _make_home(self, name: str) -> Path:
        """Make what ``JOB_HOME`` points to: the directory that the script is submitted from."""
        home = self.directory / "home" / name
        if not home.exists():
            (home / ".venv/bin").mkdir(parents=True)
            (home / ".venv/bin/activate").write_text(ACTIVATE.format(bin=Path(sys.executable).parent))
            (home / "slurm").symlink_to(ROOT / "slurm")
        return home

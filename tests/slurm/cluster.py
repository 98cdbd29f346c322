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
NUM_NODES = 8
GPUS_PER_NODE = 6
LEASE_STALE_SECS = 5
ROWS_PER_SHARD = 320
FAKE = ("--engine", "fake")

FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}

ACTIVATE = """
export PATH={bin}:$PATH
[ "${{SLURM_RESTART_COUNT:-0}}" -lt "${{TEST_FAST_AFTER:-99}}" ] || export JOB_FAKE_STEP_SECS=0 HF_HUB_OFFLINE=1
"""
"""In place of a virtual environment's. After so many restarts a run stops being slow, and needs no Hub."""


def until(condition: Callable[[], Any], what: Callable[[], str], timeout: float = 150) -> Any:
    """Poll until a condition holds, and return its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, what()
        time.sleep(0.1)
    return value


class Cluster:
    """The daemons, and what can happen to a node."""

    def __init__(self, directory: Path) -> None:
        """Start them."""
        self.directory = directory
        env = {"NODES": str(NUM_NODES), "GPUS": str(GPUS_PER_NODE), "CPUS": "16", "MEM": "200000"}
        subprocess.run([SLURM_UP, "up", directory], env={**os.environ, **env}, check=True, timeout=60)
        self.env = {**os.environ, "SLURM_CONF": str(directory / "etc/slurm.conf")}
        self.has_networks = "MODE=netns" in (directory / "vars").read_text()

    def down(self) -> None:
        """Stop everything and leave nothing behind."""
        subprocess.run([SLURM_UP, "down", self.directory], check=True, timeout=60)

    def command(self, *args: Any) -> str:
        """Run a command of Slurm and return what it prints."""
        return subprocess.run(
            [str(arg) for arg in args], env=self.env, check=True, timeout=30, capture_output=True, text=True
        ).stdout

    def node(self, action: str, name: str, *args: Any) -> None:
        """Do something to a node: ``kill-node``, ``cut-net``, or ``exec`` a command in it."""
        subprocess.run([SLURM_UP, action, self.directory, name, *map(str, args)], check=True, timeout=30)

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
    num_rows: int

    @property
    def log(self) -> str:
        """Everything that the job and its tasks have said, and Slurm of them."""
        return "\n".join(path.read_text() for path in sorted(self.home.glob("*.log")))

    def _explain(self) -> str:
        return f"{self.cluster.states()}\n{self.log}"

    def task(self, task_idx: int) -> "Submitted":
        """Return one task of an array."""
        return replace(self, job_id=f"{self.job_id}_{task_idx}")

    def show(self) -> dict[str, str]:
        """Return what Slurm knows of it."""
        return self.cluster.show(self.job_id)

    def wait_for(self, condition: Callable[[dict[str, str]], bool], timeout: float = 150) -> dict[str, str]:
        """Wait until what Slurm knows of it is as it should be."""

        def found() -> dict[str, str] | None:
            job = self.show()
            return job if condition(job) else None

        job: dict[str, str] = until(found, self._explain, timeout)
        return job

    def wait(self, timeout: float = 200) -> dict[str, str]:
        """Wait until it has ended for good."""
        return self.wait_for(lambda job: job["JobState"] in FINAL_STATES, timeout)

    def wait_done(self) -> dict[str, str]:
        """Wait until it has ended with success."""
        job = self.wait()
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), self._explain()
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
        until(lambda: len(self.hosts_at_work()) >= num_hosts, self._explain)

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
        num_rows: int,
        step_secs: float = 0,
        sbatch: Sequence[str] = (),
        options: Sequence[Any] = FAKE,
        fast_after: int = 99,
        env: Mapping[str, str] | None = None,
    ) -> Submitted:
        """Submit a script to some of the nodes.

        Args:
            script: its name.
            name: of the run; the same name again is the same output.
            nodes: numbers of the nodes that it may use.
            num_rows: rows of the dataset to complete.
            step_secs: time that the fake engine takes for 64 rows.
            sbatch: options of sbatch, which win over the script's.
            options: options of ``job run``, about the engine.
            fast_after: number of restarts after which the engine takes no time, and the Hub is not asked.
            env: more environment variables.
        """
        home = self._make_home(name)
        others = [f"node{i + 1}" for i in range(NUM_NODES) if i + 1 not in nodes]
        small = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=0", "--time=10"]
        variables = {
            **self.cluster.env,
            "DS_ACCELERATOR": "cpu",
            "JOB_FAKE_STEP_SECS": str(step_secs),
            "JOB_LEASE_STALE_SECS": str(LEASE_STALE_SECS),
            "TEST_FAST_AFTER": str(fast_after),
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
            timeout=30,
            capture_output=True,
            text=True,
        ).stdout.strip()
        return Submitted(self.cluster, job_id, output, home, arguments, num_rows)

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

"""The batch script of a run on Slurm, made of options. What it does is in ``slurm_job.sh``, shared with slurm/*.sbatch.

``sbatch`` keeps a copy of the script but not of what it reads, so the shell functions are part of it.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import JobError, UsageError, first_line
from job.launch.commands import shell_line

SHELL = Path(__file__).with_name("slurm_job.sh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What Slurm is asked for. See ``job submit --help``."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    """0: the processes compute on the CPU."""
    cpus_per_task: int
    time: str
    job_name: str
    array: str | None = None
    partition: str | None = None
    account: str | None = None
    mem: str | None = None
    sbatch_options: tuple[str, ...] = ()
    """Further options, such as ``--qos=high``; they win."""
    max_requeues: int

    def script(self, words: Sequence[str]) -> str:
        """Return the batch script that runs a command, given as what follows ``job``."""
        lines = [f"#SBATCH {line}" for line in self._lines()]
        command = [sys.executable, "-P", "-m", "job", *words]  # -P: not a job.py in the working directory
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                "# Made by `job submit`. If it is stopped, it goes back into the queue and continues.",
                *lines,
                "",
                f"COMMAND=({shell_line(command)})",
                "CONTAINER=() # what comes between srun and the command",
                f"MAX_REQUEUES={self.max_requeues}",
                "activate() { :; }",
                "",
                SHELL.read_text(encoding="utf-8"),
                'main "$@"',
                "",
            ]
        )

    def submit(self, words: Sequence[str]) -> str:
        """Give the script to Slurm, and return the job's id.

        Raises:
            UsageError: there is no Slurm here.
            JobError: Slurm refuses the job.
        """
        try:
            result = subprocess.run(
                ["sbatch", "--parsable"], input=self.script(words), capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise UsageError(
                "There is no sbatch here. Run this on a machine of the cluster, or print the script with --dry-run."
            ) from None
        if result.returncode:
            refusal = first_line(RuntimeError(result.stderr)).removeprefix("sbatch: error: ")
            raise JobError(f"Slurm refuses the job: {refusal}. See its options with --dry-run.")
        return result.stdout.strip().partition(";")[0]

    @property
    def log(self) -> str:
        """The name of the log, with Slurm's placeholder for the job's id."""
        return "%x-%A_%a.log" if self.array else "%x-%j.log"

    def _lines(self) -> list[str]:
        values = {
            "job-name": self.job_name,
            "account": self.account,
            "partition": self.partition,
            "array": self.array,
            "nodes": self.nodes,
            "ntasks-per-node": self.processes_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.mem,
            "time": self.time,
        }
        lines = [f"--{name}={value}" for name, value in values.items() if value is not None]
        lines += ["--signal=USR1@180", "--requeue", "--open-mode=append", f"--output={self.log}"]
        return lines + [option if option.startswith("-") else f"--{option}" for option in self.sbatch_options]

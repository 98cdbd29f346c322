"""Runs stages, one after the other, each with its own limit, and none past the end of the time."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import figures, processes
from .plan import Stage

SHORTEST_SECS = 20
"""A stage is not started with less time than this, or its limit."""

TAIL_LINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a stage ended."""

    stage: Stage
    problem: str | None
    """Why it failed, in a few words; None if it did not."""
    secs: float
    tail: str = ""
    """The end of its output."""

    @property
    def state(self) -> str:
        """One line."""
        return f"{self.stage.name}: {self.problem or 'ok'}, {self.secs:.0f} s"


def run_stages(stages: Sequence[Stage], out: Path, secs: float, *, is_rehearsal: bool) -> Iterator[Outcome]:
    """Run stages until the time is over; those that were not started are left out.

    Args:
        out: where ``log.txt`` and ``figures.jsonl`` go.
        secs: for all of them.
    """
    deadline = time.monotonic() + secs
    for stage in stages:
        left = deadline - time.monotonic()
        if left >= min(SHORTEST_SECS, stage.limit_secs):
            yield _run(stage, out, min(left, stage.limit_secs), is_rehearsal=is_rehearsal)


def _run(stage: Stage, out: Path, limit_secs: float, *, is_rehearsal: bool) -> Outcome:
    log, lines = out / "log.txt", out / "figures.jsonl"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n#### {stage.name}\n")
    begin_of_log, num_figures = log.stat().st_size, len(figures.read(lines))
    values = {**stage.values, **(stage.rehearsal if is_rehearsal else {})}
    values = {
        name: value.replace("{OUT}", str(out)) if isinstance(value, str) else value for name, value in values.items()
    }
    env = {figures.PATH: str(lines), figures.STAGE: stage.name, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    process = processes.start(stage.module, "main", values, log=log, env=env, is_leader=True)
    process.join(limit_secs)
    problem = None
    if process.is_alive():
        problem = f"killed at its limit of {limit_secs:.0f} s"
    elif process.exitcode != 0:
        problem = f"failed with exit code {process.exitcode}"
    elif len(figures.read(lines)) == num_figures:
        problem = "saved no figures"
    processes.kill_group(process)
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(begin_of_log)
        tail = [line for line in file.read().splitlines() if line.strip()][-TAIL_LINES:]
    return Outcome(stage=stage, problem=problem, secs=time.monotonic() - begin, tail="\n".join(tail))


def prepare(*, is_rehearsal: bool) -> None:
    """Set what holds for all stages. In a rehearsal, Triton's kernels are interpreted, on one core."""
    os.environ.setdefault(processes.START, "fork" if is_rehearsal else "spawn")
    if is_rehearsal:
        # The kernels are defined when they are imported, and read this then.
        os.environ |= {
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        if os.environ[processes.START] == "fork":
            processes.preload()

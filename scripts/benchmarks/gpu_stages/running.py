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

    While a stage runs, the process of the next one imports its libraries, which takes seconds.

    Args:
        out: where ``log.txt`` and ``figures.jsonl`` go.
        secs: for all of them.
    """
    deadline = time.monotonic() + secs
    running: Process | None = None
    following: Process | None = None
    try:
        for at, stage in enumerate(stages):
            running = following or Process(stage, out, is_rehearsal=is_rehearsal)
            following = Process(stages[at + 1], out, is_rehearsal=is_rehearsal) if at + 1 < len(stages) else None
            left = deadline - time.monotonic()
            if left >= min(SHORTEST_SECS, stage.limit_secs):
                yield running.finish(min(left, stage.limit_secs))
            running.kill()
    finally:
        for process in (running, following):
            if process is not None:
                process.kill()


class Process:
    """The process of a stage."""

    def __init__(self, stage: Stage, out: Path, *, is_rehearsal: bool) -> None:
        """Let it import what it needs."""
        self._stage, self._log, self._lines = stage, out / "log.txt", out / "figures.jsonl"
        values = {**stage.values, **(stage.rehearsal if is_rehearsal else {})}
        for name, value in values.items():
            values[name] = value.replace("{OUT}", str(out)) if isinstance(value, str) else value
        env = {
            figures.PATH: str(self._lines),
            figures.STAGE: stage.name,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._child = processes.prepare(stage.module, "main", values, log=self._log, env=env, leads_group=True)

    def finish(self, limit_secs: float) -> Outcome:
        """Run it until it ends, or to its limit."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"\n#### {self._stage.name}\n")
        begin_of_log, num_figures = self._log.stat().st_size, len(figures.read(self._lines))
        begin = time.monotonic()
        is_over = self._child.finish(limit_secs)
        secs = time.monotonic() - begin
        problem = None
        if not is_over:
            problem = f"killed at its limit of {limit_secs:.0f} s"
        elif self._child.process.exitcode != 0:
            problem = f"failed with exit code {self._child.process.exitcode}"
        elif len(figures.read(self._lines)) == num_figures:
            problem = "saved no figures"
        with self._log.open(encoding="utf-8", errors="replace") as file:
            file.seek(begin_of_log)
            tail = [line for line in file.read().splitlines() if line.strip()][-TAIL_LINES:]
        return Outcome(stage=self._stage, problem=problem, secs=secs, tail="\n".join(tail))

    def kill(self) -> None:
        """End it and all that it started."""
        self._child.kill_group()


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

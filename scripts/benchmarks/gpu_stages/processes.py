"""Processes with a limit: a stage that hangs or crashes, or breaks its CUDA context, must not harm the next one.

On a GPU each process begins anew, since a CUDA context does not survive a fork. A rehearsal forks them from a process
that has imported everything: starting anew costs up to ten seconds of one core each.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

START = "JOB_BENCH_START"
"""The variable with the way to start: ``spawn`` or ``fork``."""

IMPORTS = (
    *("torch", "transformers", "transformers.models.auto.modeling_auto", "datasets", "pyarrow.parquet", "deepspeed"),
    *("job.cli", "job.run.runner", "job.engine.build", "job.engine.model.loading"),
)
"""What most stages need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process that imports what it needs, and then waits until it may begin."""

    process: BaseProcess
    may_begin: Event

    def finish(self, limit_secs: float | None = None) -> bool:
        """Let it begin, and wait for its end. Return whether it ended in time."""
        self.may_begin.set()
        self.process.join(limit_secs)
        return not self.process.is_alive()

    def kill_group(self) -> None:
        """End it and all that it started."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may not have begun its group yet
        self.process.join()


def prepare(
    module: str, function: str, values: Mapping[str, Any], *, log: Path, env: Mapping[str, str], leads_group: bool
) -> Child:
    """Have another process that will call a function of a module, with its output at the end of a file.

    Args:
        leads_group: begin a process group, so that ``kill_group`` also ends what the process starts. One that does not
            ends with the process that prepared it.
    """
    sys.stdout.flush()
    context = multiprocessing.get_context(os.environ[START])
    may_begin = context.Event()
    args = (module, function, dict(values), str(log), dict(env), leads_group, IMPORTS, may_begin, os.getpid())
    process = context.Process(target=_enter, args=args, daemon=not leads_group)
    process.start()
    return Child(process=process, may_begin=may_begin)


def _enter(
    module: str,
    function: str,
    values: dict[str, Any],
    log: str,
    env: dict[str, str],
    leads_group: bool,
    imports: tuple[str, ...],
    may_begin: Event,
    parent: int,
) -> None:
    if leads_group:
        os.setpgid(0, 0)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.update(env)
    preload(imports)
    while not may_begin.wait(1):
        if os.getppid() != parent:
            return  # it was killed: nobody will say so any more
    getattr(importlib.import_module(module), function)(**values)
    sys.stdout.flush()


def preload(names: tuple[str, ...] = IMPORTS) -> None:
    """Import modules. A stage that lacks one fails by itself, and says so."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{name} cannot be imported: {error}")

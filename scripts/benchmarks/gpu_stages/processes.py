"""Processes with a limit: a stage that hangs or crashes, or breaks its CUDA context, must not harm the next one.

On a GPU each begins anew, since a CUDA context does not survive a fork. A rehearsal forks them from a process that has
imported everything: starting anew costs up to ten seconds of one core each.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

START = "JOB_BENCH_START"
"""The variable with the way to start: ``spawn`` or ``fork``."""

HEAVY = ("torch", "transformers", "transformers.models.auto.modeling_auto", "datasets", "pyarrow.parquet", "deepspeed")
OURS = ("job.cli", "job.run.runner", "job.engine.build", "job.engine.model.loading")


def preload() -> None:
    """Import what the stages of a rehearsal need, before they are forked."""
    for name in (*HEAVY, *OURS):
        importlib.import_module(name)


def start(
    module: str, function: str, values: Mapping[str, Any], *, log: Path, env: Mapping[str, str], is_leader: bool
) -> BaseProcess:
    """Call a function of a module in another process, whose output goes to the end of a file.

    Args:
        is_leader: begin a process group, so that ``kill_group`` also ends what the process starts.
    """
    sys.stdout.flush()
    context = multiprocessing.get_context(os.environ[START])
    process = context.Process(target=_enter, args=(module, function, dict(values), str(log), dict(env), is_leader))
    process.start()
    return process


def _enter(module: str, function: str, values: dict[str, Any], log: str, env: dict[str, str], is_leader: bool) -> None:
    if is_leader:
        os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.update(env)
    getattr(importlib.import_module(module), function)(**values)
    sys.stdout.flush()


def kill_group(process: BaseProcess) -> None:
    """End a process and all that it started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.join()

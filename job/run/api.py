"""A run from Python, for notebooks and pipelines: the same as ``job run``, in the process that calls it.

The process is not ours: no signal handler is installed unless that is asked for, nothing ends the process, nothing is
written to standard output, and the environment and the settings of libraries are put back.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.errors import EXIT_DONE, EXIT_TOO_MANY_ERRORS, JobError, UsageError, shorten
from job.launch.environment import EXPORTED
from job.launch.stop import StopFlag
from job.observe.noise import quiet_libraries
from job.observe.progress import Progress
from job.run.options import values_of
from job.run.parsing import to_config

if TYPE_CHECKING:
    import datasets

    from job.output.parts.counts import Counts

_in_progress = threading.Lock()


class RunConfig:
    """What to run: the options of ``job run`` by name, with ``_`` for ``-``, checked.

    >>> config = RunConfig(model="models/a", dataset="rows.jsonl", output="runs/a", max_new_tokens=64, stop="END")
    >>> config.checked.sampling.max_new_tokens, config.checked.sampling.stop
    (64, ('END',))
    """

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: as in a configuration file: truth values, numbers, texts, and lists of texts for what may be
                repeated. A path may be a ``Path``. None is the default.

        Raises:
            UsageError: one does not exist, or its value cannot be used.
        """
        self.options = options
        # The watchdog would end the caller's process.
        self.checked = to_config(values_of({"stall_timeout": 0.0, **options}))

    def __repr__(self) -> str:
        return f"RunConfig({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came out of a run."""

    output: str
    """The run directory."""
    exit_code: int
    """That of ``job run``: 0 done, 3 too many error rows, 75 stopped on request."""

    @property
    def is_done(self) -> bool:
        """Whether every row is in a part."""
        return self.exit_code in (EXIT_DONE, EXIT_TOO_MANY_ERRORS)

    @property
    def counts(self) -> "Counts":
        """The rows, errors and tokens of the run, as they are in its directory now."""
        from job.output.looking.finished import FinishedRows
        from job.output.looking.found import find_run

        found = find_run(self.output)
        finished = FinishedRows(found.directory, found.plan, found.manifest.modes)
        finished.look(budget_secs=float("inf"))
        return finished.counts()

    def dataset(self) -> "datasets.Dataset":
        """Return the rows, in order and in memory.

        Raises:
            JobError: the run is not done.
        """
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        from job.output.looking.found import find_run

        if not self.is_done:
            raise JobError(f"{self.output} is not complete. Call run again to finish it.")
        found = find_run(self.output)
        tables = []
        for shard_idx in range(found.plan.num_shards):
            with found.directory.store.open(found.directory.names.part(shard_idx)) as file:
                tables.append(pq.read_table(file))
        return datasets.Dataset(pa.concat_tables(tables))


def run(
    config: RunConfig | None = None,
    /,
    *,
    progress: bool = True,
    stop_event: threading.Event | None = None,
    handle_signals: bool = False,
    **options: Any,
) -> RunResult:
    """Complete every row of a dataset, as ``job run`` does. Call it again to continue after an interruption.

    May be called from any thread, one call at a time.

    Args:
        config: the options. Those that are given here win.
        progress: write progress and the summary to stderr.
        stop_event: stops the run once it is set; finished rows are kept.
        handle_signals: let SIGTERM, SIGUSR1 and Ctrl-C stop the run in this way. Only in the main thread. Otherwise
            Ctrl-C is the usual ``KeyboardInterrupt``, and finished rows are kept, too.
        options: those of ``job run``; see ``RunConfig``.

    Raises:
        UsageError: something cannot work as asked; nothing was started.
        JobError: the run failed.
    """
    if not isinstance(config, RunConfig | None):
        raise UsageError(
            f"run got {shorten(repr(config))}; it takes a RunConfig, or options by name: run(model=..., ...)."
        )
    if not isinstance(stop_event, threading.Event | None):
        raise UsageError(f"stop_event is {shorten(repr(stop_event))}; it must be a threading.Event.")
    config = RunConfig(**{**(config.options if config is not None else {}), **options})
    if handle_signals and threading.current_thread() is not threading.main_thread():
        raise UsageError("handle_signals is True, but this is not the main thread. Use stop_event.")
    if not _in_progress.acquire(blocking=False):
        raise UsageError("Another run is in progress in this process. Wait for it, or start another process.")
    try:
        exit_code = _run(config, _EventFlag(stop_event), progress=progress, handle_signals=handle_signals)
    finally:
        _in_progress.release()
    return RunResult(output=config.checked.output.output, exit_code=exit_code)


class _EventFlag(StopFlag):
    """A flag that an event sets, too."""

    def __init__(self, event: threading.Event | None) -> None:
        """Look at ``event``, if there is one."""
        super().__init__()
        self._event = event

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        if self._event is not None and self._event.is_set():
            self.request("stop_event")
        return super().__call__()


def _run(config: RunConfig, stop: StopFlag, *, progress: bool, handle_signals: bool) -> int:
    from job.run.model import free_memory
    from job.run.process import launch  # imports torch: only now, so that a wrong option is found at once

    asked = config.checked

    def progress_of(speaks: bool) -> Progress:
        shows_rows = asked.output.show_rows
        return Progress(enabled=speaks and progress, shows_rows=shows_rows, summary_file=sys.stderr)

    signals = stop.handling_signals() if handle_signals else contextlib.nullcontext()
    with _environment_put_back(), quiet_libraries(verbose=asked.verbose), signals:
        try:
            return launch(asked, stop, progress_of=progress_of)
        finally:
            if asked.engine.needs_model:
                free_memory()  # the process may go on for hours


@contextlib.contextmanager
def _environment_put_back() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in EXPORTED}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

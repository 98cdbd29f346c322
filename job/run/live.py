"""What others can see of a worker while it works: the figures that it writes into the run directory and those that are
scraped.

The loop makes a snapshot between two steps, at most one a second; whoever asks gets the latest one.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import job
from job.config import LaunchConfig
from job.engine.protocol import Engine
from job.errors import first_line
from job.observe.stopwatch import Stopwatch
from job.output.sharing.metrics import WorkerStats
from job.records import Completion
from job.report.live.figures import SECS_BOUNDS, TOKEN_BOUNDS, Figures, Seen, Tally
from job.run.devices import Devices
from job.run.open_shards import OpenShards
from job.run.preparation import Prepared
from job.wording import redacted

SNAPSHOT_SECS = 1.0


class Live:
    """The server of one process, and what it shows. Without an address, it shows nothing."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._server: object | None = None
        self._close: Callable[[], None] = lambda: None
        self._seen = Seen()
        self._due = 0.0

    def open(self, config: LaunchConfig, place: int, note: Callable[[str], None]) -> None:
        """Serve figures if that is asked for. If it is not possible, a line says so, and the run goes on.

        Args:
            place: this worker's among those of its node: it begins with the port that is so much higher.
            note: prints a line for the user.
        """
        if (wanted := config.metrics_address) is None:
            return
        from job.report.live.server import FiguresServer  # an optional package

        address, port = wanted
        asked = min(port + place, 65_535) if port else 0
        try:
            server = FiguresServer(address, asked, lambda: self._seen)
        except (OSError, UnicodeError) as error:  # of a host name that cannot be one
            reason = getattr(error, "strerror", None) or first_line(error)
            note(f"--metrics-port {config.metrics_port}: {reason}; the run goes on without figures for Prometheus")
            return
        self._server, self._close = server, server.close
        taken = f"port {asked} is taken: " if asked not in (0, server.port) else ""
        note(f"{taken}figures for Prometheus: {server.url}")

    def close(self) -> None:
        """Stop serving."""
        self._close()
        self._close = lambda: None

    def enter(self, state: str, **labels: str) -> None:
        """Show that the worker does something else now: one of ``STATES``. Figures are forgotten when a run begins.

        Args:
            labels: run and worker, as far as they are known now.
        """
        begins = state == "preparing"
        self._seen = replace(
            self._seen,
            state=state,
            figures=None if begins else self._seen.figures,
            labels=labels if begins else {**self._seen.labels, **labels},
        )

    def show(self, make: Callable[[], Figures], *, now: bool = False) -> None:
        """Show new figures if somebody could ask for them and the last are old.

        Args:
            now: also if they are not.
        """
        if self._server is not None and (now or time.monotonic() >= self._due):
            self._seen = replace(self._seen, figures=make())
            self._due = time.monotonic() + SNAPSHOT_SECS


class Measured:
    """Counts what one worker does for one run."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Engine,
        stopwatch: Stopwatch,
        launch_id: str,
        devices: Devices,
    ) -> None:
        """Begin to count."""
        self._prepared, self._engine, self._stopwatch = prepared, engine, stopwatch
        self._launch_id, self._devices = launch_id, devices
        self._start, self._start_time = time.monotonic(), time.time()
        self._tokens_before = engine.num_computed_tokens
        self._preemptions_before = engine.load.num_preemptions
        self._prompt_tokens, self._completion_tokens = Tally(TOKEN_BOUNDS), Tally(TOKEN_BOUNDS)
        self._step_secs, self._secs_before = Tally(SECS_BOUNDS), 0.0
        self.left = ""
        """Why the worker has ended; empty before."""

    @property
    def elapsed_secs(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._start

    @property
    def num_tokens(self) -> int:
        """Tokens computed for this run: the engine may have worked on another before."""
        return self._engine.num_computed_tokens - self._tokens_before

    def finished(self, completion: Completion) -> None:
        """Count a row."""
        self._prompt_tokens.add(completion.num_prompt_tokens)
        if completion.error is None:
            self._completion_tokens.add(completion.num_completion_tokens)

    def stepped(self) -> None:
        """Count a step of the engine, which is what the stopwatch calls ``generate``."""
        secs = self._stopwatch.secs["generate"]
        self._step_secs.add(secs - self._secs_before)
        self._secs_before = secs

    def stats(self, shards: OpenShards) -> WorkerStats:
        """Return the figures that other workers read."""
        return WorkerStats(
            worker_id=str(self._prepared.worker),
            launch_id=self._launch_id,
            time=time.time(),
            elapsed_secs=self.elapsed_secs,
            num_rows=shards.counts.num_rows,
            num_open_rows=shards.num_open_rows,
            num_errors=shards.counts.num_errors,
            num_tokens=self.num_tokens,
            num_completion_tokens=shards.counts.num_completion_tokens,
            num_at_work=len({request.key for request in self._engine.in_flight}),
            open_shards=shards.held_idx,
            num_devices=self._devices.count,
            device=self._devices.name,
            joules=self._devices.joules,
            left=self.left,
        )

    def figures(self, shards: OpenShards, num_left: Callable[[WorkerStats], int]) -> Figures:
        """Return the figures that are scraped.

        Args:
            num_left: returns about how many rows of the run are left.
        """
        stats, load, counts = self.stats(shards), self._engine.load, shards.counts
        return Figures(
            run=run_of(self._prepared.config.output.output),
            worker=stats.worker_id,
            about=self._about(),
            start_time=self._start_time,
            time=stats.time,
            finish_reasons=dict(counts.finish_reasons),
            errors=dict(counts.errors),
            num_prompt_tokens=counts.num_prompt_tokens,
            num_completion_tokens=counts.num_completion_tokens,
            num_computed_tokens=stats.num_tokens,
            num_running=load.num_running,
            num_waiting=max(0, self._engine.num_pending - load.num_running),
            num_cache_tokens=load.num_cache_tokens,
            num_used_cache_tokens=load.num_used_cache_tokens,
            num_preemptions=load.num_preemptions - self._preemptions_before,
            num_open_shards=len(stats.open_shards),
            num_devices=stats.num_devices,
            joules=stats.joules,
            secs=dict(self._stopwatch.secs),
            num_run_rows=self._prepared.plan.num_completions,
            num_run_rows_pending=num_left(stats),
            prompt_tokens=self._prompt_tokens.seen,
            completion_tokens=self._completion_tokens.seen,
            step_secs=self._step_secs.seen,
        )

    def _about(self) -> Mapping[str, str]:
        config = self._prepared.config
        return {
            "version": job.__version__,
            "model": redacted(config.model.model),
            "engine": config.engine.engine,
            "device": self._devices.name,
            "launch": self._launch_id,
        }


def run_of(output: str) -> str:
    """Return a run directory as it is shown to others."""
    return redacted(output)

"""The loop: rows from the source through prompts, tokenizer and engine into journal and parts.

    source -> prompts -> tokenizer -> engine -> tokenizer -> journal -> part

This is the only module that knows this order. It runs on a replica's leader; followers loop in ``Engine.follow`` and do
what the leader's engine sends them.
"""

import contextlib
import sys
from collections.abc import Sequence

from job.engine.protocol import Engine
from job.errors import EXIT_STOPPED, JobError, Unavailable, shorten
from job.launch.stop import StopFlag
from job.observe.progress import Progress
from job.observe.stopwatch import Stopwatch
from job.observe.summary import Summary
from job.observe.watchdog import Heartbeat, Watchdog
from job.output.parts.counts import Counts
from job.output.sharing.leases import Leases
from job.output.sharing.metrics import MetricsFile, WorkerStats
from job.output.store.names import PART_PATTERN, within
from job.records import Completion, Generation
from job.remote.patience import lose_patience
from job.report.live.figures import Figures
from job.run.calibration import calibrate
from job.run.conclusion import conclude, exit_code_of
from job.run.devices import Devices
from job.run.first_rows import FirstRows
from job.run.live import Live, Measured
from job.run.preparation import Prepared
from job.run.random_rows import open_rows
from job.run.status import published_of
from job.run.stopping import Limit
from job.run.workers import Workers
from job.wording import redacted


class Runner:
    """One replica's work on a run, from claiming shards to naming parts."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Engine,
        stop: StopFlag,
        heartbeat: Heartbeat,
        progress: Progress,
        stopwatch: Stopwatch,
        launch_id: str,
        num_replicas: int = 1,
        devices: Devices | None = None,
        live: Live | None = None,
    ) -> None:
        """Work on a prepared run with a loaded engine, until it is done or ``stop`` is set."""
        self.prepared, self._engine, self._stop = prepared, engine, stop
        self._progress, self._stopwatch, self._launch_id = progress, stopwatch, launch_id
        self._plan, self._directory = prepared.plan, prepared.directory
        timeout_secs = prepared.settings.lease_timeout_secs
        self._leases = Leases(self._directory, prepared.worker, timeout_secs=timeout_secs, note=progress.note)
        self._modes = prepared.modes
        self._first_rows = FirstRows(max_error_rate=prepared.config.output.max_error_rate)
        self._limit = Limit(prepared)
        self._shards = open_rows(prepared, self._leases, progress.note, self._watch, self._limit)
        self._outage: Unavailable | None = None
        """Why no more rows can be read. It ends the run once the rows in flight are finished."""
        self._totals = Counts()
        self._latest: Completion | None = None
        self._metrics = MetricsFile(self._directory.store, self._directory.names.metrics(str(prepared.worker)))
        self._live = live or Live()
        self._measured = Measured(prepared, engine, stopwatch, launch_id, devices or Devices())
        stall_secs = prepared.config.engine.stall_timeout
        self._watchdog = Watchdog(stall_secs, heartbeat, self._in_flight, stop.on_stall)
        self._workers = Workers(prepared.finished, self._directory, self._plan, str(prepared.worker), num_replicas)

    def run(self) -> int:
        """Work until every row of the plan is in a part, or until asked to stop.

        Returns:
            The exit code.

        Raises:
            JobError: the disk, the dataset or the engine failed, or no row succeeds. Finished rows are in the journals.
        """
        try:
            self._modes = calibrate(self.prepared, self._engine, self._stop, self._watchdog)
            self._metrics.write(self._stats())  # the age of the others' figures is measured against this file's time
            while not self._stop():
                self._submit()
                self._collect()
                self._commit()
                self._report()
                if self._first_rows.are_bad and self._engine.num_pending == 0:
                    self._shards.sync()
                    self._first_rows.check_run(self.prepared.finished, self._plan, self._directory.store.describe())
                if self._engine.num_pending == 0 and not self._find_work():
                    self._show_progress(at_end=True)
                    return self._exit_code()
            # The launcher may stop the other replicas as soon as one exits because all is done: then we are done, too.
            return self._limit.exit_code_of(self._stop) if self._shards.look_again() else self._exit_code()
        except Unavailable:
            lose_patience()
            if self._stop():
                return EXIT_STOPPED
            raise
        except OSError as error:
            raise JobError(
                f"{error.filename or self._directory.store.describe()}: {error.strerror or error}. Rows already on "
                "disk are safe; fix this and run the same command to continue."
            ) from error
        finally:
            self._leave()

    def _submit(self) -> None:
        """Keep the engine supplied with claimed rows, and claim more while this worker has less than its share."""
        with self._stopwatch.measure("data"):
            self._withdraw()
            while self._engine.num_pending < self._limit.max_pending(self._engine):
                if self._stop() or self._first_rows.are_bad or self._outage is not None:
                    return
                try:
                    request = self._shards.next_request()
                except Unavailable as error:
                    self._outage = error
                    return
                if request is not None:
                    self._shards.in_flight.submit(request, self._engine)
                elif self._shards.is_busy or self._engine.num_pending >= self._share() or not self._shards.claim():
                    return

    def _withdraw(self) -> None:
        """Take rows back that are not begun, if the limit is reached or another worker has nothing to do."""
        if self._limit.is_reached(self._shards.counts):
            self._shards.withdraw(self._engine)
        elif self._workers.num_idle() and (surplus := self._engine.num_pending - self._share()) > 0:
            self._shards.offer(self._engine, surplus)

    def _share(self) -> int:
        """Return the number of pending requests at which this worker stops claiming."""
        return self._workers.share(self._stats(), self._engine.min_pending, self._limit.max_pending(self._engine))

    def _collect(self) -> None:
        """Run one engine step, and deliver what it finished."""
        with self._stopwatch.measure("generate"), self._watchdog.watching():
            generations = self._engine.step()
        self._measured.stepped()
        if generations:
            with self._stopwatch.measure("data"):
                self._deliver(generations)
        with self._stopwatch.measure("write"):
            self._shards.in_flight.keep_if_due(self._engine)

    def _deliver(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            self._shards.in_flight.end(generation)
        prompts = self._shards.prompts_of([generation.request.key for generation in generations])
        texts = self.prepared.tokenizer.decode([generation.text_ids for generation in generations])
        prompt_texts = [None if prompt is None else prompt.text for prompt in prompts]
        prefills = ["" if prompt is None else prompt.prefill for prompt in prompts]
        completions = self._modes.complete(generations, texts, prompt_texts, prefills)
        settled = []
        for generation, completion, prompt in zip(generations, completions, prompts, strict=True):
            if (request := self._modes.again(generation.request, completion)) is None:
                settled.append(completion)
            else:
                self._shards.repeat(request, prompt)
        self._shards.add(settled)

    def _commit(self) -> None:
        """Make finished rows durable, and turn complete shards into parts."""
        with self._stopwatch.measure("write"):
            # Metrics first: the worker that sees the last part adds up the figures of all workers.
            self._shards.commit(before_part=lambda: self._metrics.write(self._stats()))
            if self._shards.fence.is_up:
                self._stop.request("--extend by another launch, after which the rows of this one do not count")

    def _find_work(self) -> bool:
        """Claim rows, or wait briefly for rows that are being read or that others hold. False once all are done."""
        if self._outage is not None:
            raise self._outage
        # One step can empty a full engine if its prompts are identical.
        if (request := self._shards.next_request()) is not None:
            self._shards.in_flight.submit(request, self._engine)
            return True
        self._shards.sync()
        if self._shards.reading.is_reading:
            self._wait()
            return True
        self._metrics.write_if_changed(self._stats())
        self._shards.exchange()
        if self._shards.claim(at_once=True):
            return True
        if self._shards.has_reached_limit and not self._workers.are_busy(self._launch_id):
            self._stop.request(self._limit.text)
            return True
        if not self._shards and not self._shards.look_again():
            return False
        self._wait()
        return True

    def _wait(self) -> bool:
        """Wait briefly, for the rows that are being read or else for other workers. True if a stop was requested."""
        self._engine.keep_alive()
        if self._shards.reading.is_waiting:
            with self._stopwatch.measure("waiting for rows"):
                return self._shards.reading.wait(self._shards.idle_secs, self._stop)
        with self._stopwatch.measure("waiting for other workers"):
            return self._stop.wait(self._shards.idle_secs)

    def _leave(self) -> None:
        """Release everything that is held. Journals keep the finished rows of unfinished shards."""
        self._watchdog.close()
        failure = sys.exc_info()[1]
        self._measured.left = (self._stop.signal_name or "stopped") if self._stop() else "done"
        if failure is not None:
            self._measured.left = shorten(redacted(str(failure)) or type(failure).__name__)
        try:
            with contextlib.suppress(Unavailable):
                self._shards.in_flight.keep(self._engine)
            self._shards.close()
            with contextlib.suppress(OSError, Unavailable):
                self._metrics.write(self._stats())
                self._live.show(self._figures, now=True)
        finally:
            with contextlib.suppress(OSError, Unavailable):
                self._leases.close()
            self._progress.close()

    def _exit_code(self) -> int:
        if not self.prepared.is_done:
            self._stop.request("job retry, which has marked rows in the meantime")
            return EXIT_STOPPED
        self._totals = conclude(self.prepared, self._leases, self._wait, by=self._launch_id)
        return exit_code_of(self._totals, self.prepared, self._progress.note)

    def summary(self) -> Summary:
        """Return the summary to print at the end of a finished run."""
        totals = self._totals
        others = [stats for stats in self._workers.others(refresh=True) if stats.launch_id == self._launch_id]
        return Summary(
            parts=f"{self.prepared.config.output.output}/{within(self._directory.names.part_dir, PART_PATTERN)}",
            num_parts=self._plan.num_shards,
            num_rows=totals.num_rows,
            num_samples=self._plan.num_samples,
            errors=totals.errors,
            first_errors=totals.first_errors,
            outcome=totals.lines(self.prepared.manifest),
            published=published_of(self._directory),
            num_prompt_tokens=totals.num_prompt_tokens,
            num_completion_tokens=totals.num_completion_tokens,
            num_launch_rows=self._shards.counts.num_rows + sum(stats.num_rows for stats in others),
            num_launch_tokens=self._measured.num_tokens + sum(stats.num_tokens for stats in others),
            num_launch_completion_tokens=self._shards.counts.num_completion_tokens
            + sum(stats.num_completion_tokens for stats in others),
            compute_secs=self._measured.elapsed_secs,
            secs=self._stopwatch.secs,
            total_secs=self._stopwatch.total_secs,
        )

    def _in_flight(self) -> list[int]:
        return sorted({request.row_idx for request in self._engine.in_flight})

    def of_launch(self) -> list[WorkerStats]:
        """Return the latest figures of the workers of this launch."""
        with contextlib.suppress(OSError, Unavailable):
            self._workers.others(refresh=True)
        return [self._stats(), *(each for each in self._workers.latest if each.launch_id == self._launch_id)]

    def _stats(self) -> WorkerStats:
        return self._measured.stats(self._shards)

    def _figures(self) -> Figures:
        return self._measured.figures(self._shards, self._workers.num_left)

    def _report(self) -> None:
        self._metrics.write_if_due(self._stats())
        self._live.show(self._figures)
        if self._progress.is_due():
            self._show_progress()
        elif not self._progress.is_enabled:
            self._shards.recent.clear()  # nobody will ask

    def _show_progress(self, *, at_end: bool = False) -> None:
        if not self._progress.is_enabled:
            return
        if at_end or self._workers.is_look_due:
            self._shards.recent.clear()  # the look finds their parts
            self._workers.look()
        own_counts = {**self._shards.recent, **self._shards.held}
        self._progress.show(self._workers.progress(self._stats(), own_counts))
        if self._latest is not None:
            self._progress.show_row(self._latest)

    def _watch(self, completion: Completion) -> None:
        """Look at a row that this worker has finished."""
        self._first_rows.add(completion)
        self._measured.finished(completion)
        if completion.error is None:
            self._latest = completion

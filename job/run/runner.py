"""The loop: rows from the source through prompts, tokenizer and engine into journal and parts.

    source -> prompts -> tokenizer -> engine -> tokenizer -> journal -> part

The only module that knows this order. Everything in it runs on a replica's leader; followers sit in
``Engine.follow`` and do what the leader's engine sends them.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from job.data.reader import SliceReader
from job.data.source import StreamSource
from job.engine.protocol import Engine
from job.errors import EXIT_STOPPED, JobError
from job.launch.stop import StopFlag
from job.observe.progress import Progress
from job.observe.stopwatch import Stopwatch
from job.observe.summary import Summary
from job.observe.watchdog import Heartbeat, Watchdog
from job.output.parts.counts import Counts
from job.output.parts.shard import OpenShard
from job.output.sharing.claims import Claim, Claims
from job.output.sharing.leases import Leases
from job.output.sharing.metrics import MetricsFile, OpenCounts, WorkerStats
from job.records import Completion, Generation, Request, RowBlock, SampleKey
from job.run.calibration import calibrate
from job.run.conclusion import conclude, exit_code_of
from job.run.first_rows import FirstRows
from job.run.preparation import Prepared
from job.run.workers import Workers

IDLE_SECS = 1.0
"""How often a worker that has nothing to do looks for a shard that a dead one has left."""

EXCHANGE_SECS = 5.0
"""How often a worker looks into the journals of those who help it."""


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
    ) -> None:
        """Hold nothing yet."""
        self._prepared, self._engine, self._stop = prepared, engine, stop
        self._progress, self._stopwatch = progress, stopwatch
        self._plan, self._directory = prepared.plan, prepared.directory
        self._worker_id, self._launch_id = str(prepared.worker), launch_id
        timeout_secs = prepared.settings.lease_timeout_secs
        self._leases = Leases(self._directory, prepared.worker, timeout_secs=timeout_secs)
        is_stream = isinstance(prepared.source, StreamSource)
        # To help from the end, a stream would have to be decoded up to there, for each slice anew.
        self._claims = Claims(self._directory, self._plan, self._leases, can_help=not is_stream)
        self._skips = not (is_stream and prepared.kept_columns)
        """Whether finished rows are left out: to come back for their kept columns, a stream would begin again."""
        self._reader = SliceReader(prepared.source, prepared.config.data.dataset)
        self._modes = prepared.modes
        self._open: dict[int, OpenShard] = {}
        self._feed: Iterator[Request] = iter(())
        self._prompts: dict[SampleKey, str | None] = {}
        self._counts, self._totals = Counts(), Counts()
        self._metrics = MetricsFile(self._directory.store, self._directory.names.metrics(self._worker_id))
        self._start = time.monotonic()
        stall_secs = prepared.config.engine.stall_timeout
        self._watchdog = Watchdog(stall_secs, heartbeat, lambda: sorted({r.row_idx for r in engine.in_flight}))
        self._workers = Workers(self._directory, self._plan, self._worker_id, num_replicas)
        self._first_rows = FirstRows(prepared.config.output.output)
        self._last_look = self._last_exchange = -IDLE_SECS

    def run(self) -> int:
        """Work until every row of the plan is in a part, or until asked to stop.

        Returns:
            The exit code.

        Raises:
            JobError: the disk, the dataset or the engine gave up. What was finished is in the journals.
        """
        try:
            self._modes = calibrate(self._prepared, self._engine, self._stop, self._watchdog)
            self._metrics.write(self._stats())  # its time is what the others' is compared with
            while not self._stop():
                self._submit()
                self._collect()
                self._commit()
                self._report()
                if self._engine.num_pending == 0 and not self._find_work():
                    self._progress.show(self._workers.progress(self._stats(), refresh=True))
                    return self._exit_code()
            # The launcher may stop the other replicas as soon as one has left, done: then we are done, too.
            return EXIT_STOPPED if self._claims.look_again() else self._exit_code()
        except OSError as error:
            raise JobError(
                f"{error.filename or self._directory.store.describe()}: {error.strerror or error}. Everything finished "
                "so far is safe; the same command continues once this is fixed."
            ) from error
        finally:
            self._leave()

    def _submit(self) -> None:
        """Keep the engine supplied from what is claimed, and claim more when this worker's share is smaller."""
        with self._stopwatch.measure("data"):
            while self._engine.num_pending < self._engine.max_pending and not self._stop():
                request = next(self._feed, None)
                if request is not None:
                    self._engine.submit(request)
                elif self._engine.num_pending >= self._share() or not self._open_next():
                    return

    def _share(self) -> int:
        """Return with how many pending requests this worker claims no more.

        Guided self-scheduling (Polychronopoulos and Kuck 1987): much at once while there is much, no more than the
        others have when the end comes near.
        """
        progress = self._workers.progress(self._stats())
        if self._workers.num_workers == 1:
            return self._engine.max_pending
        fair = -(-(progress.total_rows - progress.num_rows) // self._workers.num_workers)
        return max(1, min(self._engine.min_pending, fair), min(self._engine.max_pending, fair // 2))

    def _open_next(self) -> bool:
        """Claim rows and begin to feed from them. False if there are none to be had at the moment."""
        claim = self._claims.claim()
        if claim is None and time.monotonic() - self._last_look >= IDLE_SECS:
            self._last_look = time.monotonic()
            claim = self._claims.claim() if self._claims.look_again() else None
        for shard_idx in self._claims.held:
            self._open_shard(shard_idx)
        if claim is None:
            return False
        shard = self._open_shard(claim.shard_idx)
        shard.absorb()  # whoever had these rows before may have finished some
        self._feed = self._requests(shard, claim)
        return True

    def _open_shard(self, shard_idx: int) -> OpenShard:
        if shard_idx not in self._open:
            form = self._prepared.part_format
            self._open[shard_idx] = OpenShard(
                shard_idx, self._plan, self._directory, form, self._worker_id, self._progress.note
            )
        return self._open[shard_idx]

    def _requests(self, shard: OpenShard, claim: Claim) -> Iterator[Request]:
        """Yield what is left to compute of a claim; rows that never reach the engine are finished on the way."""
        prepared = self._prepared
        if self._skips and all(shard.has(key) for row in claim.rows for key in self._plan.keys_of_row(row)):
            return
        for block in self._read(shard, claim.rows, prepared.renderer.columns):
            shard.keep(block)
            rows = [row for row in block.rows if not all(map(shard.has, self._plan.keys_of_row(row.row_idx)))]
            prompts = [prepared.renderer.render(row) for row in rows]
            for encoded in prepared.tokenization.encode(prompts):
                for key in self._plan.keys_of_row(encoded.prompt.row_idx):
                    if shard.has(key):
                        continue
                    if encoded.request is None:
                        self._add(shard, encoded.completion(sample_idx=key[1]))
                    else:
                        self._prompts[key] = encoded.prompt.text
                        yield replace(encoded.request, sample_idx=key[1])

    def _read(self, shard: OpenShard, rows: range, columns: Sequence[str]) -> list[RowBlock]:
        return self._reader.read(rows, shard.rows.stop, columns, self._prepared.kept_columns)

    def _collect(self) -> None:
        """Let the engine work, and take what it finished."""
        with self._stopwatch.measure("generate"), self._watchdog.watching():
            generations = self._engine.step()
        if generations:
            with self._stopwatch.measure("data"):
                self._deliver(generations)
            self._first_rows.check(generations)

    def _deliver(self, generations: Sequence[Generation]) -> None:
        prompts = [self._prompts.pop(generation.request.key, None) for generation in generations]
        texts = self._prepared.tokenizer.decode([generation.token_ids for generation in generations])
        for completion in self._modes.complete(generations, texts, prompts):
            shard = self._open.get(completion.row_idx // self._plan.rows_per_shard)
            if shard is not None:  # else the shard was finished by others, whom this worker helped
                self._add(shard, completion)

    def _add(self, shard: OpenShard, completion: Completion) -> None:
        shard.add(completion)
        self._counts.add(completion)

    def _commit(self) -> None:
        """Make finished rows durable, and shards whose last row is there final."""
        with self._stopwatch.measure("write"):
            if time.monotonic() - self._last_exchange >= EXCHANGE_SECS:
                self._exchange()
            for shard_idx, shard in list(self._open.items()):
                shard.sync_if_due()
                if shard.is_complete and self._claims.holds(shard_idx):
                    self._finish(shard)

    def _finish(self, shard: OpenShard) -> None:
        for rows in shard.unread():
            for block in self._read(shard, rows, ()):
                shard.keep(block)
        self._metrics.write(self._stats())  # first: whoever sees the last part sums up all workers
        shard.finish()
        self._close(shard)

    def _close(self, shard: OpenShard) -> None:
        del self._open[shard.shard_idx]
        self._claims.leave(shard.shard_idx)

    def _exchange(self) -> None:
        """Take over what helpers have finished of this worker's shards, and leave others' shards that are final."""
        self._last_exchange = time.monotonic()
        for shard_idx, shard in list(self._open.items()):
            if self._claims.holds(shard_idx):
                shard.absorb()
            elif self._directory.is_done(shard_idx):
                shard.close()
                self._close(shard)

    def _find_work(self) -> bool:
        """Claim rows, or wait a little if other workers hold all that is left. False once everything is done."""
        if (request := next(self._feed, None)) is not None:  # one step has emptied a full engine: equal prompts can
            self._engine.submit(request)
            return True
        for shard in self._open.values():
            shard.sync()  # whom this worker helps waits for it
        self._metrics.write_if_changed(self._stats())
        self._exchange()
        self._last_look = -IDLE_SECS
        if self._open_next():
            return True
        if not self._open and not self._claims.look_again():
            return False
        self._wait()
        return True

    def _wait(self) -> bool:
        """Wait a little for other workers. True if a stop was requested."""
        self._engine.keep_alive()
        with self._stopwatch.measure("waiting for other workers"):
            return self._stop.wait(IDLE_SECS)

    def _leave(self) -> None:
        """Give back what is held. Journals keep the finished rows of unfinished shards."""
        self._watchdog.close()
        try:
            for shard in self._open.values():
                with contextlib.suppress(OSError):  # the disk that stopped the run may refuse this, too
                    shard.close()
            with contextlib.suppress(OSError):
                self._metrics.write(self._stats())
        finally:
            with contextlib.suppress(OSError):
                self._leases.close()
            self._progress.close()

    def _exit_code(self) -> int:
        if not self._prepared.is_done:
            self._stop.request("job retry, which has marked rows meanwhile")
            return EXIT_STOPPED
        self._totals = conclude(self._prepared, self._leases, self._wait)
        return exit_code_of(self._totals, self._prepared)

    def summary(self) -> Summary:
        """Return what to tell the user at the end of a run that is done."""
        totals = self._totals
        others = [stats for stats in self._workers.others(refresh=True) if stats.launch_id == self._launch_id]
        return Summary(
            output=self._prepared.config.output.output,
            num_parts=self._plan.num_shards,
            num_rows=totals.num_rows,
            errors=totals.errors,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_completion_tokens=totals.num_completion_tokens,
            num_launch_rows=self._counts.num_rows + sum(stats.num_rows for stats in others),
            num_launch_tokens=self._engine.num_computed_tokens + sum(stats.num_tokens for stats in others),
            compute_secs=time.monotonic() - self._start,
            secs=self._stopwatch.secs,
            total_secs=self._stopwatch.total_secs,
        )

    def _stats(self) -> WorkerStats:
        held = {idx: shard.counts for idx, shard in self._open.items() if self._claims.holds(idx)}
        return WorkerStats(
            worker_id=self._worker_id,
            launch_id=self._launch_id,
            time=time.time(),
            elapsed_secs=time.monotonic() - self._start,
            num_rows=self._counts.num_rows,
            num_open_rows=sum(counts.num_rows for counts in held.values()),
            num_errors=self._counts.num_errors,
            num_tokens=self._engine.num_computed_tokens,
            num_at_work=len({request.key for request in self._engine.in_flight}),
            open_shards=self._claims.held,
            open_counts={idx: OpenCounts(num_rows=c.num_rows, errors=dict(c.errors)) for idx, c in held.items()},
        )

    def _report(self) -> None:
        self._metrics.write_if_due(self._stats())
        if self._progress.is_due():
            self._progress.show(self._workers.progress(self._stats()))

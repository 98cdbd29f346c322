"""The loop: rows from the source through prompts, tokenizer and engine into journal and parts.

    source -> prompts -> tokenizer -> engine -> tokenizer -> journal -> part

The only module that knows this order. Everything in it runs on a replica's leader; followers sit in
``Engine.follow`` and do what the leader's engine sends them.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from job.data.source import read_rows
from job.engine.protocol import Engine
from job.errors import EXIT_DONE, EXIT_STOPPED, EXIT_TOO_MANY_ERRORS, JobError
from job.observe.metrics import Figures, MetricsFile, read_latest
from job.observe.progress import Position, Progress
from job.observe.stopwatch import Stopwatch
from job.observe.summary import Summary
from job.output.claims import Claims
from job.output.counts import Counts
from job.output.leases import Leases
from job.output.shard import OpenShard
from job.preparation import Prepared
from job.records import Completion, Generation, Request, SampleKey
from job.signals import StopFlag

IDLE_SECS = 1.0
"""How often a worker that has nothing to do looks for a shard that a dead one has left."""

OTHERS_SECS = 10.0
"""How often the other workers' figures are read for the progress."""


def read_totals(prepared: Prepared) -> Counts:
    """Return what the parts of a finished run hold, from their footers."""
    totals = Counts()
    for shard_idx in range(prepared.plan.num_shards):
        totals.add_part(prepared.paths.part(shard_idx))
    return totals


def exit_code_of(totals: Counts, prepared: Prepared) -> int:
    """Return the exit code of a finished run."""
    max_error_rate = prepared.config.output.max_error_rate
    return EXIT_TOO_MANY_ERRORS if totals.error_rate > max_error_rate else EXIT_DONE


class Runner:
    """One replica's work on a run, from claiming shards to naming parts."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Engine,
        stop: StopFlag,
        progress: Progress,
        stopwatch: Stopwatch,
        launch_id: str,
    ) -> None:
        """Hold nothing yet."""
        self._prepared, self._engine, self._stop = prepared, engine, stop
        self._progress, self._stopwatch = progress, stopwatch
        self._plan, self._paths = prepared.plan, prepared.paths
        self._worker_id, self._launch_id = str(prepared.worker), launch_id
        self._leases = Leases(self._paths, prepared.worker)
        self._claims = Claims(self._paths, self._plan, self._leases)
        self._open: dict[int, OpenShard] = {}
        self._feed: Iterator[Request] = iter(())
        self._prompts: dict[SampleKey, str | None] = {}
        self._counts, self._totals = Counts(), Counts()
        self._metrics = MetricsFile(self._paths.metrics(self._worker_id))
        self._start = time.monotonic()
        self._others: tuple[float, int, list[Figures]] = (-OTHERS_SECS, 0, [])

    def run(self) -> int:
        """Work until every row of the plan is in a part, or until asked to stop.

        Returns:
            The exit code.

        Raises:
            JobError: the disk, the dataset or the engine gave up. What was finished is in the journals.
        """
        try:
            while not self._stop():
                self._submit()
                self._collect()
                self._commit()
                self._report()
                if not self._open and self._engine.num_pending == 0 and not self._find_work():
                    self._progress.show(self._position(refresh=True))
                    return self._exit_code()
            # The launcher may stop the other replicas as soon as one has left, done: then we are done, too.
            return EXIT_STOPPED if self._open or self._claims.look_again() else self._exit_code()
        except OSError as error:
            raise JobError(
                f"{error.filename or self._paths.root}: {error.strerror or error}. Everything finished so far is safe; "
                "the same command continues once this is mended."
            ) from error
        finally:
            self._leave()

    def _submit(self) -> None:
        """Keep the engine supplied: rows of the shard at hand, then of the next shard that can be had.

        A further shard is claimed only when the engine would run short without it: the other replicas want some, too.
        """
        with self._stopwatch.measure("data"):
            while self._engine.num_pending < self._engine.max_pending and not self._stop():
                request = next(self._feed, None)
                if request is not None:
                    self._engine.submit(request)
                elif self._engine.num_pending >= self._engine.min_pending or not self._open_next_shard():
                    return

    def _open_next_shard(self) -> bool:
        """Claim a shard and begin to feed from it. False if there is none to be had at the moment."""
        shard_idx = self._claims.claim()
        if shard_idx is None:
            return False
        shard = OpenShard(shard_idx, self._plan, self._paths, self._prepared.part_format, self._worker_id)
        self._open[shard_idx] = shard
        self._feed = self._requests(shard)
        return True

    def _requests(self, shard: OpenShard) -> Iterator[Request]:
        """Yield what is left to compute of a shard; rows that never reach the engine are finished on the way."""
        prepared = self._prepared
        name = prepared.config.data.dataset
        for block in read_rows(prepared.source, name, shard.rows, prepared.renderer.columns, prepared.kept_columns):
            shard.keep(block)
            rows = [row for row in block.rows if not all(map(shard.has, self._plan.keys_of_row(row.row_idx)))]
            prompts = [prepared.renderer.render(row) for row in rows]
            for prompt, item in prepared.tokenization.encode(prompts):
                for row_idx, sample_idx in self._plan.keys_of_row(item.row_idx):
                    if shard.has((row_idx, sample_idx)):
                        continue
                    sample = replace(item, sample_idx=sample_idx)
                    if isinstance(sample, Completion):
                        self._add(shard, sample)
                    else:
                        self._prompts[sample.key] = prompt.text
                        yield sample

    def _collect(self) -> None:
        """Let the engine work, and take what it finished."""
        with self._stopwatch.measure("generate"):
            generations = self._engine.step()
        if generations:
            with self._stopwatch.measure("data"):
                self._deliver(generations)

    def _deliver(self, generations: Sequence[Generation]) -> None:
        prompts = [self._prompts.pop(generation.request.key) for generation in generations]
        for completion in self._prepared.tokenization.decode(generations, prompts):
            self._add(self._open[completion.row_idx // self._plan.rows_per_shard], completion)

    def _add(self, shard: OpenShard, completion: Completion) -> None:
        shard.add(completion)
        self._counts.add(completion)

    def _commit(self) -> None:
        """Make finished rows durable, and shards whose last row is there final."""
        with self._stopwatch.measure("write"):
            for shard_idx, shard in list(self._open.items()):
                shard.sync_if_due()
                if shard.is_complete:
                    self._metrics.write(self._figures())  # first: whoever sees the last part sums up all workers
                    shard.finish()
                    del self._open[shard_idx]
                    self._claims.release(shard_idx)

    def _find_work(self) -> bool:
        """Open a shard, or wait a little if other workers hold all that is left. False once everything is done."""
        if not self._claims.look_again():
            return False
        if self._open_next_shard():
            return True
        self._engine.keep_alive()
        with self._stopwatch.measure("waiting for other workers"):
            self._stop.wait(IDLE_SECS)
        return True

    def _leave(self) -> None:
        """Give back what is held. Journals keep the finished rows of unfinished shards."""
        try:
            for shard in self._open.values():
                with contextlib.suppress(OSError):  # the disk that stopped the run may refuse this, too
                    shard.close()
            with contextlib.suppress(OSError):
                self._metrics.write(self._figures())
        finally:
            with contextlib.suppress(OSError):
                self._leases.close()
            self._progress.close()

    def _exit_code(self) -> int:
        self._totals = read_totals(self._prepared)
        return exit_code_of(self._totals, self._prepared)

    def summary(self) -> Summary:
        """Return what to tell the user at the end of a run that is done."""
        totals = self._totals
        others = [figures for figures in self._read_others() if figures.launch_id == self._launch_id]
        return Summary(
            output=self._prepared.config.output.output,
            num_parts=self._plan.num_shards,
            num_rows=totals.num_rows,
            errors=totals.errors,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_completion_tokens=totals.num_completion_tokens,
            num_launch_rows=self._counts.num_rows + sum(figures.num_rows for figures in others),
            num_launch_tokens=self._engine.num_computed_tokens + sum(figures.num_tokens for figures in others),
            compute_secs=self._elapsed_secs,
            secs=self._stopwatch.secs,
            total_secs=self._stopwatch.total_secs,
        )

    @property
    def _elapsed_secs(self) -> float:
        return time.monotonic() - self._start

    def _figures(self) -> Figures:
        return Figures(
            worker_id=self._worker_id,
            launch_id=self._launch_id,
            time=time.time(),
            elapsed_secs=self._elapsed_secs,
            num_rows=self._counts.num_rows,
            num_open_rows=sum(shard.num_done for shard in self._open.values()),
            num_errors=self._counts.num_errors,
            num_tokens=self._engine.num_computed_tokens,
            open_shards=tuple(self._open),
        )

    def _report(self) -> None:
        self._metrics.write_if_due(self._figures())
        if self._progress.is_due():
            self._progress.show(self._position())

    def _position(self, refresh: bool = False) -> Position:
        """Add up this worker's figures of now and the other workers' latest."""
        # Of a worker that has just died, its shards may be ours by now: count no row twice.
        others = [f for f in self._read_others(refresh) if not self._open.keys() & set(f.open_shards)]
        workers = [*others, self._figures()]
        num_rows = self._others[1] + sum(figures.num_open_rows for figures in workers)
        return Position(
            num_rows=min(num_rows, self._plan.num_completions),
            total_rows=self._plan.num_completions,
            num_errors=sum(figures.num_errors for figures in workers),
            num_new_rows=sum(figures.num_rows for figures in workers),
            num_tokens=sum(figures.num_tokens for figures in workers),
            tokens_per_sec=sum(figures.num_tokens / max(figures.elapsed_secs, 1e-9) for figures in workers),
        )

    def _read_others(self, refresh: bool = False) -> list[Figures]:
        """Return the other workers' figures, and remember them and the finished rows for some seconds."""
        if refresh or time.monotonic() - self._others[0] >= OTHERS_SECS:
            rows_of_shards = (len(self._plan.rows(shard_idx)) for shard_idx in self._paths.done_shards())
            num_done_rows = sum(rows_of_shards) * self._plan.num_samples
            latest = read_latest(self._paths.metrics_dir.glob("*.jsonl"))
            others = [figures for figures in latest if figures.worker_id != self._worker_id]
            self._others = (time.monotonic(), num_done_rows, others)
        return self._others[2]

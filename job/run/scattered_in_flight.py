"""Rows in flight in random order. They are of all shards, and one log has them all: one a shard would be hundreds."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from job.engine.logits.endings import partial_of
from job.engine.protocol import Engine
from job.errors import Unavailable, explain
from job.output.parts.batch_log import BatchLog
from job.output.parts.cut_rows import make_cut_log
from job.output.parts.partials import PartialLog, PartialLogs, to_batch
from job.output.parts.plan import Plan
from job.output.store.directory import RunDirectory
from job.output.store.names import SCATTERED
from job.records import Generation, Partial, PartialKey, Request, SampleKey
from job.run.in_flight import TAKE_SECS, InFlight, longest


class ScatteredInFlight(InFlight):
    """The partial completions of one worker's rows: of all shards, and after ``settle_all`` of those that are open."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        worker_id: str,
        note: Callable[[str], None],
        *,
        is_on: bool,
        **options: Any,
    ) -> None:
        """See ``InFlight``. What others have left of all shards is read now: any row may be claimed."""
        super().__init__(directory, plan, worker_id, note, is_on=is_on, **options)
        self._is_mixed = True
        self._log_of_all: PartialLog | None = None
        self._cut_rows: dict[int, list[Partial]] = {}
        """Shard to completions that were cut and are not in its log yet."""
        self._cut_logs: dict[int, BatchLog] = {}
        self._begun: dict[PartialKey, Partial] = {}
        if is_on:
            shards = sorted(directory.shards_in_flight())
            self._begun = longest(*(PartialLogs(directory, idx).read("") for idx in shards), self._mixed.read(""))

    def _begun_of(self, request: Request) -> Partial | None:
        return self._begun.get(request.partial_key) if self._is_mixed else super()._begun_of(request)

    def end(self, generation: Generation) -> None:
        """See ``InFlight``."""
        if not self._is_mixed:
            return super().end(generation)
        self._has_begun = True
        request = generation.request
        self._begun.pop(request.partial_key, None)
        if self._log_of_all is not None:
            self._log_of_all.forget(request.partial_key)
        if self._is_on and (partial := partial_of(generation)) is not None:
            self._cut_rows.setdefault(self._plan.shard_of(request.row_idx), []).append(partial)

    def keep(self, engine: Engine) -> None:
        """See ``InFlight``."""
        if not (self._is_on and self._is_mixed):
            return super().keep(engine)
        self._has_begun |= engine.num_pending > 0
        self._tell_resumed()
        try:
            self._keep_all(engine)
            self.append_cut()
            self._has_failed = False
        except OSError as error:
            self._tell_failure(error)
            self._has_failed = True
        self._last = time.monotonic()

    def _keep_all(self, engine: Engine) -> None:
        log = self._log_of_all
        if partials := engine.partials({} if log is None else log.known):
            if log is None:
                self._log_of_all = log = PartialLog(self._directory, SCATTERED, self._worker_id)
            log.append(partials)
        if log is not None and log.is_mostly_garbage:
            log.replace(engine.partials({}))

    def append_cut(self) -> None:
        """Put what was cut where the worker finds it that writes its shard's part."""
        while self._cut_rows:
            shard_idx, partials = self._cut_rows.popitem()
            if shard_idx not in self._cut_logs:
                self._cut_logs[shard_idx] = make_cut_log(self._directory, shard_idx, self._worker_id)
            self._cut_logs[shard_idx].append(to_batch(partials))
            self._cut_logs[shard_idx].rest()

    def take_over_if_due(self, is_finished: Callable[[SampleKey], bool]) -> None:
        """Remove the logs of dead workers, once all that they have is finished or in our own. Otherwise each launch of
        a run that is killed again and again would leave one more. If it fails, they stay.

        Args:
            is_finished: whether a completion is in a journal.
        """
        # Once shards are written, a new log could outlive the sweep at the end of the run.
        if not (self._is_on and self._is_mixed) or time.monotonic() - self._last_taken < TAKE_SECS:
            return
        self._last_taken = time.monotonic()
        try:
            self._take_all(is_finished)
        except OSError as error:
            self._note(f"what dead workers have left of rows in flight stays as it is: {explain(error)}")

    def _take_all(self, is_finished: Callable[[SampleKey], bool]) -> None:
        self._begun = {key: partial for key, partial in self._begun.items() if not is_finished(key[:2])}
        log = self._log_of_all
        self._mixed.read("" if log is None else log.name)
        if not (names := self._mixed.silent(self._timeout_secs)):
            return
        if log is None:
            self._log_of_all = log = PartialLog(self._directory, SCATTERED, self._worker_id)
        for key in [key for key in log.known if is_finished(key[:2])]:
            log.forget(key)  # of rows that were taken over, and that others have finished
        log.append([each for each in self._mixed.take(names, log.known) if not is_finished(each.key[:2])])
        self._mixed.remove(names)

    def settle_all(self) -> None:
        """From now on, rows are claimed shard by shard."""
        self._close_all()
        self._is_mixed = False

    def close(self) -> None:
        """See ``InFlight``."""
        with contextlib.suppress(OSError, Unavailable):
            self._close_all()
        super().close()

    def _close_all(self) -> None:
        self.append_cut()
        while self._cut_logs:
            self._cut_logs.popitem()[1].close()
        log, self._log_of_all = self._log_of_all, None
        if log is not None:
            log.close()

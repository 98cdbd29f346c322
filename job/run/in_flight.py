"""Rows in flight: what they have so far is kept every few seconds, and after a kill they go on there.

engine -> Partial -> a log beside the journal ... a log of an earlier launch -> Partial -> the row's request
"""

import contextlib
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace

from job.engine.logits.endings import partial_of
from job.engine.protocol import Engine
from job.errors import Unavailable, first_line
from job.output.parts.batch_log import BatchLog
from job.output.parts.cut_rows import make_cut_log, read_cut_rows, settle_cut_rows
from job.output.parts.partials import PartialLog, PartialLogs, to_batch
from job.output.parts.plan import Plan
from job.output.parts.shard import JOURNAL_SYNC_SECS, OpenShard
from job.output.store.directory import RunDirectory
from job.records import Generation, Partial, PartialKey, Request
from job.tasks import Generate, Score


class InFlight:
    """The partial completions of one worker's rows."""

    def __init__(
        self, directory: RunDirectory, plan: Plan, worker_id: str, note: Callable[[str], None], *, is_on: bool
    ) -> None:
        """Keep nothing and go on with nothing if this is off."""
        self._directory, self._plan, self._worker_id, self._note, self._is_on = directory, plan, worker_id, note, is_on
        self._logs: dict[int, PartialLog] = {}
        self._left: dict[int, PartialLogs] = {}
        self._begun: dict[int, Mapping[PartialKey, Partial]] = {}
        """Shard to what its rows have, as it was last read."""
        self._cut: dict[int, list[Partial]] = {}
        """Shard to completions that were cut and are not in its log yet."""
        self._cut_logs: dict[int, BatchLog] = {}
        self._secs = max(JOURNAL_SYNC_SECS, directory.store.pause_secs)
        self._last = time.monotonic()
        self._num_resumed = self._num_tokens = 0
        self._has_failed = False

    def look(self, shard: OpenShard) -> None:
        """Read what others have left of a shard: rows of it are claimed."""
        if self._is_on:
            shard_idx = shard.shard_idx
            left = self._left.setdefault(shard_idx, PartialLogs(self._directory, shard_idx))
            own = self._logs.get(shard_idx)
            before = self._begun.get(shard_idx)
            if before is None:  # what was cut by a limit goes on under a larger one, if nothing else has changed
                is_longer = shard.changes.keys() == {"max_new_tokens"}
                before = read_cut_rows(self._directory, shard_idx) if is_longer else {}
            self._begun[shard_idx] = {**before, **left.read("" if own is None else own.name)}

    def resumed(self, request: Request) -> Request:
        """Return a request with what there is of its completion."""
        begun = self._begun.get(self._plan.shard_of(request.row_idx), {})
        partial = begun.get(request.partial_key)
        if partial is None or len(partial.token_ids) >= _most_tokens(request):
            return request
        self._num_resumed += 1
        self._num_tokens += len(partial.token_ids)
        return replace(request, begun=partial)

    def end(self, generation: Generation) -> None:
        """A request has been completed. If its limit has cut it, its tokens are kept."""
        request, shard_idx = generation.request, self._plan.shard_of(generation.request.row_idx)
        if (log := self._logs.get(shard_idx)) is not None:
            log.forget(request.partial_key)
        if self._is_on and (partial := partial_of(generation)) is not None:
            self._cut.setdefault(shard_idx, []).append(partial)

    def keep_if_due(self, engine: Engine) -> None:
        """Keep what the engine's rows have, if it is some seconds since that was done."""
        if self._is_on and time.monotonic() - self._last >= self._secs:
            self.keep(engine)

    def keep(self, engine: Engine) -> None:
        """Keep what the engine's rows have so far. If that cannot be written, the run goes on without it."""
        if not self._is_on:
            return
        self._tell_resumed()
        known = ChainMap(*(log.known for log in self._logs.values()))
        by_shard: dict[int, list[Partial]] = {}
        for partial in engine.partials(known):
            by_shard.setdefault(self._plan.shard_of(partial.row_idx), []).append(partial)
        try:
            for shard_idx, partials in by_shard.items():
                self._log(shard_idx).append(partials)
            self._replace_garbage(engine)
            for shard_idx in list(self._cut):
                self._append_cut(shard_idx)
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                self._note(
                    f"what rows in flight have so far cannot be kept, so a kill would lose it: {first_line(error)}"
                )
            self._has_failed = True
        self._last = time.monotonic()

    def close(self) -> None:
        """Close all logs. They stay: another launch goes on there."""
        for shard_idx in {*self._logs, *self._cut, *self._cut_logs}:
            with contextlib.suppress(OSError, Unavailable):
                self.leave(shard_idx)

    def settle(self, shard: OpenShard) -> None:
        """Close the logs of a shard that is complete, and put what was cut of it where it stays."""
        self.leave(shard.shard_idx)
        if self._is_on:
            settle_cut_rows(self._directory, shard.shard_idx, shard.cut)

    def leave(self, shard_idx: int) -> None:
        """Close a shard's logs."""
        self._append_cut(shard_idx)
        if (cut_log := self._cut_logs.pop(shard_idx, None)) is not None:
            cut_log.close()
        self._left.pop(shard_idx, None)
        self._begun.pop(shard_idx, None)
        log = self._logs.pop(shard_idx, None)
        if log is not None:
            log.close()

    def _log(self, shard_idx: int) -> PartialLog:
        if shard_idx not in self._logs:
            self._logs[shard_idx] = PartialLog(self._directory, shard_idx, self._worker_id)
        return self._logs[shard_idx]

    def _append_cut(self, shard_idx: int) -> None:
        if partials := self._cut.pop(shard_idx, None):
            if shard_idx not in self._cut_logs:
                self._cut_logs[shard_idx] = make_cut_log(self._directory, shard_idx, self._worker_id)
            self._cut_logs[shard_idx].append(to_batch(partials))

    def _replace_garbage(self, engine: Engine) -> None:
        wasteful = {shard_idx: log for shard_idx, log in self._logs.items() if log.is_mostly_garbage}
        if not wasteful:
            return
        partials = engine.partials({})
        for shard_idx, log in wasteful.items():
            log.replace([partial for partial in partials if self._plan.shard_of(partial.row_idx) == shard_idx])

    def _tell_resumed(self) -> None:
        if self._num_resumed:
            rows = "row goes" if self._num_resumed == 1 else "rows go"
            self._note(
                f"{self._num_resumed:,} {rows} on where an earlier launch had stopped: {self._num_tokens:,} tokens are "
                "not generated again"
            )
            self._num_resumed = self._num_tokens = 0


def _most_tokens(request: Request) -> int:
    """Return how many tokens may be generated for a request."""
    task = request.task.reason if isinstance(request.task, Score) else request.task
    return task.params.max_new_tokens if isinstance(task, Generate) else 0

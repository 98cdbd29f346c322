"""Rows in flight: what they have so far is kept every few seconds, and after a kill they go on there.

engine -> Partial -> a log beside the journal ... a log of an earlier launch -> Partial -> the row's request
"""

import contextlib
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from job.engine.logits.endings import partial_of
from job.engine.model.kinds import ENCODER_DECODER
from job.engine.protocol import Engine
from job.errors import Unavailable, explain
from job.output.parts.batch_log import BatchLog
from job.output.parts.cut_rows import make_cut_log, read_cut_rows, settle_cut_rows
from job.output.parts.partials import PartialLog, PartialLogs, to_batch
from job.output.parts.plan import Plan
from job.output.parts.shard import JOURNAL_SYNC_SECS, OpenShard
from job.output.sharing.settings import LEASE_TIMEOUT_SECS
from job.output.store.directory import RunDirectory
from job.output.store.names import SCATTERED
from job.records import Generation, Partial, PartialKey, Request
from job.run.preparation import Prepared
from job.tasks import Generate, Score

TAKE_SECS = 15.0
"""How often a worker looks for logs of dead ones, which takes a few requests to the store."""

TELL_SECS = 30.0
"""How often at most a line says which rows have gone on where they were: they begin one after the other."""


@dataclass(slots=True)
class OpenLogs:
    """What there is of one open shard's rows in flight."""

    shard: OpenShard
    left: PartialLogs
    """The logs of others."""
    begun: Mapping[PartialKey, Partial]
    """What rows have of it, as it was last read."""
    log: PartialLog | None = None
    """This worker's."""
    cut: list[Partial] = field(default_factory=list)
    """Completions that were cut and are not in ``cut_log`` yet."""
    cut_log: BatchLog | None = None

    @property
    def is_as_asked(self) -> bool:
        """Whether its rows are drawn as those of the run, but for a limit that ``job retry`` has raised."""
        return self.shard.changes.keys() <= {"max_new_tokens"}

    @property
    def own_name(self) -> str:
        """The name of this worker's log."""
        return "" if self.log is None else self.log.name


class InFlight:
    """The partial completions of one worker's rows."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        worker_id: str,
        note: Callable[[str], None],
        *,
        is_on: bool,
        holds: Callable[[int], bool] = lambda _: True,
        lease_timeout_secs: float = LEASE_TIMEOUT_SECS,
    ) -> None:
        """Keep nothing and go on with nothing if this is off.

        Args:
            holds: whether this worker holds a shard, so that it is the one that takes dead workers' logs over.
            lease_timeout_secs: a worker that has been silent for so long is dead.
        """
        self._directory, self._plan, self._worker_id, self._note, self._is_on = directory, plan, worker_id, note, is_on
        self._holds, self._timeout_secs = holds, lease_timeout_secs
        self._open: dict[int, OpenLogs] = {}
        self._secs = max(JOURNAL_SYNC_SECS, directory.store.pause_secs)
        self._last, self._last_taken, self._last_told = time.monotonic(), -TAKE_SECS, -TELL_SECS
        self._num_resumed = self._num_tokens = 0
        self._has_begun = False
        """Whether the engine has taken any request: without a model, it refuses the first one."""
        self._has_failed = False
        self._mixed = PartialLogs(directory, SCATTERED)
        """What launches in random order have left, which keep rows of all shards in one log."""

    @classmethod
    def of(cls, prepared: Prepared, note: Callable[[str], None], holds: Callable[[int], bool]) -> Self:
        """Make what one worker of a run needs."""
        return cls(
            prepared.directory,
            prepared.plan,
            str(prepared.worker),
            note,
            is_on=prepared.config.output.journal_in_flight and prepared.model_info.kind is not ENCODER_DECODER,
            holds=holds,
            lease_timeout_secs=prepared.settings.lease_timeout_secs,
        )

    def look(self, shard: OpenShard) -> None:
        """Read what others have left of a shard: rows of it are claimed."""
        if not self._is_on:
            return
        shard_idx = shard.shard_idx
        if shard_idx not in self._open:
            # What was cut by a limit goes on under a larger one, if nothing else has changed.
            is_longer = shard.changes.keys() == {"max_new_tokens"}
            before = read_cut_rows(self._directory, shard_idx) if is_longer else {}
            self._open[shard_idx] = OpenLogs(shard, PartialLogs(shard.directory, shard_idx), before)
        logs = self._open[shard_idx]
        # They stay until the end of the run, so a retry with other options may find there what the run's have drawn.
        mixed = self._mixed.read("") if logs.is_as_asked else {}
        logs.begun = longest(logs.begun, mixed, logs.left.read(logs.own_name))

    def resumed(self, request: Request) -> Request:
        """Return a request with what there is of its completion."""
        partial = self._begun_of(request)
        if partial is None or len(partial.token_ids) >= _most_tokens(request):
            return request
        self._num_resumed += 1
        self._num_tokens += len(partial.token_ids)
        return replace(request, begun=partial)

    def submit(self, request: Request, engine: Engine) -> None:
        """Give a request to an engine. If it does not take it (without a model, none does), nothing goes on there."""
        try:
            engine.submit(request)
        except BaseException:
            if request.begun is not None:
                self._num_resumed -= 1
                self._num_tokens -= len(request.begun.token_ids)
            raise

    def _begun_of(self, request: Request) -> Partial | None:
        logs = self._open.get(self._plan.shard_of(request.row_idx))
        return None if logs is None else logs.begun.get(request.partial_key)

    def end(self, generation: Generation) -> None:
        """A request has been completed. If its limit has cut it, its tokens are kept."""
        self._has_begun = True
        request = generation.request
        if (logs := self._open.get(self._plan.shard_of(request.row_idx))) is not None:
            if logs.log is not None:
                logs.log.forget(request.partial_key)
            if logs.is_as_asked and (partial := partial_of(generation)) is not None:
                logs.cut.append(partial)

    def keep_if_due(self, engine: Engine) -> None:
        """Keep what the engine's rows have, if it is some seconds since that was done."""
        if self._is_on and time.monotonic() - self._last >= self._secs:
            self.keep(engine)

    def keep(self, engine: Engine) -> None:
        """Keep what the engine's rows have so far. If that cannot be written, the run goes on without it."""
        if not self._is_on:
            return
        self._has_begun |= engine.num_pending > 0
        self._tell_resumed()
        known = ChainMap(*(logs.log.known for logs in self._open.values() if logs.log is not None))
        by_shard: dict[int, list[Partial]] = {}
        for partial in engine.partials(known):
            by_shard.setdefault(self._plan.shard_of(partial.row_idx), []).append(partial)
        has_failed = False
        for shard_idx, logs in list(self._open.items()):
            try:
                self._keep(logs, by_shard.get(shard_idx, []), engine)
            except FileNotFoundError:  # on a network file system: another worker has finished or taken over the shard
                del self._open[shard_idx]
            except OSError as error:
                if not has_failed:
                    self._tell_failure(error)
                has_failed = True
        self._has_failed = has_failed
        now = time.monotonic()
        self._last_taken = now if self._is_take_due else self._last_taken
        self._last = now

    def _keep(self, logs: OpenLogs, partials: list[Partial], engine: Engine) -> None:
        """Write what is new of a shard. (What another worker has finished by now is in the engine, but not open.)"""
        if partials:
            self._log(logs).append(partials)
        if logs.log is not None and logs.log.is_mostly_garbage:
            logs.shard.sync()  # the tokens of rows that are done go only once these are safe
            shard_idx = logs.shard.shard_idx
            logs.log.replace([each for each in engine.partials({}) if self._plan.shard_of(each.row_idx) == shard_idx])
        if self._is_take_due and self._holds(logs.shard.shard_idx):
            self._take_over(logs)
        self._append_cut(logs)

    @property
    def _is_take_due(self) -> bool:
        return time.monotonic() - self._last_taken >= TAKE_SECS

    def _take_over(self, logs: OpenLogs) -> None:
        """Remove the logs of dead workers, once all that they have is done or in our own. Otherwise each launch of a
        run that is killed again and again would leave one more."""
        if not (names := logs.left.silent(self._timeout_secs)):
            return
        own = self._log(logs)
        own.append([each for each in logs.left.take(names, own.known) if not logs.shard.has(each.key[:2])])
        logs.shard.sync()
        logs.left.remove(names)

    def close(self) -> None:
        """Close all logs. They stay: another launch goes on there."""
        self._last_told = -TELL_SECS
        self._tell_resumed()
        for shard_idx in list(self._open):
            with contextlib.suppress(OSError, Unavailable):
                self.leave(shard_idx)

    def settle(self, shard: OpenShard) -> None:
        """Close the logs of a shard that is complete, and put what was cut of it where it stays."""
        self.leave(shard.shard_idx)
        if self._is_on:
            settle_cut_rows(shard.directory, shard.shard_idx, shard.cut)

    def leave(self, shard_idx: int) -> None:
        """Close a shard's logs."""
        if (logs := self._open.pop(shard_idx, None)) is not None:
            self._append_cut(logs)
            for log in (logs.cut_log, logs.log):
                if log is not None:
                    log.close()

    def _log(self, logs: OpenLogs) -> PartialLog:
        if logs.log is None:
            logs.log = PartialLog(logs.shard.directory, logs.shard.shard_idx, self._worker_id)
        return logs.log

    def _append_cut(self, logs: OpenLogs) -> None:
        if logs.cut:
            if logs.cut_log is None:
                logs.cut_log = make_cut_log(logs.shard.directory, logs.shard.shard_idx, self._worker_id)
            partials, logs.cut = logs.cut, []
            logs.cut_log.append(to_batch(partials))

    def _tell_failure(self, error: OSError) -> None:
        """Say that nothing can be kept, unless the last attempt has failed, too."""
        if not self._has_failed:
            self._note(f"what rows in flight have so far cannot be kept, so a kill would lose it: {explain(error)}")

    def _tell_resumed(self) -> None:
        if self._has_begun and self._num_resumed and time.monotonic() - self._last_told >= TELL_SECS:
            self._last_told = time.monotonic()
            rows = "row goes" if self._num_resumed == 1 else "rows go"
            self._note(
                f"{self._num_resumed:,} {rows} on where an earlier launch had stopped: {self._num_tokens:,} tokens are "
                "not generated again"
            )
            self._num_resumed = self._num_tokens = 0


def longest(*logs: Mapping[PartialKey, Partial]) -> dict[PartialKey, Partial]:
    """Return the longest that there is of each completion."""
    found: dict[PartialKey, Partial] = {}
    for key, partial in (item for log in logs for item in log.items()):
        if key not in found or found[key].end < partial.end:
            found[key] = partial
    return found


def _most_tokens(request: Request) -> int:
    """Return how many tokens may be generated for a request."""
    task = request.task.reason if isinstance(request.task, Score) else request.task
    return task.params.max_new_tokens if isinstance(task, Generate) else 0

"""The shards that one worker works on: from a claim to requests, and from completions to parts.

claim -> source -> prompts -> tokenizer -> requests ... completions -> journal -> part
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from job.data.row_keys import key_of
from job.engine.protocol import Engine
from job.errors import Unavailable
from job.output.parts.counts import Counts
from job.output.parts.fence import FencedOff
from job.output.parts.part_tables import ReusedRows
from job.output.parts.shard import OpenShard
from job.output.sharing.claims import Claim, Claims
from job.output.sharing.leases import Leases
from job.records import Completion, Prompt, Request, SampleKey
from job.run.changed_requests import changed
from job.run.fence_watch import FenceWatch
from job.run.finishing import Finishing, describe_lost_rows
from job.run.in_flight import InFlight
from job.run.preparation import Prepared
from job.run.shard_reading import ShardReading
from job.run.stopping import Limit
from job.run.surplus import withdraw

IDLE_SECS = 1.0
"""How often an idle worker looks for a shard that a dead worker has left; less often if the store asks for it."""

EXCHANGE_SECS = 5.0
"""How often a worker reads the journals of the workers that help it; less often if the store asks for it."""


class OpenShards:
    """The shards that this worker has claimed rows of: its own shards, and slices of other workers' shards."""

    kind_in_flight: type[InFlight] = InFlight

    def __init__(
        self,
        prepared: Prepared,
        leases: Leases,
        note: Callable[[str], None],
        watch: Callable[[Completion], None] = lambda _: None,
        limit: Limit | None = None,
    ) -> None:
        """Claim through ``leases`` up to a limit, print notes for the user through ``note``, and pass each row that
        this worker finishes to ``watch``."""
        self._prepared, self._note, self._watch = prepared, note, watch
        self._limit = limit or Limit(prepared)
        self._plan, self._directory = prepared.plan, prepared.directory
        self._worker_id = str(prepared.worker)
        self._claims = Claims(self._directory, self._plan, leases, self._limit.num_rows)
        self.reading = ShardReading(prepared)
        self._open: dict[int, OpenShard] = {}
        self._feed: Iterator[Request | None] = iter(())
        self._repeated: deque[Request] = deque()
        """Further attempts at rows."""
        self._prompts: dict[SampleKey, Prompt] = {}
        self.in_flight = self.kind_in_flight.of(prepared, note, self._claims.holds)
        pause_secs = self._directory.store.pause_secs
        self.idle_secs = max(IDLE_SECS, pause_secs / 6)
        """How long to wait for other workers before the next look."""
        self._exchange_secs = max(EXCHANGE_SECS, pause_secs)
        self._last_look = self._last_exchange = -self.idle_secs
        self.fence = FenceWatch(prepared, self._exchange_secs)
        self.counts = prepared.counts
        """The rows that this worker has finished."""
        self.recent: dict[int, Counts] = {}
        """What is in the parts that this worker has written since this was last cleared."""

    def __bool__(self) -> bool:
        """Whether any shard is open."""
        return bool(self._open)

    @property
    def held(self) -> dict[int, Counts]:
        """The shards whose parts this worker will write, and what is finished of each."""
        return {idx: shard.counts for idx, shard in self._open.items() if self._claims.holds(idx)}

    @property
    def num_open_rows(self) -> int:
        """About how many finished rows are in no part yet, as far as other workers do not count them."""
        return sum(counts.num_rows for counts in self.held.values())

    @property
    def has_reached_limit(self) -> bool:
        """Whether it is the limit that leaves nothing to claim. What other workers have of its rows is waited for: they
        may be dead, and their rows free in a while."""
        is_limited = self._limit.is_reached(self.counts) or self._limit.has_all_rows()
        return is_limited and not any(map(self._is_due, self._open))

    @property
    def held_idx(self) -> tuple[int, ...]:
        """The same shards, plus those that are claimed but not open yet."""
        return self._claims.held

    def look_again(self) -> bool:
        """List again what is left to do in the run. False: every shard is final."""
        return self._claims.look_again()

    def next_request(self) -> Request | None:
        """Return the next request: one that is repeated, or one of the latest claim. None if there is none, or if its
        row is not there yet."""
        while self._repeated:
            request = self._repeated.popleft()
            shard = self._shard_of(request.row_idx)
            if shard is not None and not shard.has(request.key):
                return request
            self._prompts.pop(request.key, None)
        if self._limit.is_reached(self.counts):
            self._feed = iter(())
            self.reading.leave()
        return next(self._feed, None)

    def withdraw(self, engine: Engine) -> None:
        """Leave the rows that the engine has not begun to the next launch."""
        withdraw(engine, self._prompts)

    def offer(self, engine: Engine, num_requests: int) -> None:
        """Offer the last requests that the engine has not begun to workers that have none."""
        rows = withdraw(engine, self._prompts, num_requests // self._plan.num_samples)
        self._claims.offer([row_idx for row_idx in rows if self._shard_of(row_idx) is not None])

    def repeat(self, request: Request, prompt: Prompt | None) -> None:
        """Take a request again, with the prompt that ``prompts_of`` has returned."""
        self._repeated.append(self.in_flight.resumed(replace(request, begun=None)))
        if prompt is not None:
            self._prompts[request.key] = prompt

    def _shard_of(self, row_idx: int) -> Finishing | None:
        """Return the open shard of a row; None if the worker that this one helped has finished the shard."""
        return self._open.get(self._plan.shard_of(row_idx))

    @property
    def is_busy(self) -> bool:
        """Whether the latest claim is not through: its rows are not there yet, or all of its shard is there, which
        waits for ``commit``. Until then, no other shard is opened: each has its rows in memory, and many may have been
        there already."""
        return self.reading.is_reading or any(map(self._is_due, self._open))

    def claim(self, *, at_once: bool = False) -> bool:
        """Claim rows and start making requests from them. False if none are available at the moment, or the launch is
        not to begin any more.

        Args:
            at_once: look for rows that dead workers have left, even if the last look was just now.
        """
        if self._limit.is_reached(self.counts):
            return False
        claim = self._claims.claim()
        if claim is None and (at_once or time.monotonic() - self._last_look >= self.idle_secs):
            self._last_look = time.monotonic()
            claim = self._claims.claim() if self._claims.look_again() else None
        for shard_idx in self._claims.held:
            self._shard(shard_idx)
        if claim is None:
            return False
        shard = self._shard(claim.shard_idx)
        shard.absorb()  # a previous worker may have finished some of these rows
        if self._is_due(claim.shard_idx):
            self._claims.skip(claim.shard_idx)
        self._feed = self._requests(shard, claim)
        return True

    def prompts_of(self, keys: Sequence[SampleKey]) -> list[Prompt | None]:
        """Return the prompts of finished requests, and forget them."""
        return [self._prompts.pop(key, None) for key in keys]

    def add(self, completions: Sequence[Completion]) -> None:
        """Add finished rows to their shards."""
        for completion in completions:
            if (shard := self._shard_of(completion.row_idx)) is not None:
                self._add(shard, completion)

    def commit(self, before_part: Callable[[], None]) -> None:
        """Make finished rows durable, and turn complete shards into parts.

        Args:
            before_part: called before each part gets its name.
        """
        if time.monotonic() - self._last_exchange >= self._exchange_secs:
            self.exchange()
        for shard in self._open.values():
            shard.sync_if_due()
        for shard_idx, shard in list(self._open.items()):
            if self._is_due(shard_idx):
                if not self.reading.has_kept_columns(shard):
                    return  # the reader reads for one shard at a time
                self._finish(shard, before_part)

    def sync(self) -> None:
        """Make all finished rows durable now: a worker that this one helps may be waiting for them."""
        for shard in self._open.values():
            shard.sync()

    def exchange(self) -> None:
        """Read what helpers have finished of this worker's shards, and leave shards that are final: also one of its own
        that others have finished while it was frozen. What it had offered of that is in no journal any more."""
        self._last_exchange = time.monotonic()
        for shard_idx, shard in list(self._open.items()):
            if self._claims.holds(shard_idx):
                shard.absorb()
            if not self._is_due(shard_idx) and self._directory.is_done(shard_idx):
                shard.close()
                self.in_flight.leave(shard_idx)
                self._close(shard)

    def close(self) -> None:
        """Leave all shards. Journals keep the finished rows of unfinished ones."""
        self.reading.close()
        with contextlib.suppress(OSError, Unavailable):
            self._claims.close()
        self.in_flight.close()
        for shard in self._open.values():
            try:
                shard.close()
            except (OSError, Unavailable) as error:  # what stopped the run may refuse this, too
                self._note(describe_lost_rows(error, f" of shard {shard.shard_idx}"))

    def _is_due(self, shard_idx: int) -> bool:
        """Whether this worker is to write the part of a shard now."""
        return self._open[shard_idx].is_complete and self._claims.holds(shard_idx)

    def _shard(self, shard_idx: int) -> OpenShard:
        if shard_idx not in self._open:
            form = self._prepared.part_format
            self._open[shard_idx] = OpenShard(
                *(shard_idx, self._plan, self._directory, form, self._worker_id, self._note, self._copied),
                own_changes=self._prepared.changes_of_moved(shard_idx),
            )
        return self._open[shard_idx]

    def _copied(self, shard_idx: int) -> ReusedRows | None:
        copies = self._prepared.copies
        return None if copies is None else copies.of(shard_idx, self._note)

    def _requests(self, shard: OpenShard, claim: Claim) -> Iterator[Request | None]:
        """Yield the requests that a claim still needs, and None while its rows are not there yet.

        Rows that need no engine, such as errors, are finished here.
        """
        prepared = self._prepared
        wanted = claim.rows if claim.only is None else claim.only
        if not any(self._lacks(shard, row_idx) for row_idx in wanted):
            return
        self.in_flight.look(shard)
        until = self.reading.until(shard, claim, is_held=self._claims.holds(shard.shard_idx))
        while (blocks := self.reading.read(claim, until)) is None:
            yield None
        for block in blocks:
            shard.keep(block)
            rows = [row for row in block.rows if row.row_idx in wanted and self._lacks(shard, row.row_idx)]
            for row in rows:
                shard.identify(row.row_idx, key_of(row, prepared.renderer.read_columns))
            prompts = [prepared.renderer.render(row) for row in rows]
            for encoded in prepared.tokenization.encode(prompts):
                for key in self._plan.keys_of_row(encoded.prompt.row_idx):
                    if shard.has(key) or key in self._prompts:
                        continue
                    if encoded.request is None:
                        self._add(shard, encoded.completion(sample_idx=key[1]))
                    else:
                        self._prompts[key] = encoded.prompt
                        request = replace(encoded.request, sample_idx=key[1])
                        request = changed(request, shard.changes_of(key[0]), prepared.model_info.room_for_answer)
                        yield self.in_flight.resumed(request)

    def _lacks(self, shard: OpenShard, row_idx: int) -> bool:
        """Whether some completion of a row is not finished, nor in the engine, whose rows may be claimed once more."""
        return not all(shard.has(key) or key in self._prompts for key in self._plan.keys_of_row(row_idx))

    def _add(self, shard: Finishing, completion: Completion) -> None:
        shard.add(completion)
        self.counts.add(completion)
        self._watch(completion)

    def _finish(self, shard: OpenShard, before_part: Callable[[], None]) -> None:
        before_part()
        if self.fence.look():
            return
        try:
            self.in_flight.settle(shard)
            shard.finish(self.fence.look)
        except (FencedOff, FileNotFoundError):  # the fence may have discarded a draft
            if self.fence.look():
                return
            raise
        self.recent[shard.shard_idx] = shard.counts
        self._close(shard)

    def _close(self, shard: OpenShard) -> None:
        del self._open[shard.shard_idx]
        self._claims.leave(shard.shard_idx)

"""The rows of a run in random order: first the rows of all shards, piece by piece, into journals; then the parts.

While rows are computed, no shard is held: a worker appends what it finishes to a journal of its own for each shard, and
keeps only the keys in memory. Once all rows are in journals, shards are claimed as in the order of the dataset, and
find their rows there.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from job.data.at_random import at_random
from job.data.row_keys import key_of
from job.data.source import Source, read_rows
from job.engine.protocol import Engine
from job.errors import Unavailable
from job.output.parts.finished_keys import FinishedKeys
from job.output.parts.journal import Journal
from job.output.parts.order import Rows
from job.output.parts.row_keys import ROW_KEY
from job.output.parts.shard import JOURNAL_SYNC_SECS, unused_journal
from job.output.sharing.leases import Leases
from job.output.sharing.pieces import Piece, Pieces
from job.records import Completion, Prompt, Request, SampleKey
from job.run.finishing import Finishing, describe_lost_rows
from job.run.open_shards import OpenShards
from job.run.preparation import Prepared
from job.run.scattered_in_flight import ScatteredInFlight
from job.run.stopping import Limit

SYNCED_PER_SEC, MAX_SYNC_SECS = 10, 30.0
"""How many journals are synced per second, and the longest time between two syncs of one: a disk needs milliseconds for
each, and the model waits."""


class RandomRows(OpenShards):
    """What one worker has claimed of a run in random order."""

    kind_in_flight = ScatteredInFlight

    def __init__(
        self,
        prepared: Prepared,
        leases: Leases,
        note: Callable[[str], None],
        watch: Callable[[Completion], None] = lambda _: None,
        limit: Limit | None = None,
    ) -> None:
        """See ``OpenShards``."""
        super().__init__(prepared, leases, note, watch, limit)
        assert isinstance(self.in_flight, ScatteredInFlight)
        self._mixed = self.in_flight
        columns = [*prepared.renderer.read_columns, *prepared.kept_columns]
        self._source: Source = at_random(prepared.source, columns)
        self._finished = FinishedKeys(self._directory, self._plan, note)
        seed = prepared.config.sampling.seed
        self._pieces = Pieces(
            self._directory, self._plan, leases, self._finished, seed=seed, num_rows=self._limit.num_rows
        )
        self._open_pieces: list[Piece] = []
        """The pieces that were claimed and are not finished."""
        self._journals = ShardJournals(prepared, self._finished, self._worker_id)
        self._is_scattered = True
        """False once all rows are in journals."""

    @property
    def num_open_rows(self) -> int:
        """See ``OpenShards``."""
        return self.counts.num_rows if self._is_scattered else super().num_open_rows

    @property
    def has_reached_limit(self) -> bool:
        """See ``OpenShards``. Pieces that other workers have are waited for."""
        if not self._is_scattered:
            return super().has_reached_limit
        return self._limit.is_reached(self.counts) or (self._limit.num_rows is not None and not self._pieces.are_left)

    def claim(self, *, at_once: bool = False) -> bool:
        """See ``OpenShards``. Shards are claimed once no worker has a piece any more."""
        if not self._is_scattered:
            return super().claim(at_once=at_once)
        if self._limit.is_reached(self.counts):
            return False
        piece = self._pieces.claim(at_once=at_once)
        if piece is not None:
            self._open_pieces.append(piece)
            self._feed = self._requests_of(piece)
            return True
        if self._pieces.are_left or self._limit.num_rows is not None:
            return False
        self._settle()
        return super().claim(at_once=True)

    def withdraw(self, engine: Engine) -> None:
        """See ``OpenShards``. Here, what is submitted is finished: the engine has begun with the longest prompts."""

    def offer(self, engine: Engine, num_requests: int) -> None:
        """See ``OpenShards``. A piece is never divided, so that no row before others is left out."""
        if not self._is_scattered:
            super().offer(engine, num_requests)

    def commit(self, before_part: Callable[[], None]) -> None:
        """See ``OpenShards``."""
        if self._is_scattered:
            if self._journals.sync_if_due():
                self._give_back()
        else:
            super().commit(before_part)

    def sync(self) -> None:
        """See ``OpenShards``."""
        if self._is_scattered:
            self._journals.sync()
            self._give_back()
        super().sync()

    def close(self) -> None:
        """See ``OpenShards``."""
        try:
            self._journals.close()
            self._give_back()
        except (OSError, Unavailable) as error:  # what stopped the run may refuse this, too
            self._note(describe_lost_rows(error))
        super().close()

    def _settle(self) -> None:
        """Begin with the parts."""
        self._journals.close()
        self._mixed.settle_all()
        self._is_scattered = False

    def _give_back(self) -> None:
        """Give back the pieces that are finished. All of their rows are in journals."""
        self._mixed.append_cut()
        self._mixed.take_over_if_due(self._finished.has)
        for piece in [piece for piece in self._open_pieces if self._finished.are_done(piece.rows).all()]:
            self._open_pieces.remove(piece)
            self._pieces.finish(piece)

    def _shard_of(self, row_idx: int) -> Finishing | None:
        return self._journals if self._is_scattered else super()._shard_of(row_idx)

    def _requests_of(self, piece: Piece) -> Iterator[Request | None]:
        """Yield the requests that a piece still needs, in the random order, since the launch may stop after each. Rows
        that need no engine are finished here."""
        rows = piece.rows[~self._finished.are_done(piece.rows)]
        encoded_of = {each.prompt.row_idx: each for each in self._prepared.tokenization.encode(self._prompts_at(rows))}
        for encoded in [encoded_of[row_idx] for row_idx in piece.order.tolist() if row_idx in encoded_of]:
            for key in self._plan.keys_of_row(encoded.prompt.row_idx):
                if self._finished.has(key):
                    continue
                if encoded.request is None:
                    self._add(self._journals, encoded.completion(sample_idx=key[1]))
                else:
                    self._prompts[key] = encoded.prompt
                    yield self.in_flight.resumed(replace(encoded.request, sample_idx=key[1]))

    def _prompts_at(self, rows: Rows) -> Sequence[Prompt]:
        """Read rows, in ascending order, and render them."""
        prepared, name = self._prepared, self._prepared.config.data.dataset
        columns, prompts = prepared.renderer.read_columns, []
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(run):
                wanted = range(int(run[0]), int(run[-1]) + 1)
                for block in read_rows(self._source, name, wanted, columns, prepared.kept_columns):
                    for row in block.rows:
                        self._journals.identify(row.row_idx, key_of(row, columns))
                        prompts.append(prepared.renderer.render(row))
        return prompts


class ShardJournals:
    """This worker's journals of all shards."""

    def __init__(self, prepared: Prepared, finished: FinishedKeys, worker_id: str) -> None:
        """Create none yet.

        Args:
            finished: is told each row.
        """
        self._directory, self._plan, self._worker_id = prepared.directory, prepared.plan, worker_id
        self._schema = prepared.part_format.columns.journaled
        self._finished = finished
        self._journals: dict[int, Journal] = {}
        self._keys: dict[int, bytes | None] = {}
        """What each row asks that is not finished yet."""
        self._last_sync = time.monotonic()

    def has(self, key: SampleKey) -> bool:
        """Whether this completion is finished, by this worker or another."""
        return self._finished.has(key)

    def identify(self, row_idx: int, key: bytes | None) -> None:
        """Take what a row asks (``RowKeys``), before its completions are added."""
        self._keys[row_idx] = key

    def add(self, completion: Completion) -> None:
        """Add a finished row. It is durable after the next sync."""
        if self.has(completion.key):
            return
        shard_idx = self._plan.shard_of(completion.row_idx)
        if shard_idx not in self._journals:
            name = unused_journal(self._directory, shard_idx, self._worker_id)
            self._journals[shard_idx] = Journal(self._directory.store, name, self._schema)
        row_key = self._keys.get(completion.row_idx)
        self._journals[shard_idx].append(replace(completion, values={**completion.values, ROW_KEY: row_key}))
        self._finished.add(completion.key)
        if self._finished.are_done(np.array([completion.row_idx]))[0]:
            self._keys.pop(completion.row_idx, None)

    def sync_if_due(self) -> bool:
        """Sync if the last sync is long enough ago. Returns whether it was."""
        least = max(JOURNAL_SYNC_SECS, self._directory.store.pause_secs)
        secs = max(least, min(MAX_SYNC_SECS, len(self._journals) / SYNCED_PER_SEC))
        if is_due := time.monotonic() - self._last_sync >= secs:
            self.sync()
        return is_due

    def sync(self) -> None:
        """Make everything that was added durable now."""
        self._last_sync = time.monotonic()
        for journal in self._journals.values():
            journal.sync()
            journal.rest()

    def close(self) -> None:
        """Sync and close. Nothing can be added any more. Where one journal fails, the others are still written."""
        with contextlib.ExitStack() as stack:
            while self._journals:
                stack.callback(self._journals.popitem()[1].close)


def open_rows(
    prepared: Prepared,
    leases: Leases,
    note: Callable[[str], None],
    watch: Callable[[Completion], None],
    limit: Limit,
) -> OpenShards:
    """Return what claims the rows of a run, in the order that was asked for."""
    kind = RandomRows if prepared.config.launch.is_random else OpenShards
    return kind(prepared, leases, note, watch, limit)

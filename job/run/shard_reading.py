"""Reads the rows of shards: those of claims, and late the kept columns of rows that other workers have finished."""

import time

from job.data.reader import SliceReader
from job.launch.stop import StopFlag
from job.output.parts.shard import OpenShard
from job.output.sharing.claims import Claim
from job.records import RowBlock
from job.run.preparation import Prepared

LOOK_SECS = 0.1
"""How often a worker that waits for rows looks whether a stop was requested."""


class ShardReading:
    """The two passes over the dataset of one worker."""

    def __init__(self, prepared: Prepared) -> None:
        """Read nothing yet."""
        self._prepared = prepared
        name = prepared.config.data.dataset
        self._reader = SliceReader(prepared.source, name)
        self._late_reader = SliceReader(prepared.source, name)
        """Reads the kept columns of rows that others have finished."""
        self._is_in_order = True
        """Whether this worker takes one shard after the other, so that it may read beyond the end of a shard."""
        self._last_shard_idx: int | None = None

    @property
    def is_reading(self) -> bool:
        """Whether the rows of the latest claim are not there yet."""
        return self._reader.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether these rows, or the kept columns of rows that others have finished, are not there yet."""
        return self._reader.is_waiting or self._late_reader.is_waiting

    def wait(self, secs: float, stop: StopFlag) -> bool:
        """Wait until there is more of what is waited for, but at most for ``secs``. True if a stop was requested."""
        waiting = [reader for reader in (self._reader, self._late_reader) if reader.is_waiting]
        end = time.monotonic() + secs
        while not (stop() or time.monotonic() > end or any(reader.wait(LOOK_SECS) for reader in waiting)):
            pass
        return stop()

    def read(self, claim: Claim, until: int) -> list[RowBlock] | None:
        """Return the rows of a claim, or None while they are not there yet: ask again.

        Args:
            until: end of the rows that are likely to be read next.
        """
        prepared = self._prepared
        return self._reader.read(claim.rows, until, prepared.renderer.read_columns, prepared.kept_columns)

    def until(self, shard: OpenShard, claim: Claim, *, is_held: bool) -> int:
        """Return the end of the rows that this worker is likely to read after those of a claim.

        Args:
            is_held: whether it holds the shard.
        """
        if not is_held:
            return claim.rows.stop  # helpers begin with the last slice
        if self._last_shard_idx not in (None, shard.shard_idx):
            self._is_in_order = self._last_shard_idx == shard.shard_idx - 1
        self._last_shard_idx = shard.shard_idx
        return self._prepared.plan.num_rows if self._is_in_order else shard.rows.stop

    def has_kept_columns(self, shard: OpenShard) -> bool:
        """Read the kept columns of rows that other workers have finished. False while they are not there yet."""
        for rows in shard.unread():
            blocks = self._late_reader.read(rows, shard.rows.stop, (), self._prepared.kept_columns)
            if blocks is None:
                return False
            for block in blocks:
                shard.keep(block)
        return True

    def leave(self) -> None:
        """Wait no more for the rows of the latest claim: nobody asks for them."""
        self._reader.is_waiting = False

    def close(self) -> None:
        """Let the threads end, if there are any."""
        for reader in (self._reader, self._late_reader):
            reader.close()

"""Partial completions: what rows in flight have so far, kept every few seconds so that a kill does not lose it.

One log per shard and worker, beside the journals. A batch has the tokens that are new since the one before. Tokens of
rows that have finished are garbage: once they are most of a log, a new one begins with what is still in flight, and
takes its place. The worker that holds a shard takes over what dead ones have left there. So the logs of a shard are at
most about twice as large as what is in flight, ``SPARE_BYTES`` a worker, and what was left in the last lease timeout.
"""

import contextlib
import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import pyarrow as pa

from job.output.parts.batch_log import BatchLog, BatchReader
from job.output.store.directory import RunDirectory
from job.output.store.store import Store
from job.records import Partial, PartialKey

SPARE_BYTES = 1 << 20
"""A smaller log is not worth replacing."""

SCHEMA = pa.schema(
    [
        pa.field("row_idx", pa.int64(), nullable=False),
        pa.field("sample_idx", pa.int32(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("tops", pa.binary(), nullable=False),
    ]
)
"""The fields of ``Partial``."""


class PartialLog:
    """Appends the partial completions of one shard. Not thread-safe."""

    def __init__(self, directory: RunDirectory, shard_idx: int, worker_id: str) -> None:
        """Prepare; nothing is created before the first tokens."""
        self._directory, self._shard_idx, self._worker_id = directory, shard_idx, worker_id
        self._numbers = itertools.count()
        self._log = self._new_log()
        self._outdated: list[BatchLog] = []
        """Earlier logs, in whose place this one is once its first tokens are there."""
        self.known: dict[PartialKey, int] = {}
        """How many tokens of each completion in flight the log has, or will have with the next ``append``."""
        self._num_garbage = 0
        """How many tokens it has of others."""

    @property
    def name(self) -> str:
        """The object that is appended to."""
        return self._log.name

    def append(self, partials: Sequence[Partial]) -> None:
        """Append tokens, each completion's after those that the log has. They outlive the process, not a power cut.

        Raises:
            OSError: they could not be written. The next call writes them first, so they must not be given to it again:
                on a full disk, they would come to fill the memory, too.
        """
        if partials:
            self.known |= {partial.key: partial.end for partial in partials}
            self._log.append(to_batch(partials))
        while self._outdated:
            with contextlib.suppress(OSError):  # it writes an end, for which there may be no room
                self._outdated[-1].close()
            self._directory.store.delete(self._outdated[-1].name)
            self._outdated.pop()

    def forget(self, key: PartialKey) -> None:
        """A completion is not in flight any more."""
        self._num_garbage += self.known.pop(key, 0)

    @property
    def is_mostly_garbage(self) -> bool:
        """Whether ``replace`` is worth its while."""
        return self._log.num_bytes > SPARE_BYTES and self._num_garbage > sum(self.known.values())

    def replace(self, partials: Sequence[Partial]) -> None:
        """Begin again with what is in flight, and then remove what there was.

        Args:
            partials: what is running, from the first token on. What waits to go on is taken from the log itself.
        """
        running = {partial.key for partial in partials}
        had = Contents.of(self._directory, self.name).read()
        waiting = [partial for key, partial in had.items() if key in self.known and key not in running]
        self._outdated.append(self._log)
        self._log, self.known, self._num_garbage = self._new_log(), {}, 0
        self.append([*partials, *waiting])

    def close(self) -> None:
        """Stop appending."""
        self._log.close()

    def _new_log(self) -> BatchLog:
        directory = self._directory
        names = (directory.names.partials(self._shard_idx, self._worker_id, number) for number in self._numbers)
        return BatchLog(directory.store, directory.unused(names), SCHEMA, durable=False)


class PartialLogs:
    """The logs of a shard that other workers, and earlier launches, have left."""

    def __init__(self, directory: RunDirectory, shard_idx: int) -> None:
        """Read nothing yet."""
        self._store, self._directory, self._shard_idx = directory.store, directory, shard_idx
        self._logs: dict[str, Contents] = {}

    def read(self, own_name: str) -> dict[PartialKey, Partial]:
        """Return the longest that there is of each completion, in any log but our own. Damaged ends are left out."""
        names = [name for name in self._directory.partials(self._shard_idx) if name != own_name]
        self._logs = {name: self._logs.get(name) or Contents.of(self._directory, name) for name in names}
        return self._longest(names)

    def silent(self, secs: float) -> list[str]:
        """Return the logs that were there at the last ``read`` and have not been appended to for some time: a live
        worker would have, or has nothing in flight."""
        now = self._store.now() if self._logs else None
        if now is None:
            return []
        silent = []
        for name in self._logs:
            with contextlib.suppress(FileNotFoundError):
                if now - self._store.stamp(name).written >= secs:
                    silent.append(name)
        return silent

    def take(self, names: Sequence[str], known: Mapping[PartialKey, int]) -> list[Partial]:
        """Return what some logs have of completions beyond their first ``known`` tokens, from the first one on."""
        return [partial for key, partial in self._longest(names).items() if partial.end > known.get(key, 0)]

    def remove(self, names: Sequence[str]) -> None:
        """Delete logs."""
        for name in names:
            self._store.delete(name)
            del self._logs[name]

    def _longest(self, names: Sequence[str]) -> dict[PartialKey, Partial]:
        longest: dict[PartialKey, Partial] = {}
        for name in names:
            for key, partial in self._logs[name].read().items():
                if key not in longest or longest[key].end < partial.end:
                    longest[key] = partial
        return longest


class Contents:
    """What one log has of each completion. There may be thousands of pieces, so they are added up in place."""

    def __init__(self, store: Store, name: str, max_bytes: int | None = None) -> None:
        """Read nothing yet. See ``BatchReader``."""
        self._reader = BatchReader(store, name, SCHEMA.names, max_bytes)
        self._found: dict[PartialKey, Partial] = {}

    @classmethod
    def of(cls, directory: RunDirectory, name: str) -> Self:
        """Read what counts of a log in ``journal/``."""
        return cls(directory.store, name, directory.names.num_sealed_bytes(name))

    @property
    def num_bytes(self) -> int:
        """How much of the log has been read."""
        return self._reader.num_bytes

    def read(self) -> Mapping[PartialKey, Partial]:
        """Read what is new, and return everything."""
        for batch in self._reader.read_batches():
            if self._reader.has_restarted:
                self._found, self._reader.has_restarted = {}, False
            for piece in batch.to_pylist():
                self._add(Partial(**piece))
        return self._found

    def _add(self, piece: Partial) -> None:
        """Add a piece, as far as it is new: one is written again if that failed. After a gap, it is left out."""
        if piece.start == 0:
            self._found[piece.key] = replace(piece, token_ids=array("i"), logprobs=array("d"), tops=bytearray())
        found = self._found.get(piece.key)
        if found is None or found.end < piece.start:
            return
        num_had = found.end - piece.start
        assert isinstance(found.token_ids, array) and isinstance(found.logprobs, array)
        assert isinstance(found.tops, bytearray)
        found.token_ids.extend(piece.token_ids[num_had:])
        found.logprobs.extend(piece.logprobs[num_had:])
        found.tops.extend(piece.tops[len(piece.tops) // max(1, len(piece.token_ids)) * num_had :])


def to_batch(partials: Sequence[Partial]) -> pa.RecordBatch:
    """Return partial completions as columns."""
    columns = [[getattr(partial, name) for partial in partials] for name in SCHEMA.names]
    return pa.record_batch([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)

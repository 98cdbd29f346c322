"""Completions that their limit has cut: their tokens are kept, so that ``job retry --cut`` goes on with them.

While a shard is open, each worker appends them to a log beside its journal. When the shard is done, they go to one
object, which stays. Without it, rows are computed from the beginning.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence

from job.output.parts.batch_log import BatchLog, to_bytes
from job.output.parts.partials import SCHEMA, Contents, to_batch
from job.output.store.directory import RunDirectory
from job.output.store.names import CUT
from job.records import Partial, PartialKey, SampleKey


class CutLog:
    """Appends what was cut of one shard. Not thread-safe."""

    def __init__(self, directory: RunDirectory, shard_idx: int, worker_id: str) -> None:
        """Prepare; nothing is created before the first completion."""
        store, names = directory.store, directory.names
        unused = (names.cut_log(shard_idx, worker_id, number) for number in itertools.count())
        self._log = BatchLog(store, next(name for name in unused if not store.exists(name)), SCHEMA, durable=False)

    def append(self, partials: Sequence[Partial]) -> None:
        """Append whole completions. They outlive the process, not a power cut."""
        if partials:
            self._log.append(to_batch(partials))

    def close(self) -> None:
        """Stop appending."""
        with self._log.closing():
            pass


def read_cut_rows(directory: RunDirectory, shard_idx: int) -> Mapping[PartialKey, Partial]:
    """Return what is there of a finished shard's completions that were cut."""
    return Contents(directory.store, directory.names.cut(shard_idx)).read()


def settle_cut_rows(directory: RunDirectory, shard_idx: int, cut: Collection[SampleKey]) -> None:
    """Put what the logs have of these completions in the place where it stays, with what is there of them."""
    found = dict(read_cut_rows(directory, shard_idx))
    for name in directory.cut_logs(shard_idx):
        found |= Contents(directory.store, name).read()
    kept = [partial for key, partial in sorted(found.items()) if key[:2] in cut]
    if kept:
        directory.store.prepare([CUT])
        directory.store.replace(directory.names.cut(shard_idx), to_bytes(to_batch(kept)))
    elif found:
        directory.store.delete(directory.names.cut(shard_idx))

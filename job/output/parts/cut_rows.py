"""Completions that their limit has cut: their tokens are kept, so that ``job retry --cut`` goes on with them.

While a shard is open, each worker appends them to a log beside its journal. When the shard is done, they go to one
object, which stays. Without it, rows are computed from the beginning.
"""

import itertools
from collections.abc import Collection, Mapping

from job.output.parts.batch_log import BatchLog, to_bytes
from job.output.parts.partials import SCHEMA, Contents, to_batch
from job.output.store.directory import RunDirectory
from job.output.store.names import CUT
from job.records import Partial, PartialKey, SampleKey


def make_cut_log(directory: RunDirectory, shard_idx: int, worker_id: str) -> BatchLog:
    """Return a log for what is cut of one worker's rows of a shard. It outlives the process, not a power cut."""
    names = (directory.names.cut_log(shard_idx, worker_id, number) for number in itertools.count())
    return BatchLog(directory.store, directory.unused(names), SCHEMA, durable=False)


def read_cut_rows(directory: RunDirectory, shard_idx: int) -> Mapping[PartialKey, Partial]:
    """Return what is there of a finished shard's completions that were cut."""
    return Contents(directory.store, directory.names.cut(shard_idx)).read()


def settle_cut_rows(directory: RunDirectory, shard_idx: int, cut: Collection[SampleKey]) -> None:
    """Put what the logs have of these completions in the place where it stays, with what is there of them."""
    found = _found(directory, shard_idx) if cut else {}
    kept = [partial for key, partial in sorted(found.items()) if key[:2] in cut]
    if kept:
        directory.store.prepare([CUT])
        directory.store.replace(directory.names.cut(shard_idx), to_bytes(to_batch(kept)))
    else:
        directory.store.delete(directory.names.cut(shard_idx))


def _found(directory: RunDirectory, shard_idx: int) -> dict[PartialKey, Partial]:
    """Return what is there of a shard, and what the logs have instead."""
    found = dict(read_cut_rows(directory, shard_idx))
    for name in directory.cut_logs(shard_idx):
        found |= Contents.of(directory, name).read()
    return found

"""Error rows that are to be retried: marking them, and reading the other rows of their parts.

A part under retry stays in place until the new one replaces it, so readers miss nothing; a marker says that the shard
is not done. ``OpenShard.finish`` removes the marker afterwards: a kill between the two only retries the rows once more.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping

from job.errors import JobError, UsageError
from job.output.looking.footers import count_parts
from job.output.looking.found import FoundRun
from job.output.looking.survey import survey
from job.output.parts.retry_marks import marked_kinds
from job.output.store.directory import RunDirectory
from job.output.store.names import RETRIES

ErrorsOfShards = Mapping[int, Counter[str]]
"""For each shard: error kind to number of rows."""


def read_errors(directory: RunDirectory) -> ErrorsOfShards:
    """Return the errors in every part.

    Raises:
        JobError: a part cannot be read.
    """
    counts = count_parts(directory, sorted(directory.written_shards()))
    return {shard_idx: of_shard.errors for shard_idx, of_shard in counts.items()}


def mark_for_retry(run: FoundRun, errors: ErrorsOfShards, kinds: Collection[str]) -> Counter[str]:
    """Mark every part with error rows of these kinds (empty: of any kind), in addition to earlier marks.

    Args:
        errors: from ``read_errors``.

    Returns:
        For each of these kinds, the number of rows that the next run retries.

    Raises:
        UsageError: workers are active; they may be using the journals that marking a shard deletes.
        JobError: the directory cannot be read or written.
    """
    store, marked = run.directory.store, Counter[str]()
    try:
        _refuse_if_alive(run)
        store.prepare([RETRIES])
        for shard_idx, found in errors.items():
            wanted = {kind: number for kind, number in found.items() if not kinds or kind in kinds}
            if wanted:
                _mark(run.directory, shard_idx, kinds)
                marked.update(wanted)
    except OSError as error:
        raise JobError(f"{error.filename or store.describe()}: {error.strerror or error}. No row is lost.") from None
    return marked


def _mark(directory: RunDirectory, shard_idx: int, kinds: Collection[str]) -> None:
    store, marker = directory.store, directory.names.retry(shard_idx)
    if store.exists(marker):
        before = marked_kinds(store, marker)
        kinds = {*before, *kinds} if before and kinds else ()
    else:
        # A worker that was killed just after it finished the part has left them, with the errors to be retried.
        for leftover in directory.journals(shard_idx):
            store.delete(leftover)
    store.replace(marker, json.dumps({"kinds": sorted(kinds)}).encode())


def _refuse_if_alive(run: FoundRun) -> None:
    seen, names = survey(run), run.directory.names
    ages = {
        names.lease(lease.shard_idx, lease.slice_idx): lease.silent_secs for lease in seen.leases if not lease.is_stale
    }
    ages |= {names.clock(worker_id): age for worker_id, age in seen.clocks.items() if age < seen.waiting_secs}
    if ages:
        name, age = next(iter(ages.items()))
        raise UsageError(
            f"Workers are still active on this run ({run.directory.store.describe(name)} was refreshed {age:.0f} s "
            f"ago). Stop them or wait for them to finish; leases of killed workers expire after "
            f"{seen.settings.lease_timeout_secs:.0f} s."
        )

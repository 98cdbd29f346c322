"""Error rows that are to be done again: which, and what of their parts stays.

A retried part keeps its place until the new one replaces it, so readers miss nothing; a marker beside it says that the
shard is not done. ``OpenShard.finish`` removes the marker after the rename: a kill between the two does the rows once
more, no harm.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, first_line
from job.output.looking.footers import count_parts
from job.output.looking.found import FoundRun
from job.output.looking.survey import WAITING_SECS, survey
from job.output.parts.columns import Columns
from job.output.parts.rows import from_batch
from job.output.sharing.leases import STALE_SECS
from job.output.store.local import UnlessGone, fsync_dir, fsync_file
from job.output.store.paths import RunPaths
from job.records import Completion

ErrorsOfShards = Mapping[int, Counter[str]]
"""Shard to error kind to number of rows."""


def read_errors(paths: RunPaths) -> ErrorsOfShards:
    """Return the errors in every part.

    Raises:
        JobError: a part cannot be read.
    """
    counts = count_parts(paths, sorted(paths.written_shards()))
    return {shard_idx: of_shard.errors for shard_idx, of_shard in counts.items()}


def mark_for_retry(run: FoundRun, errors: ErrorsOfShards, kinds: Collection[str], worker_id: str) -> Counter[str]:
    """Mark every part that holds error rows of these kinds (empty: of any), besides what is marked already.

    Args:
        errors: from ``read_errors``.

    Returns:
        Error kind to number of rows of these kinds, which the next run does again.

    Raises:
        UsageError: workers are at the run; they may hold what the journals of marked shards lose.
        JobError: the directory cannot be read or written.
    """
    paths, marked = run.paths, Counter[str]()
    try:
        _refuse_if_alive(run)
        paths.retry_dir.mkdir(exist_ok=True)
        for shard_idx, found in errors.items():
            wanted = {kind: number for kind, number in found.items() if not kinds or kind in kinds}
            if wanted:
                _mark(paths, shard_idx, kinds, worker_id)
                marked.update(wanted)
        fsync_dir(paths.retry_dir)
    except OSError as error:
        raise JobError(f"{error.filename or paths.root}: {error.strerror or error}. No row is lost.") from None
    return marked


def _mark(paths: RunPaths, shard_idx: int, kinds: Collection[str], worker_id: str) -> None:
    marker = paths.retry(shard_idx)
    if marker.exists():
        before = _marked_kinds(marker)
        kinds = {*before, *kinds} if before and kinds else ()
    else:
        for leftover in paths.journals(shard_idx):  # of a worker killed just after it wrote the part
            leftover.unlink(missing_ok=True)
    tmp = paths.retry_tmp(shard_idx, worker_id)
    tmp.write_text(json.dumps({"kinds": sorted(kinds)}), encoding="utf-8")
    fsync_file(tmp)
    tmp.replace(marker)


def _marked_kinds(marker: Path) -> list[str]:
    """Raises:
    UsageError: the file is not a marker.
    """
    try:
        kinds: list[str] = json.loads(marker.read_text(encoding="utf-8"))["kinds"]
        return kinds
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{marker} is not a marker ({error!r}). Remove it.") from None


def _refuse_if_alive(run: FoundRun) -> None:
    seen = survey(run)
    ages = {
        run.paths.lease(lease.shard_idx, lease.slice_idx): lease.silent_secs
        for lease in seen.leases
        if not lease.is_stale
    }
    ages |= {run.paths.clock(worker_id): age for worker_id, age in seen.clocks.items() if age < WAITING_SECS}
    if ages:
        path, age = next(iter(ages.items()))
        raise UsageError(
            f"Workers are at this run ({path} is {age:.0f} s old). Stop them, or wait until they are done; leases of "
            f"killed ones count for {STALE_SECS:.0f} s."
        )


def completions_to_stay(paths: RunPaths, shard_idx: int, columns: Columns) -> Iterator[Completion]:
    """Yield the completions of a part that is marked, without the rows to be done again.

    Args:
        columns: those of the part that are ours.

    Raises:
        JobError: the part cannot be read.
    """
    with UnlessGone():  # no marker: the shard is new; or another finished it meanwhile
        yield from _read(paths.part(shard_idx), columns, _marked_kinds(paths.retry(shard_idx)))


def _read(part: Path, columns: Columns, kinds: Collection[str]) -> Iterator[Completion]:
    names = [field.name for field in columns.of_completions]
    try:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=1000, columns=names):
                for completion in from_batch(batch):
                    if completion.error is None or (kinds and completion.error.kind not in kinds):
                        yield completion
    except pa.ArrowException as error:
        raise JobError(f"{part} cannot be read: {first_line(error)}. Remove it; its rows are done again.") from None

"""Rows that are to be retried: marking them. The other rows of their parts stay.

A part under retry stays in place until the new one replaces it, so readers miss nothing; a marker says that the shard
is not done. ``OpenShard.finish`` removes the marker afterwards: a kill between the two only retries the rows once more.
"""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from job.errors import JobError, UsageError
from job.output.looking.footers import count_parts
from job.output.looking.found import FoundRun
from job.output.looking.survey import refuse_if_alive
from job.output.parts.counts import Counts
from job.output.parts.fence import discard_drafts_of_parts
from job.output.parts.part_schema import Columns
from job.output.parts.redone import described
from job.output.parts.retry_marks import Mark, count_meant, read_mark
from job.output.store.directory import RunDirectory
from job.output.store.names import RETRIES
from job.records import CUT_REASONS

CountsOfShards = Mapping[int, Counts]

CUT, UNPARSED = "cut", "unparsed"
"""What rows without an error are counted as."""


def read_counts(directory: RunDirectory) -> CountsOfShards:
    """Return the counts of every part.

    Raises:
        JobError: a part cannot be read.
    """
    return count_parts(directory, sorted(directory.written_shards()))


def mark_for_retry(run: FoundRun, counts: CountsOfShards, wanted: Mark) -> Counter[str]:
    """Mark every part with rows that are wanted, in addition to earlier marks.

    Args:
        counts: from ``read_counts``.

    Returns:
        The number of rows that the next run retries: those with an error by kind, others as ``cut`` or ``unparsed``.

    Raises:
        UsageError: workers are active, which may be using the journals that marking a shard deletes; or rows are
            still to be retried in another way.
        JobError: the directory cannot be read or written.
    """
    marked = Counter[str]()
    try:
        refuse_if_alive(run)
        earlier = {idx: mark for idx in run.directory.shards_to_retry() if (mark := read_mark(run.directory, idx))}
        for mark in earlier.values():
            _refuse_if_other(mark, wanted, run)
        run.directory.store.prepare([RETRIES])
        # A worker that nobody knows of may be about to replace a part. Who begins a draft later looks for one first.
        discard_drafts_of_parts(run.directory.store)
        wanted = replace(wanted, retry_id=secrets.token_hex(3))
        for shard_idx, of_part in counts.items():
            found = _meant(run, shard_idx, of_part, wanted)
            if found.num_rows:
                _mark(run, shard_idx, of_part, wanted, earlier.get(shard_idx))
                marked.update(_reasons(found, wanted))
    except OSError as error:
        where = error.filename or run.directory.store.describe()
        raise JobError(f"{where}: {error.strerror or error}. No row is lost.") from None
    return marked


def _meant(run: FoundRun, shard_idx: int, of_part: Counts, wanted: Mark) -> Counts:
    """Return the counts of the rows of a part that are wanted. Footers say how many errors there are."""
    if not wanted.is_plain:
        return count_meant(run.directory, shard_idx, Columns.of(run.manifest), wanted)
    kinds = {kind: number for kind, number in of_part.errors.items() if not wanted.kinds or kind in wanted.kinds}
    return Counts(num_rows=sum(kinds.values()), errors=Counter(kinds))


def _reasons(found: Counts, wanted: Mark) -> Counter[str]:
    num_cut = sum(found.finish_reasons[reason] for reason in CUT_REASONS) if wanted.cut else 0
    num_others = found.num_rows - found.num_errors - num_cut
    return found.errors + Counter({CUT: num_cut, UNPARSED: num_others})


def _mark(run: FoundRun, shard_idx: int, of_part: Counts, wanted: Mark, earlier: Mark | None) -> None:
    directory = run.directory
    if earlier is not None:
        wanted = wanted.joined(earlier)
    else:
        # A worker that was killed just after it finished the part has left them, with the rows to be retried.
        for leftover in directory.logs(shard_idx):
            directory.store.delete(leftover)
    if not wanted.is_plain:
        rows = count_meant(directory, shard_idx, Columns.of(run.manifest), wanted)
        wanted = replace(wanted, part=of_part.to_dict(), rows=rows)
    directory.store.replace(directory.names.retry(shard_idx), wanted.to_json())


def _refuse_if_other(earlier: Mark, wanted: Mark, run: FoundRun) -> None:
    """Refuse to mark rows in one way while others wait in another: their journals hold rows of both kinds."""
    if earlier.changes != wanted.changes:
        how = f"with {described(earlier.changes)}" if earlier.changes else "without changes"
        raise UsageError(
            f"{run.directory.store.describe()} has rows that are still to be recomputed {how}. Run the same command as "
            "before to finish that first."
        )

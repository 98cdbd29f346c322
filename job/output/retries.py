"""Error rows that are to be done again: which, and what of their parts stays.

A retried part keeps its place until the new one replaces it, so readers miss nothing; a marker beside it says that the
shard is not done. ``OpenShard.finish`` removes the marker after the rename: a kill between the two does the rows once
more, no harm.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, first_line
from job.output.counts import Counts
from job.output.files import create_exclusively, fsync_dir
from job.output.journal import COMPLETION_SCHEMA
from job.output.paths import RunPaths
from job.records import Completion


def count_errors(paths: RunPaths) -> Counter[str]:
    """Return error kind to number of rows, over all parts that are done.

    Raises:
        JobError: a part cannot be read.
    """
    counts = Counts()
    for shard_idx in paths.done_shards():
        counts.add_part(paths.part(shard_idx))
    return counts.errors


def mark_for_retry(paths: RunPaths, kinds: Collection[str], worker_id: str) -> Counter[str]:
    """Mark every part that holds error rows of these kinds (empty: of any).

    Returns:
        Error kind to number of rows that the next run does again.

    Raises:
        JobError: a part cannot be read, or the directory cannot be written.
    """
    marked: Counter[str] = Counter()
    try:
        paths.retry_dir.mkdir(exist_ok=True)
        for shard_idx in sorted(paths.done_shards()):
            counts = Counts()
            counts.add_part(paths.part(shard_idx))
            errors = {kind: number for kind, number in counts.errors.items() if not kinds or kind in kinds}
            if errors:
                for leftover in paths.journals(shard_idx):  # of a worker killed just after it wrote the part
                    leftover.unlink(missing_ok=True)
                content = json.dumps({"kinds": sorted(kinds)}).encode()
                create_exclusively(paths.retry(shard_idx), content, worker_id, durable=False)
                marked.update(errors)
        fsync_dir(paths.retry_dir)
    except OSError as error:
        raise JobError(f"{error.filename or paths.root}: {error.strerror or error}. No row is lost.") from None
    return marked


def completions_to_stay(paths: RunPaths, shard_idx: int) -> Iterator[Completion]:
    """Yield the completions of a part that is marked, without the rows to be done again.

    Raises:
        JobError: the part cannot be read.
    """
    try:
        kinds = json.loads(paths.retry(shard_idx).read_text())["kinds"]
        yield from _read(paths.part(shard_idx), kinds)
    except FileNotFoundError:
        return  # no marker: the shard is new; or another worker finished it meanwhile
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{paths.retry(shard_idx)} is not a marker ({error!r}). Remove it.") from None


def _read(part: Path, kinds: Collection[str]) -> Iterator[Completion]:
    try:
        with pq.ParquetFile(part) as file:
            names = [name for name in COMPLETION_SCHEMA.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=1000, columns=names):
                for values in batch.to_pylist():
                    error = values["error"]
                    if error is None or (kinds and error.partition(":")[0] not in kinds):
                        yield Completion(**{"prompt": None, **values})
    except pa.ArrowException as error:
        raise JobError(f"{part} cannot be read: {first_line(error)}. Remove it; its rows are done again.") from None

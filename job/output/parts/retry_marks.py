"""Parts under retry: a marker next to a part names the error kinds to retry, and the other rows of the part stay."""

import contextlib
import json
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, first_line
from job.output.parts.part_schema import Columns
from job.output.parts.rows import from_batch
from job.output.store.directory import RunDirectory
from job.output.store.store import Store
from job.records import Completion, RowError


def marked_kinds(store: Store, marker: str) -> list[str]:
    """Return the error kinds that a marker names; none means all.

    Raises:
        UsageError: the object is not a marker.
    """
    try:
        kinds: list[str] = json.loads(store.read(marker))["kinds"]
        return kinds
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{store.describe(marker)} is not a marker ({error!r}). Remove it.") from None


def completions_to_stay(directory: RunDirectory, shard_idx: int, columns: Columns) -> Iterator[Completion]:
    """Yield the completions of a marked part, without the rows to be retried.

    Args:
        columns: our columns of the part, without the dataset's.

    Raises:
        JobError: the part cannot be read.
    """
    store, names = directory.store, directory.names
    with contextlib.suppress(FileNotFoundError):  # no marker: the shard is new, or another worker has finished it
        kinds = marked_kinds(store, names.retry(shard_idx))
        yield from _read(store, names.part(shard_idx), columns, kinds)


def positions_to_stay(directory: RunDirectory, shard_idx: int, kinds: Collection[str]) -> list[int]:
    """Return the positions within a marked part of the rows that are not to be retried.

    Raises:
        JobError: the part cannot be read.
    """
    part = directory.names.part(shard_idx)
    try:
        with directory.store.open(part) as file:
            texts = pq.ParquetFile(file).read(columns=["error"])["error"].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{directory.store.describe(part)} cannot be read: {first_line(error)}.") from None
    errors = [None if text is None else RowError.parse(text).kind for text in texts]
    return [at for at, kind in enumerate(errors) if kind is None or (kinds and kind not in kinds)]


def _read(store: Store, part: str, columns: Columns, kinds: Collection[str]) -> Iterator[Completion]:
    names = [field.name for field in columns.of_completions]
    try:
        with store.open(part) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=names):
                for completion in from_batch(batch):
                    if completion.error is None or (kinds and completion.error.kind not in kinds):
                        yield completion
    except pa.ArrowException as error:
        where = store.describe(part)
        raise JobError(
            f"{where} cannot be read: {first_line(error)}. Remove it; its rows will be recomputed."
        ) from None

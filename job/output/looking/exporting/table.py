"""The rows of a run in their order, batch by batch out of its parts. Memory does not grow with the run."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, first_line
from job.output.looking.found import FoundRun
from job.output.parts.counts import METADATA_KEY

ROWS_PER_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows and columns of a run."""

    columns: tuple[str, ...] = ()
    """In the order of the file. Empty: all, as they are."""
    include_errors: bool = True
    """Whether rows with an error are among them."""
    is_partial: bool = False
    """Whether those that are there will do, if the run is not finished."""


class RunTable:
    """The rows that are selected. Read once."""

    def __init__(self, run: FoundRun, selection: Selection) -> None:
        """Look at which parts there are, and into the first one for the columns.

        Raises:
            UsageError: rows are missing, or a column; or there is no part at all.
            JobError: the directory or the part cannot be read.
        """
        self.run, self._selection = run, selection
        self.num_rows = self.num_errors = self.num_left_out = 0
        self._shards = _shards_of(run, is_partial=selection.is_partial)
        self.num_missing = run.plan.num_completions - run.plan.count(self._shards)
        with self._reading(self._shards[0]) as file:
            self._part_schema = pq.read_schema(file)
        self.columns = _columns(self._part_schema, selection.columns)
        self.schema = pa.schema(
            [self._part_schema.field(name) for name in self.columns],
            metadata=_metadata(self._part_schema, self.columns),
        )

    @property
    def num_parts(self) -> int:
        """Parts to be read."""
        return len(self._shards)

    def read(self, on_part: Callable[[], object] = lambda: None) -> Iterator[pa.RecordBatch]:
        """Yield the rows, and count them.

        Args:
            on_part: called after each part.

        Raises:
            JobError: a part cannot be read, or is not what it should be.
        """
        for shard_idx in self._shards:
            for batch in self._read_part(shard_idx):
                is_error = pc.is_valid(batch["error"])
                num_errors = pc.sum(is_error).as_py() or 0
                if self._selection.include_errors:
                    self.num_errors += num_errors
                else:
                    batch = batch.filter(pc.invert(is_error))
                    self.num_left_out += num_errors
                self.num_rows += batch.num_rows
                yield batch.select(self.columns)
            on_part()

    def _read_part(self, shard_idx: int) -> Iterator[pa.RecordBatch]:
        with self._reading(shard_idx) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            self._check(file, shard_idx)
            columns = list(dict.fromkeys([*self.columns, "error"]))
            for group_idx in range(file.num_row_groups):  # or else a batch of many groups would be as large as all
                for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group_idx], columns=columns):
                    batch.validate(full=True)  # before a value is touched: damaged offsets point outside of the batch
                    yield batch

    def _check(self, file: pq.ParquetFile, shard_idx: int) -> None:
        """Check what costs nothing; ``job verify`` checks everything."""
        metadata = file.metadata.metadata or {}
        wrong = None
        if metadata.get(b"job.manifest") != self.run.manifest.digest.encode():
            wrong = "is no part of this run"
        elif not file.schema_arrow.equals(self._part_schema):
            wrong = f"has other columns than {self.run.directory.names.part(self._shards[0])}"
        elif file.metadata.num_rows != self.run.plan.count([shard_idx]):
            wrong = f"has {file.metadata.num_rows:,} rows; the plan has {self.run.plan.count([shard_idx]):,}"
        if wrong:
            raise JobError(f"{self._describe(shard_idx)} {wrong}. job verify says what to do.")

    @contextlib.contextmanager
    def _reading(self, shard_idx: int) -> Iterator[BinaryIO]:
        """Open a part, and say which one it is if something goes wrong. (What consumes a generator's values is not in
        here.)"""
        try:
            with self.run.directory.store.open(self.run.directory.names.part(shard_idx)) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error).rstrip(".")
            raise JobError(
                f"{self._describe(shard_idx)} cannot be read: {reason}. job verify says what to do."
            ) from None

    def _describe(self, shard_idx: int) -> str:
        return self.run.directory.store.describe(self.run.directory.names.part(shard_idx))


def _shards_of(run: FoundRun, *, is_partial: bool) -> list[int]:
    """Return the shards to read, in order.

    Raises:
        UsageError: there are none, or not all and that was not asked for.
        JobError: the directory cannot be read.
    """
    root = run.directory.store.describe()
    try:
        written, done = run.directory.written_shards(), run.directory.done_shards()
    except OSError as error:
        raise JobError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from None
    num_missing = run.plan.num_completions - run.plan.count(written)
    if len(written) < run.plan.num_shards and not (is_partial and written):
        advice = "Run the same job run to the end, or give --partial." if written else "Run the same job run."
        rows = f"{num_missing:,} of {run.plan.num_completions:,} rows are in no part yet"
        raise UsageError(f"{root} is not finished: {rows}. {advice}")
    if written - done and not is_partial:
        raise UsageError(
            f"{root} is not finished: job retry has marked error rows of {len(written - done):,} parts. "
            "Run the same job run to the end, or give --partial."
        )
    return sorted(written)


def _columns(schema: pa.Schema, wanted: tuple[str, ...]) -> list[str]:
    """Return the names of the columns.

    Raises:
        UsageError: one does not exist.
    """
    for name in wanted:
        if name not in schema.names:
            raise UsageError(f"--columns {name}: the run has no such column. Columns: {', '.join(schema.names)}.")
    return list(dict.fromkeys(wanted or schema.names))


def _metadata(schema: pa.Schema, columns: list[str]) -> dict[bytes, bytes]:
    """Return what parts say of their run, without what one says of itself; HuggingFace's features of these columns."""
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != METADATA_KEY}
    if b"huggingface" in metadata:
        content = json.loads(metadata[b"huggingface"])
        features = content["info"]["features"]
        content["info"]["features"] = {name: features[name] for name in columns}
        metadata[b"huggingface"] = json.dumps(content).encode()
    return metadata

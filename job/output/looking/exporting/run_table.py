"""The rows of a run in their order, read batch by batch from its parts, and if asked for from journals. Memory does not
grow with the run."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, unread_reason
from job.output.looking.found import FoundRun
from job.output.parts.counts import METADATA_KEY
from job.output.parts.older_formats import without_late_times

ROWS_PER_BATCH = 1000

FINISH_IT = "Finish it with the same job run command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows and columns of a run to export."""

    columns: tuple[str, ...] = ()
    """In the order of the exported file. Empty: all, in the order of the parts."""
    include_errors: bool = True
    """Whether to include rows with an error."""
    is_partial: bool = False
    """Whether to accept an unfinished run, and export the rows that are finished."""


class Journaled(Protocol):
    """The finished rows of shards that have no part yet."""

    @property
    def shards(self) -> Sequence[int]:
        """These shards, as far as their rows can be read."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of parts."""

    @property
    def problem(self) -> str:
        """Why rows cannot be read, if so."""

    def read(self, shard_idx: int, names: Sequence[str]) -> pa.Table:
        """Return columns of the finished rows of a shard, in their order."""


class RunTable:
    """The selected rows, which are read once."""

    def __init__(self, run: FoundRun, selection: Selection, journaled: Journaled | None = None) -> None:
        """List the parts, and read the columns from the first one.

        Args:
            journaled: the rows in journals, for a partial selection.

        Raises:
            UsageError: rows or a column are missing, or there is no part at all.
            JobError: the directory or the part cannot be read.
        """
        self.run, self._selection = run, selection
        self.num_rows = self.num_errors = self.num_left_out = 0
        parts = _shards_of(run, is_partial=selection.is_partial, journaled=journaled)
        self.num_missing = run.plan.num_completions - run.plan.count(parts)
        """Rows that are not finished, once all have been read."""
        self._journaled = journaled
        self._in_journals = frozenset(() if journaled is None else journaled.shards) - frozenset(parts)
        self._shards = sorted({*parts, *self._in_journals})
        self._part_schema = self._schema_of(parts)
        self.columns = _columns(self._part_schema, selection.columns)
        self.schema = pa.schema(
            [self._part_schema.field(name) for name in self.columns],
            metadata=_metadata(self._part_schema, self.columns),
        )

    def _schema_of(self, parts: list[int]) -> pa.Schema:
        if not parts:
            assert self._journaled is not None
            return self._journaled.schema
        with self._reading(parts[0]) as file:
            return pq.read_schema(file)

    @property
    def num_parts(self) -> int:
        """The number of shards to read."""
        return len(self._shards)

    def read(self, on_part: Callable[[], object] = lambda: None) -> Iterator[pa.RecordBatch]:
        """Yield the rows, and count them.

        Args:
            on_part: called after each part.

        Raises:
            JobError: a part cannot be read, or is not what it should be.
        """
        for shard_idx in self._shards:
            of_shard = self._read_journals if shard_idx in self._in_journals else self._read_part
            for batch in of_shard(shard_idx):
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

    def _read_journals(self, shard_idx: int) -> Iterator[pa.RecordBatch]:
        assert self._journaled is not None
        columns = list(dict.fromkeys([*self.columns, "error"]))
        table = self._journaled.read(shard_idx, columns)
        self.num_missing -= len(table)
        schema = pa.schema([self._part_schema.field(name) for name in columns])
        yield from table.cast(schema).to_batches(ROWS_PER_BATCH)

    def _read_part(self, shard_idx: int) -> Iterator[pa.RecordBatch]:
        with self._reading(shard_idx) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            self._check(file, shard_idx)
            columns = list(dict.fromkeys([*self.columns, "error"]))
            for group_idx in range(file.num_row_groups):  # one at a time: a batch of many groups would load all of them
                for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group_idx], columns=columns):
                    if self.run.manifest.is_format_2:
                        batch = without_late_times(batch)
                    batch.validate(full=True)  # before any value is read: damaged offsets point outside the batch
                    yield batch

    def _check(self, file: pq.ParquetFile, shard_idx: int) -> None:
        """Check what can be checked for free; ``job verify`` checks everything."""
        metadata = file.metadata.metadata or {}
        wrong = None
        if metadata.get(b"job.manifest") != self.run.manifest.digest.encode():
            wrong = "is not a part of this run"
        elif not file.schema_arrow.equals(self._part_schema):
            wrong = f"does not have the columns of {self.run.directory.names.part(self._shards[0])}"
        elif file.metadata.num_rows != self.run.plan.count([shard_idx]):
            wrong = f"has {file.metadata.num_rows:,} rows; the plan has {self.run.plan.count([shard_idx]):,}"
        if wrong:
            raise JobError(f"{self._describe(shard_idx)} {wrong}. Run job verify to see what to do.")

    @contextlib.contextmanager
    def _reading(self, shard_idx: int) -> Iterator[BinaryIO]:
        """Open a part, and name it in every error. (Errors of the code that consumes a generator's values do not pass
        through here.)"""
        try:
            with self.run.directory.store.open(self.run.directory.names.part(shard_idx)) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:
            raise JobError(
                f"{self._describe(shard_idx)} cannot be read: {unread_reason(error)}. Run job verify to see what to do."
            ) from None

    def _describe(self, shard_idx: int) -> str:
        return self.run.directory.store.describe(self.run.directory.names.part(shard_idx))


def _shards_of(run: FoundRun, *, is_partial: bool, journaled: Journaled | None) -> list[int]:
    """Return the shards whose parts are read, in order.

    Raises:
        UsageError: there are no rows at all, or some are missing and the export is not partial.
        JobError: the directory cannot be read.
    """
    root = run.directory.store.describe()
    try:
        written, done = run.directory.written_shards(), run.directory.done_shards()
    except OSError as error:
        raise JobError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from None
    num_missing = run.plan.num_completions - run.plan.count(written)
    there = bool(written) or bool(run.directory.journaled_shards())
    if len(written) < run.plan.num_shards and not (is_partial and (written or (journaled and journaled.shards))):
        advice = f"{FINISH_IT}, or give --partial." if there and not is_partial else f"{FINISH_IT}."
        if is_partial and journaled is not None and journaled.problem:
            advice = f"{advice} {journaled.problem}"
        rows = f"{num_missing:,} of {run.plan.num_completions:,} rows are not in a part yet"
        raise UsageError(f"{root} is not finished: {rows}. {advice}")
    if (num_marked := len(written - done)) and not is_partial:
        raise UsageError(
            f"{root} is not finished: job retry has marked error rows of {num_marked:,} part{'s'[: num_marked > 1]}. "
            f"{FINISH_IT}, or give --partial."
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
    """Return the parts' metadata about the run, without one part's counts; features only of these columns."""
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != METADATA_KEY}
    if b"huggingface" in metadata:
        content = json.loads(metadata[b"huggingface"])
        features = content["info"]["features"]
        content["info"]["features"] = {name: features[name] for name in columns}
        metadata[b"huggingface"] = json.dumps(content).encode()
    return metadata

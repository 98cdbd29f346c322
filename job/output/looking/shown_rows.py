"""Some rows of a run, finished or not, for a person to read: those in parts, and those in journals of other shards."""

import contextlib
import heapq
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.arrow.values import to_python
from job.errors import JobError, UsageError, unread_reason
from job.output.looking.found import FoundRun
from job.output.parts.journal import JournalReader
from job.output.parts.part_schema import Columns
from job.output.parts.rows import to_batch
from job.records import CUT_REASONS, Completion, RowError, SampleKey

PARSE_OK = "parse_ok"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows to show. Several kinds mean rows of any of them."""

    errors: bool = False
    cut: bool = False
    unparsed: bool = False
    row_idx: int | None = None
    num_random: int | None = None
    """This many at random, instead of the first ones."""
    limit: int | None = None

    @property
    def has_kinds(self) -> bool:
        """Whether only some kinds of rows are wanted."""
        return self.errors or self.cut or self.unparsed


def find_rows(run: FoundRun, wanted: Wanted) -> Iterator[Row]:
    """Yield the rows, in their order.

    Raises:
        UsageError: the run has no such row, or does not have the column that ``unparsed`` needs.
        JobError: a part or a journal cannot be read.
    """
    if wanted.row_idx is not None and not 0 <= wanted.row_idx < run.plan.num_rows:
        raise UsageError(f"--row is {wanted.row_idx}; the run has rows 0 to {run.plan.num_rows - 1}.")
    if wanted.unparsed and PARSE_OK not in Columns.of(run.manifest).names:
        raise UsageError("--unparsed needs a run with --json-schema, --regex or --grammar.")
    places = _places(run, wanted)
    if wanted.num_random is not None:
        # One key for each place: the largest ones are a sample, without a list of all rows.
        places = iter(sorted(heapq.nlargest(wanted.num_random, places, key=lambda _: random.random())))
    return _rows_at(run, islice(places, wanted.limit))


Place = tuple[int, int]
"""A shard, and a position among its finished rows."""


def _places(run: FoundRun, wanted: Wanted) -> Iterator[Place]:
    """Yield where the wanted rows are."""
    for shard_idx in _shards(run, wanted.row_idx):
        for position in np.flatnonzero(ShardRows(run, shard_idx).are_wanted(wanted)):
            yield shard_idx, int(position)


def _shards(run: FoundRun, row_idx: int | None) -> Iterator[int]:
    """Yield the shards that may have wanted rows."""
    if row_idx is not None:
        yield run.plan.shard_of(row_idx)
        return
    yield from sorted(run.directory.written_shards() | run.directory.journaled_shards())


def _rows_at(run: FoundRun, places: Iterator[Place]) -> Iterator[Row]:
    shard: ShardRows | None = None
    for shard_idx, position in places:
        if shard is None or shard.shard_idx != shard_idx:
            shard = ShardRows(run, shard_idx)
        yield shard.row(position)


class ShardRows:
    """The finished rows of one shard: those of its part if there is one, else those of its journals."""

    def __init__(self, run: FoundRun, shard_idx: int) -> None:
        """Read them."""
        self.shard_idx, self._run = shard_idx, run
        is_part = run.directory.store.exists(run.directory.names.part(shard_idx))
        self._journaled: pa.Table | None = None if is_part else self._read_journals()
        self._group: tuple[range, pa.Table] | None = None
        """The row group that was read last, and the positions in it."""

    def are_wanted(self, wanted: Wanted) -> Any:
        """Return for each row whether it is wanted: [rows] bool."""
        names = ["row_idx", "finish_reason", "error", *([PARSE_OK] if wanted.unparsed else [])]
        table = self.columns(names)
        is_wanted = np.full(len(table), not wanted.has_kinds)
        if wanted.errors:
            is_wanted |= _true(pc.is_valid(table["error"]))
        if wanted.cut:
            is_wanted |= _true(pc.is_in(table["finish_reason"], pa.array(CUT_REASONS)))
        if wanted.unparsed:
            is_wanted |= _true(pc.invert(table[PARSE_OK]))
        if wanted.row_idx is not None:
            is_wanted &= _true(pc.equal(table["row_idx"], wanted.row_idx))
        return is_wanted

    def columns(self, names: list[str]) -> pa.Table:
        """Return some columns of all finished rows."""
        return self._journaled.select(names) if self._journaled is not None else self._read_columns(names)

    def row(self, position: int) -> Row:
        """Return one row."""
        table = self._journaled.slice(position, 1) if self._journaled is not None else self._read_row(position)
        [row] = to_python(table)
        if isinstance(row, RowError):
            raise JobError(f"{row.detail}. job export --format parquet can copy it.")
        return row

    def _read_columns(self, names: list[str]) -> pa.Table:
        with _open_part(self._run, self.shard_idx) as file:
            return file.read(columns=names)

    def _read_row(self, position: int) -> pa.Table:
        if self._group is None or position not in self._group[0]:
            with _open_part(self._run, self.shard_idx) as file:
                self._group = _read_group(file, position)
        rows, table = self._group
        return table.slice(position - rows.start, 1)

    def _read_journals(self) -> pa.Table:
        run, columns = self._run, Columns.of(self._run.manifest)
        found: dict[SampleKey, Completion] = {}
        for name in run.directory.journals(self.shard_idx):
            for completion in JournalReader.of(run.directory, name).read():
                found.setdefault(completion.key, completion)
        completions = [found[key] for key in run.plan.keys(self.shard_idx) if key in found]
        table = pa.Table.from_batches([to_batch(completions, pa.schema(columns.of_completions))])
        for name, array in columns.derive(completions).items() if completions else ():
            table = table.append_column(name, array)
        return table


def _true(column: pa.ChunkedArray) -> Any:
    """Return where a column of truth values is true, not false or null: [rows] bool."""
    return pc.fill_null(column, False).to_numpy()


@contextlib.contextmanager
def _open_part(run: FoundRun, shard_idx: int) -> Iterator[pq.ParquetFile]:
    """Open a part for reading.

    Raises:
        JobError: it cannot be read.
    """
    store, name = run.directory.store, run.directory.names.part(shard_idx)
    try:
        with store.open(name) as source:
            yield pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{store.describe(name)} cannot be read: {unread_reason(error)}.") from None


def _read_group(file: pq.ParquetFile, position: int) -> tuple[range, pa.Table]:
    start = 0
    for group_idx in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group_idx).num_rows
        if position < stop:
            return range(start, stop), file.read_row_group(group_idx)
        start = stop
    raise AssertionError(f"position {position} of {start}")

"""The rows of a complete shard as tables, in the order of its part: those that were computed, and those that were
copied from another run, each with the columns of the dataset.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from job.output.parts.part_schema import Columns
from job.output.parts.plan import Plan
from job.output.parts.rows import num_bytes, repeat, to_batch
from job.records import Completion, RowBlock, SampleKey

ROWS_PER_GROUP, BYTES_PER_GROUP = 1000, 256 << 20
"""A row group ends at whichever limit comes first, but has at least one row: readers can seek and need little memory,
and no text column comes near the 2 GiB that Arrow's 32-bit offsets can address.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormat:
    """What all parts of a run have in common, fixed before the first row."""

    schema: Any
    """pyarrow.Schema of a part, with the metadata of every part."""
    columns: Columns
    compression: str
    kept_names: tuple[str, ...]
    """The names in parts of the columns of the dataset."""

    @classmethod
    def build(
        cls, kept_schema: pa.Schema, columns: Columns, *, compression: str, metadata: dict[bytes, bytes]
    ) -> "PartFormat":
        """Combine our columns with the kept ones of the dataset."""
        schema = columns.schema(kept_schema).with_metadata(metadata)
        return cls(schema=schema, columns=columns, compression=compression, kept_names=tuple(kept_schema.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusedRows:
    """Rows of a shard that were copied from other runs."""

    row_idx: Any
    """[N] int64: their indices in this run, ascending."""
    table: Any
    """pyarrow.Table of all samples of each: our columns, the derived ones, too."""
    keys: Any
    """[N, 16] uint8: what they ask."""


class KeptRows:
    """The columns of the dataset that a shard's rows keep. Blocks may come in any order, and overlap."""

    def __init__(self, rows: range, form: PartFormat) -> None:
        """Have none of the rows yet."""
        self._rows, self._names = rows, form.kept_names
        self._tables: dict[int, pa.Table] = {}
        """First row of a block to the kept columns of the block."""

    def add(self, block: RowBlock) -> None:
        """Add the kept columns of consecutive rows."""
        if block.rows and block.kept.num_columns:
            # They have their names in the dataset, in the order of the output, which may have others.
            self._tables[block.rows[0].row_idx] = block.kept.rename_columns(self._names)

    def unread(self) -> list[range]:
        """Return the rows whose kept columns have not been added, because other workers computed them."""
        if not self._names:
            return []
        gaps, position = [], self._rows.start
        for start, table in [*sorted(self._tables.items()), (self._rows.stop, None)]:
            if start > position:
                gaps.append(range(position, start))
            position = max(position, start + (0 if table is None else len(table)))
        return gaps

    def table(self) -> pa.Table | None:
        """Return the kept columns of all rows, in their order; None if nothing is kept."""
        tables, position = [], self._rows.start
        for start, table in sorted(self._tables.items()):
            if start + len(table) > position:
                tables.append(table.slice(position - start))
                position = start + len(table)
        return pa.concat_tables(tables) if tables else None


class PartTables:
    """Yields the row groups of a part."""

    def __init__(
        self,
        rows: range,
        plan: Plan,
        form: PartFormat,
        done: Mapping[SampleKey, Completion],
        reused: ReusedRows | None,
        kept: pa.Table | None,
    ) -> None:
        """Take what there is of a shard: each row is in ``done`` or in ``reused``."""
        self._rows, self._plan, self._form, self._done, self._kept = rows, plan, form, done, kept
        self._reused = reused

    def __iter__(self) -> Iterator[pa.Table]:
        group_rows = max(1, ROWS_PER_GROUP // self._plan.num_samples)  # samples stay together
        for start in range(self._rows.start, self._rows.stop, group_rows):
            for rows in self._halve(range(start, min(start + group_rows, self._rows.stop))):
                yield self._table(rows)

    def _halve(self, rows: range) -> Iterator[range]:
        """Halve a range of rows until each piece is within ``BYTES_PER_GROUP``, or is a single row."""
        size = 0 if self._kept is None else self._plan.num_samples * num_bytes(self._slice(self._kept, rows))
        size += sum(len(done.prompt or "") + len(done.completion or "") for done in self._completions(rows))
        size += 0 if (copied := self._copied(rows)) is None else num_bytes(copied)
        if len(rows) == 1 or size <= BYTES_PER_GROUP:
            yield rows
            return
        half = len(rows) // 2
        yield from self._halve(rows[:half])
        yield from self._halve(rows[half:])

    def _table(self, rows: range) -> pa.Table:
        schema, own = self._form.schema, self._own(rows)
        columns = dict(zip(own.column_names, own.columns, strict=True))
        if self._kept is not None and self._kept.num_columns:
            part = repeat(self._slice(self._kept, rows), self._plan.num_samples)
            columns |= dict(zip(part.column_names, part.columns, strict=True))
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _own(self, rows: range) -> pa.Table:
        """Return our columns of the rows."""
        completions, copied = self._completions(rows), self._copied(rows)
        if copied is not None and not completions:
            return copied
        batch = to_batch(completions, pa.schema(self._form.columns.of_completions))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns |= self._form.columns.derive(completions)
        fields = self._form.columns.fields
        computed = pa.table([columns[field.name] for field in fields], schema=pa.schema(fields))
        if copied is None:
            return computed
        both = pa.concat_tables([copied, computed])
        return both.take(np.argsort(both["row_idx"].to_numpy(), kind="stable"))  # the samples of a row are in order

    def _completions(self, rows: range) -> list[Completion]:
        keys = (key for row_idx in rows for key in self._plan.keys_of_row(row_idx))
        if self._reused is None:
            return [self._done[key] for key in keys]
        return [] if not self._done else [found for key in keys if (found := self._done.get(key)) is not None]

    def _copied(self, rows: range) -> pa.Table | None:
        """Return our columns of those of the rows that were copied; None if none was."""
        if self._reused is None:
            return None
        start, stop = np.searchsorted(self._reused.row_idx, [rows.start, rows.stop]).tolist()
        num_samples = self._plan.num_samples
        return None if start == stop else self._reused.table.slice(start * num_samples, (stop - start) * num_samples)

    def _slice(self, kept: pa.Table, rows: range) -> pa.Table:
        return kept.slice(rows.start - self._rows.start, len(rows))

"""One shard on its way from claimed to final: the rows it still lacks, its journal, and the Parquet file at the end."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from job.output.parts.columns import Columns
from job.output.parts.counts import Counts
from job.output.parts.journal import Journal, JournalReader
from job.output.parts.plan import Plan
from job.output.parts.rows import to_batch
from job.output.sharing.retries import completions_to_stay
from job.output.store.directory import RunDirectory
from job.records import Completion, RowBlock, SampleKey

JOURNAL_SYNC_SECS = 2.0
"""A kill loses at most the rows that finished in so many seconds."""

ROWS_PER_GROUP, BYTES_PER_GROUP = 1000, 256 << 20
"""A row group ends at the first of these, or with a single row: readers can seek, keep few large values in memory, and
no column of texts comes near Arrow's 2 GiB of 32-bit offsets.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormat:
    """What all parts of a run have in common, fixed before the first row."""

    schema: Any
    """pyarrow.Schema of the part, with the metadata that the files carry."""
    columns: Columns
    compression: str
    keeps_columns: bool
    """Whether there are columns of the dataset in it."""

    @classmethod
    def build(
        cls, kept_schema: pa.Schema, columns: Columns, *, compression: str, metadata: dict[bytes, bytes]
    ) -> "PartFormat":
        """Fix the columns from ours and those that are kept."""
        schema = columns.schema(kept_schema).with_metadata(metadata)
        return cls(schema=schema, columns=columns, compression=compression, keeps_columns=len(kept_schema) > 0)


class OpenShard:
    """A shard that this worker works on. Completions may come in any order and twice; the first one counts."""

    def __init__(
        self,
        shard_idx: int,
        plan: Plan,
        directory: RunDirectory,
        part_format: PartFormat,
        worker_id: str,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take over what the journals of earlier workers hold, and what is to stay of a part with rows to retry.

        Args:
            note: tells the user.
        """
        self._note, self._given_up = note, set[str]()
        self.shard_idx = shard_idx
        self._plan, self._directory, self._format = plan, directory, part_format
        self._store, self._part = directory.store, directory.names.part(shard_idx)
        self._keys = list(plan.keys(shard_idx))
        self._missing = set(self._keys)
        self._done: dict[SampleKey, Completion] = {}
        self.counts = Counts()
        """What is done of this shard."""
        self._readers: dict[str, JournalReader] = {}
        """Of other workers' journals."""
        self._kept: dict[int, pa.Table] = {}
        """First row to the kept columns from there on."""
        unused = _unused_journal(directory, shard_idx, worker_id)
        self._journal = Journal(self._store, unused, part_format.columns.journaled, sync_secs=JOURNAL_SYNC_SECS)
        # What stays of a part under retry comes first: a row that has its completion takes no other.
        self._take(completions_to_stay(directory, shard_idx, part_format.columns))
        self.absorb()

    @property
    def rows(self) -> range:
        """The row indices of this shard."""
        return self._plan.rows(self.shard_idx)

    @property
    def is_complete(self) -> bool:
        """Whether every row has its completion."""
        return not self._missing

    def has(self, key: SampleKey) -> bool:
        """Whether a completion is there already, from this worker or another."""
        return key in self._done

    def absorb(self) -> None:
        """Take over what other workers' journals have gained: those who were here before, and those who help."""
        # Every journal each time: a helper may have come since. Its reader remembers how far it has read.
        for name in self._directory.journals(self.shard_idx):
            if name != self._journal.name:
                reader = self._readers.setdefault(name, JournalReader(self._store, name))
                self._take(reader.read())
                if reader.damage is not None and name not in self._given_up:
                    self._given_up.add(name)
                    self._note(reader.damage)

    def _take(self, completions: Iterable[Completion]) -> None:
        for completion in completions:
            if completion.key in self._missing:
                self._missing.discard(completion.key)
                self._done[completion.key] = completion
                self.counts.add(completion)

    def keep(self, block: RowBlock) -> None:
        """Add the kept columns of consecutive rows."""
        if block.rows and block.kept.num_columns:
            self._kept[block.rows[0].row_idx] = block.kept

    def unread(self) -> list[range]:
        """Return the rows whose kept columns have not been added: others have computed them."""
        if not self._format.keeps_columns:
            return []
        gaps, position = [], self.rows.start
        for start, table in [*sorted(self._kept.items()), (self.rows.stop, None)]:
            if start > position:
                gaps.append(range(position, start))
            position = max(position, start + (0 if table is None else len(table)))
        return gaps

    def add(self, completion: Completion) -> None:
        """Add a finished row. It is durable after the journal's next sync."""
        if completion.key in self._missing:
            self._take([completion])
            self._journal.append(completion)

    @property
    def num_done(self) -> int:
        """Finished rows, from this worker and earlier ones."""
        return len(self._done)

    def sync_if_due(self) -> None:
        """Let the journal sync if the last time is long enough ago."""
        with self._unless_finished_by_another():
            self._journal.sync_if_due()

    def sync(self) -> None:
        """Make all that was added durable now."""
        with self._unless_finished_by_another():
            self._journal.sync()

    def close(self) -> None:
        """Leave the shard unfinished; its journal holds all that was added."""
        with self._unless_finished_by_another():
            self._journal.close()

    def finish(self) -> None:
        """Write the part, check it, give it its final name, and remove the journals.

        The order matters: rows are in the journal until the final name is durable.
        """
        assert self.is_complete, f"shard {self.shard_idx}: {len(self._done)} of {len(self._keys)} rows are there"
        assert not self.unread(), f"shard {self.shard_idx}: the kept columns of {self.unread()} are not there"
        self.close()
        # Rows stay in the journals until the part is durable under its final name: a kill at any line here loses none.
        with self._unless_finished_by_another(), self._store.writing(self._part) as file:
            self._write(file)
            self._verify(file)
        # What killed workers had half-written of it. A slower living one learns in this way that the shard is done.
        self._store.discard("", self._directory.names.drafts_of_part(self.shard_idx))
        for journal in self._directory.journals(self.shard_idx):
            self._store.delete(journal)
        # The marker of a retry last. Had it been removed before the part was replaced, a kill between the two would
        # have made the old part, with its errors, the last word.
        self._store.delete(self._directory.names.retry(self.shard_idx))

    @contextlib.contextmanager
    def _unless_finished_by_another(self) -> Iterator[None]:
        """Let pass that something of ours is missing, once there is a part: whoever wrote it has removed all else."""
        try:
            yield
        except FileNotFoundError:
            if not self._store.exists(self._part):
                raise

    def _write(self, file: BinaryIO) -> None:
        schema = self._format.schema
        compression = None if self._format.compression == "none" else self._format.compression
        # Checksums of pages let ``job verify`` find every flipped bit; they cost 0.6 % of a small part.
        with pq.ParquetWriter(
            file, self._schema_with_counts(), compression=compression, write_page_checksum=True
        ) as writer:
            for table in self._tables(schema):
                writer.write_table(table)
            if not self._keys:
                writer.write_table(schema.empty_table())

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        kept = self._kept_table()
        group_rows = max(1, ROWS_PER_GROUP // self._plan.num_samples)  # samples stay together
        for start in range(self.rows.start, self.rows.stop, group_rows):
            for rows in self._light(range(start, min(start + group_rows, self.rows.stop)), kept):
                yield self._table(rows, kept, schema)

    def _light(self, rows: range, kept: pa.Table | None) -> Iterator[range]:
        """Cut rows into pieces that are not too large, or single rows."""
        num_bytes = 0 if kept is None else self._plan.num_samples * _num_bytes(self._slice(kept, rows))
        num_bytes += sum(len(done.prompt or "") + len(done.completion or "") for done in self._completions(rows))
        if len(rows) == 1 or num_bytes <= BYTES_PER_GROUP:
            yield rows
            return
        half = len(rows) // 2
        yield from self._light(rows[:half], kept)
        yield from self._light(rows[half:], kept)

    def _table(self, rows: range, kept: pa.Table | None, schema: pa.Schema) -> pa.Table:
        completions = self._completions(rows)
        batch = to_batch(completions, pa.schema(self._format.columns.of_completions))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns |= self._format.columns.derive(completions)
        if kept is not None and kept.num_columns:
            part = _repeat(self._slice(kept, rows), self._plan.num_samples)
            columns |= dict(zip(part.column_names, part.columns, strict=True))
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _completions(self, rows: range) -> list[Completion]:
        return [self._done[key] for row_idx in rows for key in self._plan.keys_of_row(row_idx)]

    def _slice(self, kept: pa.Table, rows: range) -> pa.Table:
        return kept.slice(rows.start - self.rows.start, len(rows))

    def _kept_table(self) -> pa.Table | None:
        """Return the kept columns of all rows, in their order. Blocks may overlap: a slice may have been read twice."""
        tables, position = [], self.rows.start
        for start, table in sorted(self._kept.items()):
            if start + len(table) > position:
                tables.append(table.slice(position - start))
                position = start + len(table)
        return pa.concat_tables(tables) if tables else None

    def _schema_with_counts(self) -> pa.Schema:
        """Add this part's own counts to the metadata, so that totals need no more than the footers."""
        return self._format.schema.with_metadata({**(self._format.schema.metadata or {}), **self.counts.to_metadata()})

    def _verify(self, file: BinaryIO) -> None:
        """Read the keys back and compare them with the plan: a hole or a double here is a bug, never a part."""
        file.seek(0)
        table = pq.ParquetFile(file).read(columns=["row_idx", "sample_idx"])
        keys = list(zip(table["row_idx"].to_pylist(), table["sample_idx"].to_pylist(), strict=True))
        assert keys == self._keys, f"shard {self.shard_idx}: {len(keys)} rows written, {len(self._keys)} in the plan"


def _num_bytes(table: pa.Table) -> int:
    """Return what rows take; a dictionary is there once, however many they are."""
    return sum(column.nbytes for column in table.columns if not pa.types.is_dictionary(column.type))


def _repeat(table: pa.Table, times: int) -> pa.Table:
    """Return each row so many times. Values are not copied if there is one row, or it stays alone."""
    if times == 1:
        return table
    if len(table) == 1:
        return pa.concat_tables([table] * times)
    return table.take([row for row in range(len(table)) for _ in range(times)])


def _unused_journal(directory: RunDirectory, shard_idx: int, worker_id: str) -> str:
    """Return a journal's name that this worker has not used: it may have left the shard before, and left rows there."""
    names = (worker_id if n == 0 else f"{worker_id}-{n}" for n in itertools.count())
    journals = (directory.names.journal(shard_idx, name) for name in names)
    return next(name for name in journals if not directory.store.exists(name))

"""One shard from its claim to its part: the rows it still lacks, its journal, and the Parquet file at the end."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from job.output.parts.counts import Counts
from job.output.parts.encodings import dictionary_columns
from job.output.parts.journal import Journal, JournalReader
from job.output.parts.part_schema import Columns
from job.output.parts.plan import Plan
from job.output.parts.redone import Redone, counted, to_metadata
from job.output.parts.retry_marks import completions_to_stay, read_mark, redone_rows, writers_before
from job.output.parts.rows import num_bytes, repeat, to_batch
from job.output.parts.writers import to_metadata as writers_to_metadata
from job.output.parts.writers import writer_of, writer_of_journal
from job.output.store.directory import RunDirectory
from job.output.store.store import Stamp
from job.records import Completion, RowBlock, SampleKey

JOURNAL_SYNC_SECS = 2.0
"""A kill loses at most the rows that finished in this time, or in the store's ``pause_secs`` if that is longer."""

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


class OpenShard:
    """A shard that this worker works on. Completions may come in any order, even twice; the first one counts."""

    def __init__(
        self,
        shard_idx: int,
        plan: Plan,
        directory: RunDirectory,
        part_format: PartFormat,
        worker_id: str,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load the finished rows: those that a retry keeps of an existing part, and those in earlier workers' journals.

        Args:
            note: shows a message to the user.
        """
        self._note, self._given_up = note, set[str]()
        self.shard_idx = shard_idx
        self._plan, self._directory, self._format = plan, directory, part_format
        self._store, self._part = directory.store, directory.names.part(shard_idx)
        mark = read_mark(directory, shard_idx)
        self._old_part = None if mark is None else self._stamp_of_retried()
        """What the new part replaces."""
        self.changes: Mapping[str, Any] = {}
        """Sampling options of the rows that are missing, in place of the run's."""
        self._redone: Redone = {}
        self._keys = list(plan.keys(shard_idx))
        self._missing = set(self._keys)
        self._done: dict[SampleKey, Completion] = {}
        self._writer, self._writers = writer_of(worker_id), dict[SampleKey, str]()
        self.counts = Counts()
        """Counts of the finished rows."""
        self._readers: dict[str, JournalReader] = {}
        """Name of another worker's journal to its reader."""
        self._kept: dict[int, pa.Table] = {}
        """First row of a block to the kept columns of the block."""
        sync_secs = max(JOURNAL_SYNC_SECS, self._store.pause_secs)
        unused = _unused_journal(directory, shard_idx, worker_id)
        self._journal = Journal(self._store, unused, part_format.columns.journaled, sync_secs=sync_secs)
        # Rows that a retry keeps come first, since the first completion of a row counts.
        if mark is not None and self._old_part is not None:
            before = writers_before(directory, shard_idx, self._keys)
            for completion in completions_to_stay(directory, shard_idx, part_format.columns, mark):
                self._take([completion], before[completion.key])
            self._redone = redone_rows(directory, shard_idx, mark, done=self._done, missing=self._missing)
            self.changes = mark.changes
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
        """Whether this completion is finished already, by this worker or another."""
        return key in self._done

    def absorb(self) -> None:
        """Load new rows from the journals of other workers: those that held the shard before, and those that help."""
        # All journals are listed each time, since a new helper may have come. Each reader remembers its position.
        for name in self._directory.journals(self.shard_idx):
            if name != self._journal.name:
                reader = self._readers.setdefault(name, JournalReader(self._store, name))
                self._take(reader.read(), writer_of_journal(name))
                if reader.damage is not None and name not in self._given_up:
                    self._given_up.add(name)
                    self._note(reader.damage)

    def _take(self, completions: Iterable[Completion], writer: str) -> None:
        for completion in completions:
            if completion.key in self._missing:
                self._missing.discard(completion.key)
                self._done[completion.key], self._writers[completion.key] = completion, writer
                self.counts.add(completion)

    def keep(self, block: RowBlock) -> None:
        """Add the kept columns of consecutive rows."""
        if block.rows and block.kept.num_columns:
            # They have their names in the dataset, in the order of the output, which may have others.
            self._kept[block.rows[0].row_idx] = block.kept.rename_columns(self._format.kept_names)

    def unread(self) -> list[range]:
        """Return the rows whose kept columns have not been added, because other workers computed them."""
        if not self._format.kept_names:
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
            self._take([completion], self._writer)
            self._journal.append(completion)

    @property
    def cut(self) -> set[SampleKey]:
        """The completions that their limit has cut."""
        return {key for key, completion in self._done.items() if completion.finish_reason == "length"}

    def sync_if_due(self) -> None:
        """Sync the journal if its last sync is long enough ago."""
        with self._unless_finished_by_another():
            self._journal.sync_if_due()

    def sync(self) -> None:
        """Make everything that was added durable now."""
        with self._unless_finished_by_another():
            self._journal.sync()

    def close(self) -> None:
        """Close the journal, which then contains everything that was added. The shard may be unfinished."""
        with self._unless_finished_by_another():
            self._journal.close()

    def finish(self) -> None:
        """Write the part, check it, give it its final name, and remove the journals.

        The order matters: rows are in the journal until the final name is durable.
        """
        assert self.is_complete, f"shard {self.shard_idx}: {len(self._done)} of {len(self._keys)} rows are finished"
        assert not self.unread(), f"shard {self.shard_idx}: the kept columns of {self.unread()} are missing"
        self.close()
        # Rows stay in the journals until the part is durable under its final name: a kill at any line here loses none.
        is_written = False
        with self._unless_finished_by_another():
            with self._store.writing(self._part, self._old_part) as file:
                self._write(file)
                self._verify(file)
            is_written = True
        if not is_written:
            return  # what is left belongs to the other worker, or by now to a retry, whose marker must stay
        # Drafts of killed workers. A slower live worker loses its own here, and so learns that the shard is done.
        self._store.discard("", self._directory.names.drafts_of_part(self.shard_idx))
        for log in self._directory.logs(self.shard_idx):
            self._store.delete(log)
        # The retry marker goes last. If it were deleted before the part is replaced, a kill between the two would make
        # the old part, with its errors, final.
        self._store.delete(self._directory.names.retry(self.shard_idx))

    def _stamp_of_retried(self) -> Stamp | None:
        with contextlib.suppress(FileNotFoundError):
            return self._store.stamp(self._part)
        return None

    @contextlib.contextmanager
    def _unless_finished_by_another(self) -> Iterator[None]:
        """Ignore that a file of ours is missing if the part exists: the worker that wrote it removed the others."""
        try:
            yield
        except FileNotFoundError:
            if not self._store.exists(self._part):
                raise

    def _write(self, file: BinaryIO) -> None:
        schema = self._format.schema
        compression = None if self._format.compression == "none" else self._format.compression
        # With page checksums, ``job verify`` finds every flipped bit. They add 0.6 % to a small part.
        encodings = {"use_dictionary": dictionary_columns(schema), "compression": compression}
        with pq.ParquetWriter(file, schema, write_page_checksum=True, **encodings) as writer:
            self.counts.tallies.clear()
            for table in self._tables(schema):
                self.counts.tally(table, self._format.columns.modes)
                writer.write_table(table)
            if not self._keys:
                writer.write_table(schema.empty_table())
            # The part's own counts, so that totals need only the footers.
            self.counts.redone = counted(self._redone)
            writers = writers_to_metadata(self._writers[key] for key in self._keys)
            writer.add_key_value_metadata(self.counts.to_metadata() | to_metadata(self._redone) | writers)

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        kept = self._kept_table()
        group_rows = max(1, ROWS_PER_GROUP // self._plan.num_samples)  # samples stay together
        for start in range(self.rows.start, self.rows.stop, group_rows):
            for rows in self._halve(range(start, min(start + group_rows, self.rows.stop)), kept):
                yield self._table(rows, kept, schema)

    def _halve(self, rows: range, kept: pa.Table | None) -> Iterator[range]:
        """Halve a range of rows until each piece is within ``BYTES_PER_GROUP``, or is a single row."""
        size = 0 if kept is None else self._plan.num_samples * num_bytes(self._slice(kept, rows))
        size += sum(len(done.prompt or "") + len(done.completion or "") for done in self._completions(rows))
        if len(rows) == 1 or size <= BYTES_PER_GROUP:
            yield rows
            return
        half = len(rows) // 2
        yield from self._halve(rows[:half], kept)
        yield from self._halve(rows[half:], kept)

    def _table(self, rows: range, kept: pa.Table | None, schema: pa.Schema) -> pa.Table:
        completions = self._completions(rows)
        batch = to_batch(completions, pa.schema(self._format.columns.of_completions))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns |= self._format.columns.derive(completions)
        if kept is not None and kept.num_columns:
            part = repeat(self._slice(kept, rows), self._plan.num_samples)
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

    def _verify(self, file: BinaryIO) -> None:
        """Read the keys back and compare them with the plan: a missing or duplicate row is a bug, never a part."""
        file.seek(0)
        table = pq.ParquetFile(file).read(columns=["row_idx", "sample_idx"])
        keys = list(zip(table["row_idx"].to_pylist(), table["sample_idx"].to_pylist(), strict=True))
        assert keys == self._keys, f"shard {self.shard_idx}: {len(keys)} rows written, {len(self._keys)} in the plan"


def _unused_journal(directory: RunDirectory, shard_idx: int, worker_id: str) -> str:
    """Return an unused name for a journal: this worker may have left the shard before, with rows in a journal."""
    names = (worker_id if n == 0 else f"{worker_id}-{n}" for n in itertools.count())
    return directory.unused(directory.names.journal(shard_idx, name) for name in names)

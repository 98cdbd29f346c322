"""One shard from its claim to its part: the rows it still lacks, its journal, and the Parquet file at the end."""

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from job.output.parts.counts import Counts
from job.output.parts.encodings import dictionary_columns
from job.output.parts.fence import FencedOff
from job.output.parts.journal import Journal, JournalReader
from job.output.parts.part_tables import KeptRows, PartFormat, PartTables, ReusedRows
from job.output.parts.plan import Plan
from job.output.parts.redone import Redone, counted, described, to_metadata
from job.output.parts.retry_marks import completions_to_stay, read_mark, redone_rows, writers_before
from job.output.parts.row_keys import ROW_KEY, RowKeys, read_keys
from job.output.parts.writers import COPIED, writer_of, writer_of_journal
from job.output.parts.writers import to_metadata as writers_to_metadata
from job.output.store.directory import RunDirectory
from job.output.store.store import Stamp
from job.records import Completion, RowBlock, SampleKey

JOURNAL_SYNC_SECS = 2.0
"""A kill loses at most the rows that finished in this time, or in the store's ``pause_secs`` if that is longer."""

KEY_COLUMNS = ["row_idx", "sample_idx"]


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
        reuse: Callable[[int], ReusedRows | None] = lambda shard_idx: None,
        own_changes: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """Load the finished rows: those that a retry keeps of an existing part, those that are copied from other runs,
        and those in earlier workers' journals.

        Args:
            note: shows a message to the user.
            reuse: returns what is copied of a shard.
            own_changes: sampling options of single rows in place of the run's, if they are computed.
        """
        self._note, self._given_up = note, set[str]()
        self.shard_idx = shard_idx
        self._plan, self._format = plan, part_format
        self._store, self._part = directory.store, directory.names.part(shard_idx)
        mark = read_mark(directory, shard_idx)
        self.directory = directory = directory.of_retry("" if mark is None else mark.retry_id)
        """The directory for those who know the shard as this worker does."""
        self._is_retry = mark is not None
        self._old_part = None if mark is None else self._stamp_of_part()
        """What the new part replaces."""
        self.changes: Mapping[str, Any] = {}
        """Sampling options of the rows that are missing, in place of the run's."""
        self._own_changes = own_changes or {}
        self._redone: Redone = {}
        self._keys = list(plan.keys(shard_idx))
        self._missing = set(self._keys)
        self._row_keys = RowKeys(self.rows, None if mark is None else read_keys(directory, shard_idx, len(self.rows)))
        self._reused: ReusedRows | None = None
        self._done: dict[SampleKey, Completion] = {}
        self._writer, self._writers = writer_of(worker_id), dict[SampleKey, str]()
        self.counts = Counts()
        """Counts of the finished rows."""
        self._readers: dict[str, JournalReader] = {}
        """Name of another worker's journal to its reader."""
        self._kept = KeptRows(self.rows, part_format)
        sync_secs = max(JOURNAL_SYNC_SECS, self._store.pause_secs)
        unused = unused_journal(directory, shard_idx, worker_id)
        self._journal = Journal(self._store, unused, part_format.columns.journaled, sync_secs=sync_secs)
        # Rows that a retry keeps come first, since the first completion of a row counts.
        if mark is not None and self._old_part is not None:
            before = writers_before(directory, shard_idx, self._keys)
            for completion in completions_to_stay(directory, shard_idx, part_format.columns, mark):
                self._take([completion], before[completion.key])
            self._redone = redone_rows(directory, shard_idx, mark, done=self._done, missing=self._missing)
            self.changes = mark.changes
        elif (reused := reuse(shard_idx)) is not None:
            self._copy(reused)
        self._redone = {**self._redone, **self._redone_alone()}
        self.absorb()

    def _redone_alone(self) -> Redone:
        rows = ((key, self.changes_of(key[0])) for key in self._missing if key[0] in self._own_changes)
        return {key: described(changes) for key, changes in rows}

    def changes_of(self, row_idx: int) -> Mapping[str, Any]:
        """Return the sampling options of a row that is missing, in place of the run's."""
        return {**self._own_changes.get(row_idx, {}), **self.changes}

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
        return key not in self._missing

    def absorb(self) -> None:
        """Load new rows from the journals of other workers: those that held the shard before, and those that help."""
        # All journals are listed each time, since a new helper may have come. Each reader remembers its position.
        for name in self.directory.journals(self.shard_idx):
            if name != self._journal.name:
                reader = self._readers.setdefault(name, JournalReader.of(self.directory, name))
                self._take(reader.read(), writer_of_journal(name))
                if reader.damage is not None and name not in self._given_up:
                    self._given_up.add(name)
                    self._note(reader.damage)

    def _take(self, completions: Iterable[Completion], writer: str) -> None:
        for completion in completions:
            if completion.key in self._missing:
                self._missing.discard(completion.key)
                self._done[completion.key], self._writers[completion.key] = completion, writer
                if ROW_KEY in completion.values:
                    self._row_keys.set(completion.row_idx, completion.values[ROW_KEY])
                self.counts.add(completion)

    def _copy(self, reused: ReusedRows) -> None:
        """Take rows of other runs. They come before those in journals, since the first completion of a row counts."""
        self._reused = reused
        self._row_keys.set_all(reused.row_idx, reused.keys)
        self._missing.difference_update(zip(*(reused.table[name].to_pylist() for name in KEY_COLUMNS), strict=True))
        self.counts.add_batch(reused.table)

    def identify(self, row_idx: int, key: bytes | None) -> None:
        """Take what a row asks (``RowKeys``), before its completions are added."""
        self._row_keys.set(row_idx, key)

    def keep(self, block: RowBlock) -> None:
        """Add the kept columns of consecutive rows."""
        self._kept.add(block)

    def unread(self) -> list[range]:
        """Return the rows whose kept columns have not been added, because other workers computed them."""
        return self._kept.unread()

    def add(self, completion: Completion) -> None:
        """Add a finished row. It is durable after the journal's next sync."""
        if completion.key in self._missing:
            self._take([completion], self._writer)
            key = self._row_keys.of(completion.row_idx)
            self._journal.append(replace(completion, values={**completion.values, ROW_KEY: key}))

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

    def finish(self, is_fenced_off: Callable[[], bool] = lambda: False) -> None:
        """Write the part, check it, give it its final name, and remove the journals.

        The order matters: rows are in the journal until the final name is durable.

        Args:
            is_fenced_off: whether this worker's rows count no more (``fence``).

        Raises:
            FencedOff: they do not. Nothing was written.
        """
        assert self.is_complete, f"shard {self.shard_idx}: {len(self._done)} of {len(self._keys)} rows are finished"
        assert not self.unread(), f"shard {self.shard_idx}: the kept columns of {self.unread()} are missing"
        self.close()
        # Rows stay in the journals until the part is durable under its final name: a kill at any line here loses none.
        is_written = False
        with self._unless_finished_by_another():
            with (
                self._store.writing(self._part, self._old_part) as file,
                self._row_keys.settling(self.directory, self.shard_idx),
            ):
                self._write(file)
                self._verify(file)
                self._check_last_time(is_fenced_off)
            is_written = True
        if not is_written:
            return  # what is left belongs to the other worker, or by now to a retry, whose marker must stay
        # Drafts of killed workers. A slower live worker loses its own here, and so learns that the shard is done.
        self._store.discard("", self.directory.names.drafts_of_part(self.shard_idx))
        for log in self.directory.logs(self.shard_idx):
            self._store.delete(log)
        # The retry marker goes last. If it were deleted before the part is replaced, a kill between the two would make
        # the old part, with its errors, final. If there was none, one that is there now is of a later retry.
        if self._is_retry:
            self._store.delete(self.directory.names.retry(self.shard_idx))

    def _stamp_of_part(self) -> Stamp | None:
        with contextlib.suppress(FileNotFoundError):
            return self._store.stamp(self._part)
        return None

    def _check_last_time(self, is_fenced_off: Callable[[], bool]) -> None:
        """Check, with the drafts in place, that they may get their names. From here on, whoever thinks otherwise
        discards them.

        Raises:
            FencedOff: this worker's rows count no more.
            FileNotFoundError: there is another part now: by another worker, or by a retry, whose rows it has.
        """
        if is_fenced_off():
            raise FencedOff
        if (found := self._stamp_of_part()) is not None and found != self._old_part:
            raise FileNotFoundError(errno.ENOENT, "another process has written it in the meantime", self._part)

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
            rows = PartTables(self.rows, self._plan, self._format, self._done, self._reused, self._kept.table())
            for table in rows:
                self.counts.tally(table, self._format.columns.modes)
                writer.write_table(table)
            if not self._keys:
                writer.write_table(schema.empty_table())
            # The part's own counts, so that totals need only the footers.
            self.counts.redone = counted(self._redone)
            writers = writers_to_metadata(self._writers.get(key, COPIED) for key in self._keys)
            writer.add_key_value_metadata(self.counts.to_metadata() | to_metadata(self._redone) | writers)

    def _verify(self, file: BinaryIO) -> None:
        """Read the keys back and compare them with the plan: a missing or duplicate row is a bug, never a part."""
        file.seek(0)
        table = pq.ParquetFile(file).read(columns=KEY_COLUMNS)
        keys = list(zip(*(table[name].to_pylist() for name in KEY_COLUMNS), strict=True))
        assert keys == self._keys, f"shard {self.shard_idx}: {len(keys)} rows written, {len(self._keys)} in the plan"


def unused_journal(directory: RunDirectory, shard_idx: int, worker_id: str) -> str:
    """Return an unused name for a journal: this worker may have left the shard before, with rows in a journal."""
    names = (worker_id if n == 0 else f"{worker_id}-{n}" for n in itertools.count())
    return directory.unused(directory.names.journal(shard_idx, name) for name in names)

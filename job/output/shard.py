"""One shard on its way from claimed to final: the rows it still lacks, its journal, and the Parquet file at the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job.output.counts import Counts
from job.output.files import fsync_dir, fsync_file
from job.output.journal import COMPLETION_SCHEMA, LOGPROB_COLUMNS, Journal, completions_to_batch, read_journal
from job.output.paths import RunPaths
from job.output.plan import Plan
from job.records import Completion, RowBlock, SampleKey

JOURNAL_SYNC_SECS = 2.0
"""A kill loses at most the rows that finished in so many seconds."""

ROWS_PER_GROUP = 1000
"""Small row groups: readers can seek, and no string column of a group comes near Arrow's 2 GiB of 32-bit offsets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormat:
    """What all parts of a run have in common, fixed before the first row."""

    schema: Any
    """pyarrow.Schema of the part, with the metadata that the files carry."""
    compression: str

    @classmethod
    def build(
        cls,
        kept_schema: pa.Schema,
        *,
        include_prompt: bool,
        logprobs: bool,
        compression: str,
        metadata: dict[bytes, bytes],
    ) -> "PartFormat":
        """Fix the columns from those that are kept."""
        schema = output_schema(kept_schema, include_prompt=include_prompt, logprobs=logprobs).with_metadata(metadata)
        return cls(schema=schema, compression=compression)


def own_columns(*, include_prompt: bool, logprobs: bool) -> list[pa.Field]:
    """Return the columns that are ours, not the dataset's, in the order of the output."""
    left_out = (set() if include_prompt else {"prompt"}) | (set() if logprobs else set(LOGPROB_COLUMNS))
    return [field for field in COMPLETION_SCHEMA if field.name not in left_out]


def output_schema(kept_schema: pa.Schema, *, include_prompt: bool, logprobs: bool) -> pa.Schema:
    """Put the kept columns after the indices and the completion's columns after them; the metadata stays."""
    own = own_columns(include_prompt=include_prompt, logprobs=logprobs)
    head, tail = own[:2], own[2:]
    return pa.schema([*head, *kept_schema, *tail], metadata=kept_schema.metadata)


class OpenShard:
    """A shard that this worker holds. Completions may come in any order and twice; the first one counts."""

    def __init__(self, shard_idx: int, plan: Plan, paths: RunPaths, part_format: PartFormat, worker_id: str) -> None:
        """Take over what the journals of earlier workers hold."""
        self.shard_idx = shard_idx
        self._plan, self._paths, self._format, self._worker_id = plan, paths, part_format, worker_id
        self._keys = list(plan.keys(shard_idx))
        wanted = set(self._keys)
        self._done: dict[SampleKey, Completion] = {}
        for path in paths.journals(shard_idx):
            for completion in read_journal(path):
                if completion.key in wanted:
                    self._done.setdefault(completion.key, completion)
        self._kept: list[pa.Table] = []
        self._num_read = 0
        self._journal = Journal(paths.journal(shard_idx, worker_id), sync_secs=JOURNAL_SYNC_SECS)

    @property
    def rows(self) -> range:
        """The row indices of this shard."""
        return self._plan.rows(self.shard_idx)

    @property
    def is_complete(self) -> bool:
        """Whether every row has its completion and the kept columns have been read."""
        return len(self._done) == len(self._keys) and self._num_read == len(self.rows)

    def has(self, key: SampleKey) -> bool:
        """Whether a completion is there already, from this worker or an earlier one."""
        return key in self._done

    def keep(self, block: RowBlock) -> None:
        """Add the kept columns of the next rows, in row order."""
        self._num_read += len(block.rows)
        self._kept.append(block.kept)

    def add(self, completion: Completion) -> None:
        """Add a finished row. It is durable after the journal's next sync."""
        if completion.key not in self._done:
            self._done[completion.key] = completion
            self._journal.append(completion)

    @property
    def num_done(self) -> int:
        """Finished rows, from this worker and earlier ones."""
        return len(self._done)

    def sync_if_due(self) -> None:
        """Let the journal sync if the last time is long enough ago."""
        self._journal.sync_if_due()

    def close(self) -> None:
        """Leave the shard unfinished; its journal holds all that was added."""
        self._journal.close()

    def finish(self) -> None:
        """Write the part, check it, give it its final name, and remove the journals.

        The order matters: rows are in the journal until the final name is durable.
        """
        assert self.is_complete, f"shard {self.shard_idx}: {len(self._done)} of {len(self._keys)} rows are there"
        self._journal.close()
        final, tmp = self._paths.part(self.shard_idx), self._paths.part_tmp(self.shard_idx, self._worker_id)
        try:
            self._write(tmp)
            self._verify(tmp)
            fsync_file(tmp)
            tmp.replace(final)
        except FileNotFoundError:
            if not final.exists():  # else another worker finished the same shard meanwhile, and removed our file
                raise
        fsync_dir(final.parent)
        for leftover in self._paths.journals(self.shard_idx) + self._paths.part_tmps(self.shard_idx):
            leftover.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        schema = self._format.schema
        compression = None if self._format.compression == "none" else self._format.compression
        with pq.ParquetWriter(path, self._schema_with_counts(), compression=compression) as writer:
            for table in self._tables(schema):
                writer.write_table(table)
            if not self._keys:
                writer.write_table(schema.empty_table())

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        kept = pa.concat_tables(self._kept) if self._kept else None
        for start in range(0, len(self._keys), ROWS_PER_GROUP):
            keys = self._keys[start : start + ROWS_PER_GROUP]
            batch = completions_to_batch(self._done[key] for key in keys)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if kept is not None and kept.num_columns:
                first_row = keys[0][0]
                near = kept.slice(first_row - self.rows.start, keys[-1][0] - first_row + 1)
                part = near.take([row_idx - first_row for row_idx, _ in keys])
                columns |= dict(zip(part.column_names, part.columns, strict=True))
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    def _schema_with_counts(self) -> pa.Schema:
        """Add this part's own counts to the metadata, so that totals need no more than the footers."""
        counts = Counts.of(self._done.values()).to_metadata()
        return self._format.schema.with_metadata({**(self._format.schema.metadata or {}), **counts})

    def _verify(self, path: Path) -> None:
        """Read the keys back and compare them with the plan: a hole or a double here is a bug, never a file."""
        table = pq.read_table(path, columns=["row_idx", "sample_idx"])
        keys = list(zip(table["row_idx"].to_pylist(), table["sample_idx"].to_pylist(), strict=True))
        assert keys == self._keys, f"shard {self.shard_idx}: {len(keys)} rows written, {len(self._keys)} in the plan"

"""Checks one part against the plan and the manifest: it is readable and of this run, and its rows are right and valid.

Reads row group by row group, in batches: a part may be larger than memory.
"""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import first_line
from job.output.looking.found import FoundRun
from job.output.parts import writers
from job.output.parts.counts import METADATA_KEY, Counts
from job.output.parts.older_formats import without_late_times
from job.output.parts.part_schema import REUSED_FROM, Columns
from job.output.parts.redone import Redone, counted, from_metadata
from job.records import CUT_REASONS, SampleKey

ROWS_PER_BATCH = 1000
FINISH_REASONS = ("stop", *CUT_REASONS)

LATER_COUNTS = ("finish_reasons", "tallies", "first_errors")
"""What the footers of older versions do not contain."""


class PartProblem(Exception):
    """What is wrong with a part, worded to follow its name."""


def check_part(run: FoundRun, shard_idx: int, like: pa.Schema | None) -> tuple[Counts, pa.Schema]:
    """Read a part in full.

    Args:
        like: the schema of the run's other parts; None if this is the first.

    Returns:
        The counts of its rows, and its schema.

    Raises:
        PartProblem: the first problem that was found.
        PermissionError: the file may not be read.
    """
    where = ""
    try:
        with (
            run.directory.store.open(run.directory.names.part(shard_idx)) as source,
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            metadata = file.metadata.metadata or {}
            _check_origin(metadata, run)
            _check_columns(file.schema_arrow, run, like)
            check = RowCheck(run, shard_idx)
            for group_idx in range(file.num_row_groups):
                where = f", row group {group_idx} of {file.num_row_groups}"
                for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group_idx]):
                    if run.manifest.is_format_2:
                        batch = without_late_times(batch)
                    batch.validate(full=True)  # before any value is read: damaged offsets point outside the batch
                    check.add(batch)
            check.finish()
            check.add_redone(from_metadata(metadata))
            _check_counts(metadata, check.counts)
            writers.from_metadata(metadata, check.counts.num_rows)
            return check.counts, file.schema_arrow
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PartProblem(f"cannot be read{where}: {first_line(error)}") from None


def _check_origin(metadata: dict[bytes, bytes], run: FoundRun) -> None:
    digest = metadata.get(b"job.manifest")
    if digest is None:
        raise PartProblem("is not a part of a run: it names no manifest")
    if digest != run.manifest.digest.encode():
        raise PartProblem("is a part of another run: it names another manifest")


def _check_columns(schema: pa.Schema, run: FoundRun, like: pa.Schema | None) -> None:
    """Compare a part's columns with those in the manifest, and their types with those of the other parts."""
    columns, own = run.manifest.section("columns"), Columns.of(run.manifest).fields
    head, tail = [column.name for column in own[:2]], [column.name for column in own[2:]]
    kept = schema.names[len(head) : len(schema.names) - len(tail)]
    is_kept = [f"{name}: " == text[: len(name) + 2] for name, text in zip(kept, columns["kept"], strict=False)]
    if schema.names != [*head, *kept, *tail] or len(kept) != len(columns["kept"]) or not all(is_kept):
        wanted = [*head, *columns["kept"], *tail]
        raise PartProblem(f"has columns {', '.join(schema.names)}; the manifest asks for {', '.join(wanted)}")
    for expected in own if like is None else like:
        found = schema.field(expected.name)
        if not found.equals(expected):
            raise PartProblem(f"has a column {_describe(found)}; it should be {_describe(expected)}")


def _describe(column: pa.Field) -> str:
    return f"{column.name}: {column.type}{'' if column.nullable else ' not null'}"


def _check_counts(metadata: dict[bytes, bytes], counts: Counts) -> None:
    try:
        stated = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError):
        raise PartProblem("has no counts in its footer") from None
    if not isinstance(stated, dict):
        raise PartProblem(f"says {stated} in its footer, where its counts should be")
    for name, found in {"redone": {}, **counts.to_dict()}.items():
        if stated.get(name, {} if name == "redone" else None) != found and (name in stated or name not in LATER_COUNTS):
            raise PartProblem(f"says {name} {stated.get(name)} in its footer; its rows have {found}")


class RowCheck:
    """Checks the rows of one part, in their order."""

    def __init__(self, run: FoundRun, shard_idx: int) -> None:
        """Start at the first row of the shard."""
        self.counts = Counts()
        self._columns = Columns.of(run.manifest)
        self._num_samples = run.plan.num_samples
        self._rows = run.plan.rows(shard_idx)
        self._num_keys = len(self._rows) * self._num_samples

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the next rows, and count them.

        Raises:
            PartProblem: a row is not the one in the plan, or its columns contradict each other.
        """
        self._check_keys(batch)
        for text, is_right in _rules(batch, self._columns):
            wrong = pc.index(pc.fill_null(is_right, False), False).as_py()
            if wrong >= 0:
                raise PartProblem(f"has a wrong row: {self._name(self._key(self.counts.num_rows + wrong))}: {text}")
        if not self._columns.has_origin and REUSED_FROM in batch.schema.names:
            batch = batch.drop_columns([REUSED_FROM])  # it is the dataset's
        self.counts.add_batch(batch, self._columns.modes)

    def finish(self) -> None:
        """Check that the rows end where the plan says.

        Raises:
            PartProblem: rows are missing.
        """
        position = self.counts.num_rows
        if position < self._num_keys:
            missing = f"{self._name(self._key(position))} is missing"
            raise PartProblem(f"has {position:,} rows of {self._num_keys:,}: {missing}")

    def add_redone(self, redone: Redone) -> None:
        """Check and count the rows that are said to have been recomputed with options of their own.

        Raises:
            PartProblem: one of them does not belong to this part.
        """
        for row_idx, sample_idx in redone:
            if row_idx not in self._rows or not 0 <= sample_idx < self._num_samples:
                name = self._name((row_idx, sample_idx))
                raise PartProblem(f"says that {name} was recomputed, which does not belong to this part")
        self.counts.redone = counted(redone)

    def _check_keys(self, batch: pa.RecordBatch) -> None:
        start = self.counts.num_rows
        positions = np.arange(start, start + batch.num_rows)
        row_idx = batch["row_idx"].to_numpy(zero_copy_only=False)
        sample_idx = batch["sample_idx"].to_numpy(zero_copy_only=False)
        is_right = row_idx == self._rows.start + positions // self._num_samples
        is_right &= (sample_idx == positions % self._num_samples) & (positions < self._num_keys)
        wrong = np.flatnonzero(~is_right)
        if len(wrong):
            at = int(wrong[0])
            raise PartProblem(self._describe_key((int(row_idx[at]), int(sample_idx[at])), start + at))

    def _describe_key(self, found: SampleKey, position: int) -> str:
        """Describe the problem with a key at a position where the plan has another one."""
        row_idx, sample_idx = found
        if row_idx not in self._rows or not 0 <= sample_idx < self._num_samples:
            return f"has {self._name(found)}, which does not belong to this part"
        if position >= self._num_keys or found < self._key(position):
            return f"has {self._name(found)} twice or out of order"
        return f"has {self._name(found)} where {self._name(self._key(position))} should be"

    def _key(self, position: int) -> SampleKey:
        return self._rows.start + position // self._num_samples, position % self._num_samples

    def _name(self, key: SampleKey) -> str:
        return f"row_idx {key[0]}" if self._num_samples == 1 else f"row_idx {key[0]}, sample_idx {key[1]}"


def _rules(batch: pa.RecordBatch, columns: Columns) -> Iterator[tuple[str, pa.Array]]:
    """Yield each problem that a row may have, and for each row whether it is free of it. Null counts as wrong."""
    is_error = pc.is_valid(batch["error"])
    for name in ("completion", "finish_reason"):
        is_null = pc.is_null(batch[name])
        yield f"neither {name} nor error", pc.invert(pc.and_(is_null, pc.invert(is_error)))
        yield f"both {name} and error", pc.invert(pc.and_(pc.invert(is_null), is_error))
    reasons = pa.array([*FINISH_REASONS, None], pa.string())
    yield f"a finish_reason other than {' or '.join(FINISH_REASONS)}", pc.is_in(batch["finish_reason"], reasons)
    for name in ("num_prompt_tokens", "num_completion_tokens"):
        yield f"a negative {name}", pc.greater_equal(batch[name], 0)
    if columns.has_error_kind:
        kind = pc.list_element(pc.split_pattern(batch["error"], ":", max_splits=1), 0)
        is_kind = pc.or_kleene(pc.equal(batch["error_kind"], kind), pc.invert(is_error))
        yield (
            "error_kind and error contradict each other",
            pc.and_(is_kind, pc.equal(pc.is_valid(batch["error_kind"]), is_error)),
        )
    for mode in columns.modes:
        yield from mode.rules(batch, is_error)

"""Whether one part is what the plan and the manifest say: readable, of this run, the right rows, each of them sound.

Reads row group by row group, in batches: a part may be larger than memory.
"""

import errno
import json
import os
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import first_line
from job.output.looking.found import FoundRun
from job.output.parts.columns import Columns
from job.output.parts.counts import METADATA_KEY, Counts
from job.records import SampleKey

ROWS_PER_BATCH = 1000
FINISH_REASONS = ("stop", "length")


class PartProblem(Exception):
    """What is wrong with a part, in words that follow its name."""


def check_part(run: FoundRun, shard_idx: int, like: pa.Schema | None) -> tuple[Counts, pa.Schema]:
    """Read a part in full.

    Args:
        like: the schema of the run's other parts; None if this is the first.

    Returns:
        What its rows contain, and its schema.

    Raises:
        PartProblem: the first thing that is wrong.
        PermissionError: the file may not be read.
    """
    path, where = run.paths.part(shard_idx), ""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.metadata.metadata or {}
            _check_origin(metadata, run)
            _check_columns(file.schema_arrow, run, like)
            check = RowCheck(run, shard_idx)
            for group_idx in range(file.num_row_groups):
                where = f", row group {group_idx} of {file.num_row_groups}"
                for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group_idx]):
                    batch.validate(full=True)  # before a value is touched: damaged offsets point outside of the batch
                    check.add(batch)
            check.finish()
            _check_counts(metadata, check.counts)
            return check.counts, file.schema_arrow
    except PermissionError as error:  # pyarrow's has no file name
        raise PermissionError(error.errno, os.strerror(error.errno or errno.EACCES), str(path)) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PartProblem(f"cannot be read{where}: {first_line(error)}") from None


def _check_origin(metadata: dict[bytes, bytes], run: FoundRun) -> None:
    digest = metadata.get(b"job.manifest")
    if digest is None:
        raise PartProblem("is no part of a run: it names no manifest")
    if digest != run.manifest.digest.encode():
        raise PartProblem("is a part of another run: it names another manifest")


def _check_columns(schema: pa.Schema, run: FoundRun, like: pa.Schema | None) -> None:
    """Compare a part's columns with those the manifest asks for, and with the other parts' to the last type."""
    columns, own = run.manifest.identity["columns"], Columns.of_identity(run.manifest.identity).fields
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
        told = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError):
        raise PartProblem("has no counts in its footer") from None
    found = counts.to_dict()
    for name in found:
        if not isinstance(told, dict) or told.get(name) != found[name]:
            value = told.get(name) if isinstance(told, dict) else told
            raise PartProblem(f"says {name} {value} in its footer; its rows have {found[name]}")


class RowCheck:
    """Goes through the rows of one part in their order."""

    def __init__(self, run: FoundRun, shard_idx: int) -> None:
        """Expect the first row."""
        self.counts = Counts()
        self._own = Columns.of_identity(run.manifest.identity).names
        self._num_samples = run.plan.num_samples
        self._rows = run.plan.rows(shard_idx)
        self._num_keys = len(self._rows) * self._num_samples

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the next rows, and count them.

        Raises:
            PartProblem: a row is not the one of the plan, or its columns contradict each other.
        """
        self._check_keys(batch)
        for text, is_right in _rules(batch, self._own):
            wrong = pc.index(pc.fill_null(is_right, False), False).as_py()
            if wrong >= 0:
                raise PartProblem(f"has a wrong row: {self._name(self._key(self.counts.num_rows + wrong))}: {text}")
        self.counts.num_rows += batch.num_rows
        self.counts.num_prompt_tokens += pc.sum(batch["num_prompt_tokens"]).as_py() or 0
        self.counts.num_completion_tokens += pc.sum(batch["num_completion_tokens"]).as_py() or 0
        errors = batch["error"].drop_null().to_pylist()
        self.counts.errors.update(error.partition(":")[0] for error in errors)

    def finish(self) -> None:
        """Check that the rows end where the plan says.

        Raises:
            PartProblem: rows are missing.
        """
        position = self.counts.num_rows
        if position < self._num_keys:
            missing = f"{self._name(self._key(position))} is missing"
            raise PartProblem(f"has {position:,} rows of {self._num_keys:,}: {missing}")

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
        """Say what it means that a key stands where the plan has another."""
        row_idx, sample_idx = found
        if row_idx not in self._rows or not 0 <= sample_idx < self._num_samples:
            return f"has {self._name(found)} which does not belong to this part"
        if position >= self._num_keys or found < self._key(position):
            return f"has {self._name(found)} twice or out of order"
        return f"has {self._name(found)} where {self._name(self._key(position))} should be"

    def _key(self, position: int) -> SampleKey:
        return self._rows.start + position // self._num_samples, position % self._num_samples

    def _name(self, key: SampleKey) -> str:
        return f"row_idx {key[0]}" if self._num_samples == 1 else f"row_idx {key[0]}, sample_idx {key[1]}"


def _rules(batch: pa.RecordBatch, own: Collection[str]) -> Iterator[tuple[str, pa.Array]]:
    """Yield what would be wrong with a row, and of each row whether it is right. Null counts as wrong.

    Args:
        own: the columns that are ours. One of the dataset may have the name of one that this run has not.
    """
    is_error = pc.is_valid(batch["error"])
    for name in ("completion", "finish_reason"):
        is_null = pc.is_null(batch[name])
        yield f"neither {name} nor error", pc.invert(pc.and_(is_null, pc.invert(is_error)))
        yield f"both {name} and error", pc.invert(pc.and_(pc.invert(is_null), is_error))
    reasons = pa.array([*FINISH_REASONS, None], pa.string())
    yield f"a finish_reason other than {' or '.join(FINISH_REASONS)}", pc.is_in(batch["finish_reason"], reasons)
    for name in ("num_prompt_tokens", "num_completion_tokens"):
        yield f"a negative {name}", pc.greater_equal(batch[name], 0)
    if "token_ids" in own:
        yield from _logprob_rules(batch, is_error)
    if "parse_ok" in own:
        yield from _parse_rules(batch, is_error, has_values="parsed" in own)
    if "choice_logprobs" in own:
        yield from _choice_rules(batch, is_error)


def _logprob_rules(batch: pa.RecordBatch, is_error: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    for name in ("token_ids", "token_logprobs"):
        length = pc.fill_null(pc.list_value_length(batch[name]), -1)
        expected = pc.if_else(is_error, -1, batch["num_completion_tokens"])
        yield f"not one of {name} for each completion token", pc.equal(length, expected)
    yield "no cumulative_logprob", pc.equal(pc.is_null(batch["cumulative_logprob"]), is_error)


def _choice_rules(batch: pa.RecordBatch, is_error: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    for name in ("choice_logprobs", "choice_probs", "choice_margin"):
        yield f"neither {name} nor error, or both", pc.equal(pc.is_null(batch[name]), is_error)
    lengths = [pc.fill_null(pc.list_value_length(batch[name]), -1) for name in ("choice_logprobs", "choice_probs")]
    yield "not one probability for each score", pc.equal(*lengths)


def _parse_rules(batch: pa.RecordBatch, is_error: pa.Array, *, has_values: bool) -> Iterator[tuple[str, pa.Array]]:
    yield "neither parse_ok nor error, or both", pc.equal(pc.is_null(batch["parse_ok"]), is_error)
    is_ok = pc.fill_null(batch["parse_ok"], False)
    has_stopped = pc.equal(pc.fill_null(batch["finish_reason"], ""), "stop")
    if has_values:  # what has stopped may still be a number that its column cannot hold
        yield "parse_ok, but a finish_reason other than stop", pc.or_(pc.invert(is_ok), has_stopped)
        yield "parsed, but not parse_ok", pc.or_(is_ok, pc.is_null(batch["parsed"]))
    else:
        yield "parse_ok and finish_reason contradict each other", pc.equal(is_ok, has_stopped)

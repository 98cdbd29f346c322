"""The labels of a run, one for each row of its dataset, read from its parts, and from journals where there is none."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.modes.mode import LabelColumn
from job.output.looking.exporting.run_table import RunTable, Selection
from job.output.looking.found import FoundRun
from job.output.looking.shown_rows import ShardRows
from job.output.parts.part_schema import Columns
from job.report.accuracy import NONE
from job.report.intervals import Floats
from job.report.label_source import find_labels
from job.report.texts import as_labels, column_of, names_of_classes
from job.report.unfinished import Unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledRows:
    """The finished rows of a run with their labels. Rows with an error are left out."""

    source: LabelColumn
    table: pa.Table
    """The other columns that were asked for, a row each: those of the first sample."""
    row_idx: npt.NDArray[np.int64]
    labels: pa.Array
    """[rows] string; null where there is none."""
    probs: Floats | None
    """[rows, classes] float64, for each class of ``source``; None if the run has none."""
    confidence: Floats | None
    """[rows] float64: the probability of the label, or its share of the votes."""
    num_errors: int
    """Rows all of whose samples are errors."""
    num_missing: int
    """Rows that are not finished yet, or not read."""
    num_samples: int

    def keys(self, name: str) -> pa.ChunkedArray:
        """Return the column by which rows are matched: one of ``table``, or ``row_idx``."""
        return pa.chunked_array([pa.array(self.row_idx)]) if name == "row_idx" else self.table[name]

    @classmethod
    def of_texts(cls, table: pa.Table, others: list[str], num_errors: int, num_missing: int) -> "LabeledRows":
        """Return rows whose completions take the place of labels."""
        return cls(
            source=LabelColumn(name="completion"),
            table=table.select(others),
            row_idx=table["row_idx"].to_numpy(),
            labels=whole(table["completion"]),
            probs=None,
            confidence=None,
            num_errors=num_errors,
            num_missing=num_missing,
            num_samples=1,
        )


class RunColumns:
    """A run whose columns are known, before its rows are read.

    Journals do not have the dataset's columns, which are read from it again. If that is not possible, a run without a
    part has none of them, and where they are asked for, rows of journals are left out.
    """

    def __init__(self, run: FoundRun) -> None:
        """Read the columns from the first part, if there is one.

        Raises:
            UsageError: nothing is finished yet.
            JobError: a part cannot be read.
        """
        self.run, directory = run, run.directory
        self._written = directory.written_shards()
        self._journaled = sorted(directory.journaled_shards() - self._written)
        has_parts = bool(self._written) or not self._journaled
        own = Columns.of(run.manifest)
        self._own = own.names
        self._unfinished = Unfinished(run)
        if has_parts:
            self.schema: pa.Schema = RunTable(run, Selection(is_partial=True)).schema
        else:
            self.schema = own.schema(pa.schema([])) if self._unfinished.problem else self._unfinished.schema

    def read(self, names: list[str]) -> tuple[pa.Table, int]:
        """Read columns of all finished rows, texts as ``large_string``: together they may have more than the 2 GB of
        ``string``. Returns the number of rows that are missing, too.

        Raises:
            JobError: a part cannot be read.
        """
        columns, tables = list(dict.fromkeys(names)), []
        if self._written:
            table = RunTable(self.run, Selection(columns=tuple(columns), is_partial=True))
            tables.append(pa.Table.from_batches(table.read(), table.schema))
        if self._own.issuperset(columns):
            tables += [self._read_journals(shard_idx, columns) for shard_idx in self._journaled]
        elif not self._unfinished.problem:
            tables += [self._unfinished.read(shard_idx, columns) for shard_idx in self._journaled]
        kinds = [self.schema.field(name).type for name in columns]
        kinds = [pa.large_string() if kind == pa.string() else kind for kind in kinds]
        schema = pa.schema(list(zip(columns, kinds, strict=True)))
        rows = pa.concat_tables([each.select(columns).cast(schema) for each in tables], promote_options="none")
        return rows, self.run.plan.num_rows - len(rows) // self.run.plan.num_samples

    def _read_journals(self, shard_idx: int, columns: list[str]) -> pa.Table:
        """Read the rows of a shard all of whose samples are finished."""
        table = ShardRows(self.run, shard_idx).columns(list(dict.fromkeys([*columns, "row_idx"])))
        _, places, counts = np.unique(table["row_idx"].to_numpy(), return_inverse=True, return_counts=True)
        return table.filter(pa.array(counts[places] == self.run.plan.num_samples))


def read_labels(columns: RunColumns, wanted: str | None, others: list[str]) -> LabeledRows:
    """Read the label of each row.

    Of several samples that have labels of their own, the label of the row is the one that most of them have, and its
    probability is the mean of theirs, or its share of the votes.

    Args:
        wanted: see ``find_labels``.
        others: columns to read beside the labels.

    Raises:
        UsageError: the run has no labels.
        JobError: a part cannot be read.
    """
    source = find_labels(columns.run.manifest, columns.schema, wanted)
    own = [name for name in (source.name.partition(".")[0], source.probs, source.confidence) if name is not None]
    own = [source.name if source.name in columns.schema.names else own[0], *own[1:]]
    table, num_missing = columns.read(["row_idx", *own, "error", *others])
    num_samples = columns.run.plan.num_samples
    names = names_of_classes(columns.schema, source.name)
    labels = as_labels(column_of(table, source.name), names, f"--label {source.name}").combine_chunks()
    is_error = pc.is_valid(table["error"]).to_numpy()
    probs = None if source.probs is None else _matrix(table[source.probs], len(source.classes))
    confidence = None
    if source.confidence is not None:
        confidence = table[source.confidence].cast(pa.float64()).to_numpy()
    if num_samples > 1:
        labels, probs, confidence, is_error = _of_rows(labels, probs, confidence, is_error, num_samples, source)
        table = table.take(np.arange(0, len(table), num_samples))
    if probs is not None and confidence is None:
        at = pc.index_in(labels, pa.array(source.classes)).fill_null(0).to_numpy()
        confidence = probs[np.arange(len(at)), at]
    keep = np.flatnonzero(~is_error)
    return LabeledRows(
        source=source,
        table=table.take(keep).select(list(dict.fromkeys(others))),
        row_idx=table["row_idx"].to_numpy()[keep],
        labels=labels.take(keep),
        probs=None if probs is None else probs[keep],
        confidence=None if confidence is None else confidence[keep],
        num_errors=int(is_error.sum()),
        num_missing=num_missing,
        num_samples=num_samples,
    )


def kept_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of the dataset in parts: those between the indices and our own."""
    names: list[str] = schema.names
    return names[2 : next(idx for idx, name in enumerate(names) if name in ("prompt", "completion"))]


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def classes_of(source: LabelColumn, *columns: pa.Array) -> tuple[str, ...]:
    """Return all classes: those that the run knows, or all texts that occur, in their order."""
    if source.classes:
        return source.classes
    return tuple(sorted({text for column in columns for text in pc.unique(column).to_pylist() if text is not None}))


def indices_of(texts: pa.Array, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return labels as indices of classes: [rows] int64, ``NONE`` where there is none."""
    found = pc.index_in(texts, pa.array(classes, pa.string()))
    return np.asarray(found.fill_null(NONE).to_numpy(zero_copy_only=False), np.int64)


def _matrix(column: pa.ChunkedArray, num_classes: int) -> Floats:
    """Return lists of one length as a matrix; NaN in rows that have none."""
    lists = column.combine_chunks()
    matrix = np.full((len(lists), num_classes), np.nan)
    is_full = (pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)) == num_classes
    values = pc.list_flatten(lists.filter(pa.array(is_full))).cast(pa.float64()).to_numpy(zero_copy_only=False)
    matrix[is_full] = values.reshape(-1, num_classes)
    return matrix


def _of_rows(
    labels: pa.Array,
    probs: Floats | None,
    confidence: Floats | None,
    is_error: npt.NDArray[np.bool_],
    num_samples: int,
    source: LabelColumn,
) -> tuple[pa.Array, Floats | None, Floats | None, npt.NDArray[np.bool_]]:
    """Return the labels, probabilities, confidence and errors of rows, from those of their samples."""
    all_failed: npt.NDArray[np.bool_] = np.all(is_error.reshape(-1, num_samples), axis=1)
    if source.is_of_row:
        first = np.arange(0, len(labels), num_samples)
        probs = None if probs is None else _mean(probs, num_samples)
        return labels.take(first), probs, None if confidence is None else confidence[first], all_failed
    texts = pc.unique(labels.drop_null())
    votes = pc.index_in(labels, texts).fill_null(NONE).to_numpy(zero_copy_only=False).reshape(-1, num_samples)
    # Each vote's number of equal votes; ties go to the lowest sample, and no label wins only if there is no other.
    counts = np.where(votes == NONE, 0, (votes[:, :, None] == votes[:, None, :]).sum(2))
    winner = counts.argmax(1)[:, None]
    chosen = np.take_along_axis(votes, winner, 1)[:, 0]
    share = np.take_along_axis(counts, winner, 1)[:, 0] / num_samples
    of_row = texts.take(pa.array(chosen, mask=chosen == NONE))
    if probs is not None:
        probs = _mean(probs, num_samples)
    return of_row, probs, None if probs is not None else share, all_failed


def _mean(probs: Floats, num_samples: int) -> Floats:
    """Return the mean over the samples of each row that have probabilities; NaN if none has."""
    of_rows = probs.reshape(-1, num_samples, probs.shape[1])
    with np.errstate(invalid="ignore"):
        mean: Floats = np.nansum(of_rows, axis=1) / (~np.isnan(of_rows)).sum(1)
    return mean

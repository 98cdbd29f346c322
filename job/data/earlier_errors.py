"""The error rows of an earlier run that is the dataset of this one: left out, or carried on as error rows.

Their completions are null: as rows like any others, each would become an error of another kind, and what really
happened would be lost.
"""

import bisect
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from job.config import DataConfig
from job.data.dataset import OpenDataset
from job.data.source import Source, union
from job.errors import UsageError
from job.records import Row, RowBlock, RowError

COLUMN = "error"

KIND = "earlier_error"


def settle_errors(dataset: OpenDataset, config: DataConfig, policy: str | None) -> OpenDataset:
    """Return the dataset with its error rows left out or carried on, if it is an earlier run that has some.

    Args:
        policy: a value of ``--earlier-errors``; None: they are rows like any others.

    Raises:
        UsageError: no row is left, or an option for earlier runs was given for another dataset.
    """
    if not dataset.runs:
        for option, is_given in {"--partial": config.partial, "--earlier-errors": config.earlier_errors}.items():
            if is_given:
                raise UsageError(
                    f"{option} is for the directory of an earlier run, but --dataset {config.dataset} is something "
                    "else. Leave it out."
                )
    if not dataset.runs or policy is None or COLUMN not in dataset.source.schema.names:
        return dataset
    works = _working_rows(dataset.source)
    num_errors = dataset.source.num_rows - len(works)
    reading = {**dataset.reading, "earlier_errors": policy}
    if not num_errors:  # there may be some once that run has grown
        return replace(dataset, reading=reading)
    if policy == "skip" and not works:
        raise UsageError(
            f"--dataset {config.dataset}: all {num_errors:,} rows of the earlier run are errors. Compute them again "
            "with job retry."
        )
    rows = f"{num_errors:,} row{'' if num_errors == 1 else 's'} of the earlier run {'is' if num_errors == 1 else 'are'}"
    skips = policy == "skip"
    note = f"{rows} left out, because of errors there" if skips else f"{rows} carried on as errors ({KIND})"
    return replace(
        dataset,
        source=_Working(dataset.source, works) if skips else _Carried(dataset.source),
        reading=reading,
        remarks=(*dataset.remarks, note),
    )


def _working_rows(source: Source) -> Sequence[int]:
    """Return the indices of the rows that are not errors."""
    works = array("q")
    position = 0
    for block in source.read(0, source.num_rows, (), (COLUMN,)):
        works.extend(position + idx for idx in pc.indices_nonzero(block.kept[COLUMN].is_null()).to_pylist())
        position += len(block.rows)
    return works


class _Wrapped:
    """A source whose rows another one reads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.num_rows = source.num_rows

    @property
    def schema(self) -> pa.Schema:
        """The columns, which are the same."""
        return self._source.schema

    @property
    def problems(self) -> Mapping[str, str]:
        """Columns that cannot be read."""
        return self._source.problems

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return self._source.is_remote

    def fix_columns(self, kept: Sequence[str], needed: Sequence[str] = ()) -> None:
        """See ``Source``."""
        self._source.fix_columns(kept, needed)


class _Working(_Wrapped):
    """The rows that are not errors, counted anew."""

    def __init__(self, source: Source, works: Sequence[int]) -> None:
        super().__init__(source)
        self._works, self.num_rows = works, len(works)

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Read all rows in between, and leave some out."""
        stop = min(stop, self.num_rows)
        if start >= stop:
            return
        position = self._works[start]
        for block in self._source.read(position, self._works[stop - 1] + 1, columns, kept):
            first = bisect.bisect_left(self._works, position)
            last = bisect.bisect_left(self._works, position + len(block.rows))
            offsets = [idx - position for idx in self._works[first:last]]
            position += len(block.rows)
            if offsets:
                rows = [replace(block.rows[offset], row_idx=first + k) for k, offset in enumerate(offsets)]
                yield RowBlock(rows=rows, kept=block.kept.take(offsets))


class _Carried(_Wrapped):
    """All rows; those that are errors are errors again."""

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        """Read the errors, too."""
        for block in self._source.read(start, stop, union(columns, [COLUMN]), kept):
            yield RowBlock(rows=[_carried(row, columns) for row in block.rows], kept=block.kept)


def _carried(row: Row, columns: Sequence[str]) -> Row:
    error = row.values.get(COLUMN)
    if error is not None:
        return Row(row_idx=row.row_idx, values={}, error=RowError(KIND, error))
    return replace(row, values={name: value for name, value in row.values.items() if name in columns})

"""Which rows of two runs are the same row of data: those with the same id, or the same place in the same dataset."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.errors import UsageError, shorten
from job.report.rows import RunColumns, kept_columns
from job.report.texts import as_labels
from job.wording import no_column

ROW_IDX = "row_idx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Pairs of rows, in the order of the first run."""

    by: str
    """The column that both have."""
    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    """[pairs] int64: positions in the rows of each run."""
    only_a: int
    only_b: int
    """Rows that the other run does not have (or that are an error there, or not finished)."""


def choose_key(a: RunColumns, b: RunColumns, wanted: str | None) -> str:
    """Return the column by which rows are matched.

    Args:
        wanted: what ``--by`` names. None: ``row_idx`` if both runs read the same dataset, else the id column of both.

    Raises:
        UsageError: a run does not have it, or it is unclear.
    """
    if wanted is not None:
        for run in (a, b):
            if wanted not in run.schema.names:
                where = run.run.directory.store.describe()
                raise UsageError(f"--by: {where} has {no_column(wanted, run.schema.names)}.")
        return wanted
    manifests = a.run.manifest, b.run.manifest
    datasets = [(each.section("dataset")["fingerprint"], each.section("dataset")["split"]) for each in manifests]
    if datasets[0] == datasets[1]:
        return ROW_IDX
    ids = [each.about["id_column"] for each in manifests]
    if ids[0] is not None and ids[0] == ids[1]:
        return str(ids[0])
    shared = [name for name in kept_columns(a.schema) if name in kept_columns(b.schema)]
    names = f" Columns of the data that both have: {', '.join(shared)}." if shared else ""
    raise UsageError(
        "The two runs read different datasets, and have no --id-column in common, so it is unclear which rows belong "
        f"together. Name a column with --by, or --by {ROW_IDX} if row 0 of one is row 0 of the other.{names}"
    )


def match(a: pa.ChunkedArray, b: pa.ChunkedArray, by: str) -> Matched:
    """Match rows by their keys.

    Raises:
        UsageError: a key occurs twice in one run.
    """
    keys = [as_labels(column, (), f"--by {by}") for column in (a, b)]
    for column in keys:
        counted = pc.value_counts(column.drop_null().combine_chunks())
        doubles = counted.filter(pc.greater(counted.field("counts"), 1))
        if len(doubles):
            key = shorten(doubles[0]["values"].as_py())
            number = doubles[0]["counts"].as_py()
            raise UsageError(
                f"Column {by!r} has {key!r} {number:,} times in one run, so it does not tell rows apart. Name another "
                "column with --by."
            )
    places = pc.index_in(keys[0], keys[1].combine_chunks(), skip_nulls=True).to_numpy()
    is_found = ~np.isnan(places)
    at_a = np.flatnonzero(is_found)
    return Matched(
        by=by,
        a=at_a,
        b=places[is_found].astype(np.int64),
        only_a=len(keys[0]) - len(at_a),
        only_b=len(keys[1]) - len(at_a),
    )

"""Columns that are not in the output of a run: those of its dataset, and those of files that name rows by their ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from job.config import DataConfig
from job.data.dataset import OpenDataset
from job.data.opening import find_dataset
from job.data.source import read_rows
from job.errors import JobError, UsageError, shorten
from job.observe.text import number
from job.output.looking.found import FoundRun
from job.report.label_next import RANDOM, UNCERTAIN
from job.report.rows import LabeledRows, whole
from job.report.texts import as_labels, names_of_classes
from job.report.unfinished import open_again
from job.wording import no_column

STRATUM = "stratum"
"""The column of a file of rows to label that says how each row was chosen."""

OWN = "own"
"""Stands for the stratum of rows of a file that ``--label-next`` has not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldFiles:
    """What was found, for each row of the run."""

    texts: pa.Array
    """[rows] string; null where there is no gold."""
    place: str
    strata: pa.Array | None = None
    """[rows] string; null where a row was not chosen, or nothing says how."""
    notes: tuple[str, ...] = ()


def read_dataset(run: FoundRun, rows: LabeledRows, name: str, output_columns: Sequence[str]) -> GoldFiles:
    """Read a column of the dataset that a run has read.

    Raises:
        UsageError: the dataset is not there, has changed, or has no such column.
        JobError: it can no longer be read.
    """
    about, known = run.manifest.about, run.manifest.section("dataset")
    where = str(about["dataset"])
    advice = "Give the gold in a file, with --gold-file."
    try:
        opened = open_again(run)
    except JobError as error:
        raise UsageError(
            f"--gold {name}: the run has {no_column(name, output_columns)}. The dataset of the run, which may have it, "
            f"cannot be read: {str(error).rstrip('.')}. {advice}"
        ) from None
    opened.source.fix_columns((), (name,))
    if name not in opened.source.schema.names:
        raise UsageError(f"--gold: the output of the run has {no_column(name, output_columns)}. Nor has its dataset.")
    before = known["fingerprint"]
    if opened.fingerprint != before and not opened.continues(run.manifest.num_files, before):
        raise UsageError(
            f"--gold {name}: {where} has changed since the run read it, so its rows may be others. {advice}"
        )
    table = _read(opened, [name], where)
    texts = as_labels(table[name], names_of_classes(opened.source.schema, name), f"--gold {name}").combine_chunks()
    return GoldFiles(texts=texts.take(pa.array(rows.row_idx)), place=f"the dataset of the run, {where}")


def read_files(run: FoundRun, rows: LabeledRows, name: str, files: Sequence[str]) -> GoldFiles:
    """Read a column of files whose rows name those of the run: by the run's id column, or by ``row_idx``.

    Raises:
        UsageError: a file has no such column or no ids, or two golds for one row.
        JobError: a file cannot be read.
    """
    tables = [_read_file(run, name, file) for file in files]
    keys = {key for _, key in tables}
    if len(keys) > 1:
        raise UsageError(f"The files of --gold-file name rows in different ways: by {' and by '.join(sorted(keys))}.")
    table, key = pa.concat_tables(table for table, _ in tables), keys.pop()
    table = table.filter(pc.is_valid(table["gold"]))
    num_nameless = table["key"].null_count
    table = table.filter(pc.is_valid(table["key"]))
    _refuse_doubles(table, key)
    own = as_labels(rows.keys(key), (), key)
    places = pc.index_in(own, table["key"])
    num_others = len(table) - pc.sum(pc.is_in(table["key"], whole(own))).as_py() if len(table) else 0
    if len(table) and places.null_count == len(places):
        theirs, ours = (shorten(pc.first(each).as_py()) for each in (table["key"], own))
        raise UsageError(
            f"--gold-file has {number(len(table), 'row')} with gold, and none of them is in the run (rows with an "
            f"error do not count). Rows are matched by {key}: {theirs!r} in the file, {ours!r} in the run."
        )
    notes = []
    if num_others:
        notes.append(f"{number(num_others, 'row')} of --gold-file not found in the run, or with an error there")
    if num_nameless:
        notes.append(f"{number(num_nameless, 'row')} of --gold-file with gold, but without {key}, not counted")
    strata = whole(table["stratum"].take(places))
    notes += _of_unknown_strata(whole(table["gold"].take(places)), strata)
    strata = pc.if_else(pc.equal(strata, OWN), None, strata)
    return GoldFiles(
        texts=whole(table["gold"].take(places)),
        place=", ".join(files),
        strata=None if strata.null_count == len(strata) else strata,
        notes=tuple(notes),
    )


def _of_unknown_strata(gold: pa.Array, strata: pa.Array) -> list[str]:
    """Return a note if gold of only some rows counts as chosen at random although nothing says that it was: if these
    are the rows of which the model was least certain, all numbers are biased."""
    if not gold.null_count:
        return []  # of all rows: nothing was chosen
    is_known = pc.is_in(strata, pa.array([RANDOM, UNCERTAIN, OWN]))
    num_unknown = pc.sum(pc.and_(pc.is_valid(gold), pc.invert(is_known))).as_py()
    if not num_unknown:
        return []
    counted = f"{number(num_unknown, 'row')} of --gold-file counted as chosen at random"
    return [f"{counted}: column {STRATUM!r}, which --label-next writes, does not say how"]


def _read_file(run: FoundRun, name: str, file: str) -> tuple[pa.Table, str]:
    """Return a file as columns ``key``, ``gold`` and ``stratum``, and what the key is."""
    if not file.strip():
        raise UsageError("--gold-file is empty. Name a file, such as gold.csv.")
    try:
        return _table_of(run, name, file)
    except JobError as error:
        error.args = (_advice_of_gold(str(error)),)
        raise


def _advice_of_gold(text: str) -> str:
    """Return a message about a dataset as one about a file of gold, which has no options for how it is read."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", text.replace("--dataset ", "--gold-file "))
    known = [each for each in sentences if not re.search(r"--(?!gold)\w", each)]
    if len(known) == len(sentences):
        return " ".join(sentences)
    return " ".join([*known, "Give one file in UTF-8: .csv, .jsonl or .parquet."])


def _table_of(run: FoundRun, name: str, file: str) -> tuple[pa.Table, str]:
    opened = find_dataset(DataConfig(dataset=file)).open()
    opened.source.fix_columns((), (name, STRATUM))
    columns, id_column = opened.source.schema.names, run.manifest.about["id_column"]
    key = next((each for each in (id_column, "row_idx") if each in columns), None)
    if key is None:
        needed = "'row_idx'" if id_column is None else f"{id_column!r} or 'row_idx'"
        raise UsageError(f"--gold-file {file} has no column {needed}, which would say what its rows are about.")
    if name not in columns:
        raise UsageError(f"--gold-file {file} has {no_column(name, columns)}. Name it with --gold.")
    wanted = [key, name, *([STRATUM] if STRATUM in columns else [])]
    table = _read(opened, list(dict.fromkeys(wanted)), file)
    what = f"--gold-file {file}: column {name!r}"
    gold = as_labels(table[name], names_of_classes(opened.source.schema, name), what)
    # Without row_idx, which --label-next writes, a file is the user's own, and nothing is missing.
    empty = pa.array([None if "row_idx" in columns else OWN] * len(table), pa.string())
    stratum = as_labels(table[STRATUM], (), STRATUM) if STRATUM in columns else pa.chunked_array([empty])
    keys = as_labels(table[key], (), f"--gold-file {file}: column {key!r}")
    return pa.table({"key": keys, "gold": gold, "stratum": stratum}), key


def _read(opened: OpenDataset, columns: list[str], where: str) -> pa.Table:
    source = opened.source
    source.fix_columns(columns)
    blocks = [block.kept for block in read_rows(source, where, range(source.num_rows), (), columns)]
    return pa.concat_tables(blocks) if blocks else pa.table({each: pa.array([], pa.string()) for each in columns})


def _refuse_doubles(table: pa.Table, key: str) -> None:
    found = table.group_by("key").aggregate([("gold", "count_distinct")])
    doubles = found.filter(pc.greater(found["gold_count_distinct"], 1))["key"]
    if len(doubles):
        raise UsageError(
            f"--gold-file has {len(doubles):,} rows with several golds that differ, such as {key} "
            f"{shorten(doubles[0].as_py())!r}. Decide on one."
        )

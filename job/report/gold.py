"""Gold labels: from a column of the run, of the dataset that it read, or of files beside it, and by what names.

A row without gold is not counted; how many there are is reported.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from job.errors import UsageError, shorten
from job.output.looking.found import FoundRun
from job.report.gold_files import GoldFiles, read_dataset, read_files
from job.report.rows import LabeledRows, RunColumns
from job.report.texts import as_labels, names_of_classes
from job.wording import meant

MAX_SHOWN, MAX_ADVICE = 5, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldOptions:
    """Where gold labels are, as the user says it."""

    column: str
    files: tuple[str, ...] = ()
    """Files with that column and the rows' ids. Empty: the column is one of the run or of its dataset."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Gold labels by other names: (in the column, in the run). To '' means without gold; to itself, as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """The gold labels of a run's rows."""

    texts: pa.Array
    """[rows] string; null where a row has none."""
    place: str
    """Where they are from, for people."""
    notes: tuple[str, ...] = ()
    strata: pa.Array | None = field(default=None)
    """[rows] string: which rows were chosen to be labeled, and how, if the files say so."""


def find_gold(run: FoundRun, columns: RunColumns, rows: LabeledRows, options: GoldOptions) -> Gold:
    """Return the gold label of each row, by the names of the run's classes.

    Args:
        rows: read with ``options.column`` if that is a column of the run, and with the id column.

    Raises:
        UsageError: the column does not exist, has no gold at all, or has labels that the run cannot give.
        JobError: a file cannot be read.
    """
    name = options.column
    if options.files:
        found = read_files(run, rows, name, options.files)
    elif name in columns.schema.names:
        texts = as_labels(rows.table[name], names_of_classes(columns.schema, name), f"--gold {name}")
        found = GoldFiles(texts=texts.combine_chunks(), place="the output")
    else:
        found = read_dataset(run, rows, name, columns.schema.names)
    texts, notes = named(found.texts, rows.source.classes, options)
    if texts.null_count == len(texts):
        raise UsageError(f"--gold {name}: none of the {len(texts):,} rows has a value in {found.place}.")
    return Gold(texts=texts, place=found.place, notes=(*found.notes, *notes), strata=found.strata)


def named(texts: pa.Array, classes: Sequence[str], options: GoldOptions) -> tuple[pa.Array, list[str]]:
    """Return gold labels by the names of the classes, and notes on those that have other names.

    A label that differs from one class in case alone is that class.

    Raises:
        UsageError: a label is none of the classes, and ``options.renamed`` does not say what it is.
    """
    renamed = dict(options.renamed)
    counted = Counter({each["values"]: each["counts"] for each in pc.value_counts(texts.drop_null()).to_pylist()})
    for old in renamed:
        if old not in counted:
            raise UsageError(f"--gold-map {old}=...: no row has this gold label. There are: {_listed(counted)}.")
    new = {text: renamed.get(text, text) for text in counted}
    notes = []
    if classes:
        plain = {name.casefold(): name for name in classes}
        for text in [text for text in new if text not in renamed and text not in classes]:
            if text.casefold() in plain and len(plain) == len(classes):
                new[text] = plain[text.casefold()]
                notes.append(f"gold {text!r} counts as {new[text]!r} ({counted[text]:,})")
        _refuse_others(counted, new, classes, options)
    found = pa.array([new[text] or None for text in counted], pa.string())
    places = pc.index_in(texts, pa.array(list(counted), pa.string()))
    return found.take(places), notes


def _refuse_others(counted: Counter[str], new: dict[str, str], classes: Sequence[str], options: GoldOptions) -> None:
    known = {*classes, "", *(old for old, name in options.renamed if old == name)}
    others = Counter({text: counted[text] for text, name in new.items() if name not in known})
    if not others:
        return
    for old, name in options.renamed:
        if name not in known:
            close = meant(name, classes)
            question = "" if close is None else f" Did you mean {close!r}?"
            there = f"{question} Labels: {_names(classes)}."
            raise UsageError(f"--gold-map {old}={name}: the run has no such label.{there}")
    where = f"--gold {options.column} has labels that the run cannot give"
    if len(others) == len(counted) > len(classes) + MAX_SHOWN:
        raise UsageError(
            f"{where}: {len(others):,} different ones, and none of {_names(classes)}. Name another column."
        )
    first = shorten(next(iter(others)), MAX_ADVICE)
    ways = f"'{first}={classes[0]}' for another name, '{first}=' to leave these rows out, '{first}={first}'"
    raise UsageError(
        f"{where}: {_listed(others)}. Labels of the run: {_names(classes)}. Say what they are with --gold-map: "
        f"{ways} to count them as wrong."
    )


def _listed(counted: Counter[str]) -> str:
    shown = [
        f"{shorten(text)!r} ({count:,} row{'' if count == 1 else 's'})"
        for text, count in counted.most_common(MAX_SHOWN)
    ]
    return ", ".join(shown) + (f" and {len(counted) - MAX_SHOWN:,} more" if len(counted) > MAX_SHOWN else "")


def _names(classes: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in classes[: 2 * MAX_SHOWN])
    return shown + (f" and {len(classes) - 2 * MAX_SHOWN:,} more" if len(classes) > 2 * MAX_SHOWN else "")

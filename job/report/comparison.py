"""The comparison of two runs: everything that ``job compare`` prints, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.errors import UsageError, shorten
from job.output.looking.found import FoundRun
from job.report.agreement import Agreement, agree
from job.report.gold import GoldOptions, find_gold
from job.report.label_source import has_labels
from job.report.matching import Matched, choose_key, match
from job.report.rows import LabeledRows, RunColumns, classes_of, indices_of, kept_columns, read_labels
from job.report.text_differences import TextComparison, compare_texts

MAX_NAMED = 5
"""Pairs of labels that a note names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What is asked of a comparison."""

    by: str | None = None
    """The column that tells rows apart."""
    label: str | None = None
    """The column with the labels, in both runs; None: each run's own."""
    texts: bool = False
    """Compare completions as texts, even if both runs have labels."""
    gold: GoldOptions | None = None
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs, compared row by row."""

    by: str
    num_rows: int
    only_a: int
    only_b: int
    errors_a: int
    errors_b: int
    missing_a: int
    missing_b: int
    """Rows of each that are errors, or not finished yet: they are not compared."""
    confidence_level: float
    labels: Agreement | None
    texts: TextComparison | None
    """One of the two is None."""
    differing: pa.Table
    """The rows that differ, side by side."""
    settings: tuple[tuple[str, Any, Any], ...]
    """What distinguishes the two runs: (name, value in a, value in b)."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without the rows."""
        return {
            "by": self.by,
            "rows": self.num_rows,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "errors": {"a": self.errors_a, "b": self.errors_b},
            "missing": {"a": self.missing_a, "b": self.missing_b},
            "confidence_level": self.confidence_level,
            "labels": None if self.labels is None else self.labels.to_dict(),
            "texts": None if self.texts is None else self.texts.to_dict(),
            "differing": len(self.differing),
            "settings": [{"name": name, "a": a, "b": b} for name, a, b in self.settings],
            "notes": list(self.notes),
        }


def compare_runs(a: FoundRun, b: FoundRun, options: CompareOptions) -> Comparison:
    """Compare two runs.

    Raises:
        UsageError: a run has no part yet, their rows cannot be matched, or none is in both.
        JobError: a part cannot be read.
    """
    runs = RunColumns(a), RunColumns(b)
    by = choose_key(*runs, options.by)
    is_labels = options.label is not None or all(has_labels(run.run.manifest) for run in runs)
    if options.gold is not None and (options.texts or not is_labels):
        raise UsageError("--gold is for labels, and completions are compared as texts. Name a column with --label.")
    if options.texts or not is_labels:
        return _of_texts(runs, by, options)
    return _of_labels(runs, by, options)


def _of_labels(runs: tuple[RunColumns, RunColumns], by: str, options: CompareOptions) -> Comparison:
    rows = [read_labels(run, options.label, _others(run, by, options)) for run in runs]
    matched = _matched(rows[0].keys(by), rows[1].keys(by), by)
    sides = [rows[0].labels.take(pa.array(matched.a)), rows[1].labels.take(pa.array(matched.b))]
    gold_texts, notes = None, tuple[str, ...]()
    if options.gold is not None:
        found = find_gold(runs[0].run, runs[0], rows[0], options.gold)
        gold_texts, notes = found.texts.take(pa.array(matched.a)), found.notes
    names = [classes_of(each.source, side) for each, side in zip(rows, sides, strict=True)]
    of_gold = [] if gold_texts is None else sorted({*gold_texts.drop_null().to_pylist()})
    classes = tuple(dict.fromkeys([*names[0], *names[1], *of_gold]))
    notes = (*notes, *_notes(runs, rows, names))
    a, b = (indices_of(side, classes) for side in sides)
    gold = None if gold_texts is None else indices_of(gold_texts, classes)
    differs = np.flatnonzero(a != b)
    columns = {"a": sides[0].take(differs), "b": sides[1].take(differs)}
    if gold_texts is not None:
        columns["gold"] = gold_texts.take(differs)
    columns |= _confidences(rows, matched, differs)
    return Comparison(
        **_counts(rows, matched),
        confidence_level=options.confidence,
        labels=agree(a, b, gold, classes, options.confidence),
        texts=None,
        differing=_side_by_side(rows[0].row_idx, rows[0].table, matched, differs, columns),
        settings=differing_settings(runs[0].run, runs[1].run),
        notes=notes,
    )


def _confidences(rows: Sequence[LabeledRows], matched: Matched, differs: Any) -> dict[str, pa.Array]:
    found = {}
    for name, each, places in zip("ab", rows, (matched.a, matched.b), strict=True):
        if each.confidence is not None:
            found[f"confidence_{name}"] = pa.array(each.confidence[places[differs]], from_pandas=True)
    return found


def _of_texts(runs: tuple[RunColumns, RunColumns], by: str, options: CompareOptions) -> Comparison:
    rows = [_read_texts(run, _others(run, by, options)) for run in runs]
    matched = _matched(rows[0].keys(by), rows[1].keys(by), by)
    a, b = _taken(rows[0].labels, matched.a), _taken(rows[1].labels, matched.b)
    found, differences = compare_texts(a, b, options.confidence)
    differs = differences.rows
    columns = {
        "first_difference": pa.array(differences.places, pa.int64()),
        "a": a.take(pa.array(differs)),
        "b": b.take(pa.array(differs)),
    }
    several = max(run.run.plan.num_samples for run in runs) > 1
    return Comparison(
        **_counts(rows, matched),
        confidence_level=options.confidence,
        labels=None,
        texts=found,
        differing=_side_by_side(rows[0].row_idx, rows[0].table, matched, differs, columns),
        settings=differing_settings(runs[0].run, runs[1].run),
        notes=("of several samples of a row, the first ones are compared",) if several else (),
    )


def _taken(texts: pa.Array, at: npt.NDArray[np.int64]) -> pa.Array:
    """Return texts by their positions: the same ones, not a copy, if that is all of them in their order."""
    is_all = len(at) == len(texts) and bool((np.diff(at) == 1).all())
    return texts if is_all else texts.take(pa.array(at))


def _read_texts(run: RunColumns, others: list[str]) -> LabeledRows:
    """Read the first completion of each row as if it were its label."""
    table, num_missing = run.read(["row_idx", "sample_idx", "completion", "error", *others])
    table = table.filter(pc.equal(table["sample_idx"], 0))
    is_error = pc.is_valid(table["error"])
    num_errors = int(pc.sum(is_error).as_py() or 0)
    table = table.filter(pc.and_(pc.invert(is_error), pc.is_valid(table["completion"])))
    return LabeledRows.of_texts(table, others, num_errors, num_missing)


def _matched(a: pa.ChunkedArray, b: pa.ChunkedArray, by: str) -> Matched:
    if not len(a) or not len(b):
        raise UsageError(
            f"Nothing can be compared: the runs have {len(a):,} and {len(b):,} rows that are finished without an error."
        )
    matched = match(a, b, by)
    if not len(matched.a):
        one, other = (shorten(pc.first(each).as_py()) for each in (a, b))
        raise UsageError(
            f"No row is in both runs ({len(a):,} and {len(b):,} rows with a completion, matched by {by}: {one!r} in "
            f"the first, {other!r} in the second). Name another column with --by."
        )
    return matched


def _notes(
    runs: tuple[RunColumns, RunColumns], rows: Sequence[LabeledRows], names: Sequence[Sequence[str]]
) -> list[str]:
    """Return what a reader of labels should know."""
    notes = []
    if any(run.run.plan.num_samples > 1 and not each.source.is_of_row for run, each in zip(runs, rows, strict=True)):
        notes.append("of several samples of a row, the label is what most of them say")
    plain = {name.casefold(): name for name in names[0]}
    alike = [(plain[name.casefold()], name) for name in names[1] if plain.get(name.casefold(), name) != name]
    if alike := [pair for pair in alike if pair[1] not in names[0]]:
        pairs = ", ".join(f"{shorten(one)!r} and {shorten(other)!r}" for one, other in alike[:MAX_NAMED])
        notes.append(f"labels of a and b that differ in case alone count as different: {pairs}")
    return notes


def _counts(rows: Sequence[LabeledRows], matched: Matched) -> dict[str, Any]:
    a, b = rows
    return {
        "by": matched.by,
        "num_rows": len(matched.a),
        "only_a": matched.only_a,
        "only_b": matched.only_b,
        "errors_a": a.num_errors,
        "errors_b": b.num_errors,
        "missing_a": a.num_missing,
        "missing_b": b.num_missing,
    }


def _side_by_side(
    row_idx: Any, others: pa.Table, matched: Matched, differs: Any, columns: dict[str, pa.Array]
) -> pa.Table:
    at = matched.a[differs]
    kept = others.take(at)
    known = {name: kept[name] for name in kept.column_names if name not in columns and name != "row_idx"}
    return pa.table({"row_idx": pa.array(row_idx[at]), **columns, **known})


def _others(run: RunColumns, by: str, options: CompareOptions) -> list[str]:
    found = [by, run.run.manifest.about["id_column"], *kept_columns(run.schema), "prompt"]
    if options.gold is not None and not options.gold.files:
        found.append(options.gold.column)
    return [name for name in dict.fromkeys(found) if name in run.schema.names and name != "row_idx"]


def differing_settings(a: FoundRun, b: FoundRun) -> tuple[tuple[str, Any, Any], ...]:
    """Return what distinguishes two runs, by their manifests: the model first."""
    found = [("model", a.manifest.about.get("model"), b.manifest.about.get("model"))]
    for section in ("model", "prompt", "sampling", "modes", "dataset"):
        first, second = (_flat(run.manifest.section(section)) for run in (a, b))
        names = [name for name in dict.fromkeys([*first, *second]) if name not in ("tokenizer",)]
        found += [(_title(section, name), first.get(name), second.get(name)) for name in names]
    return tuple((name, one, other) for name, one, other in found if one != other)


def _title(section: str, name: str) -> str:
    return f"{section} {name}" if name == "fingerprint" else name  # models and datasets have one each


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) and name not in ("chat_template_kwargs",) else {name: value}
    return flat

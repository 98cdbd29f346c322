"""The comparison of two runs as text for a terminal."""

from typing import Any

import pyarrow as pa

from job.errors import shorten
from job.observe.text import number, visible
from job.report.agreement import Agreement, Paired
from job.report.comparison import Comparison
from job.report.tables import LONG_NAME, percent, plain, points, table_of
from job.report.text_differences import TextComparison

MAX_CLASSES = 20
PAIRED = ("a", "b", "b - a", "only a", "only b", "McNemar p")
MAX_SETTING, BEFORE, AFTER = 60, 20, 60
"""How many characters are shown of a setting, and of texts before and after their first difference."""


def describe_comparison(a: str, b: str, found: Comparison, num_shown: int, to: str | None = None) -> str:
    """Return a comparison as text.

    Args:
        num_shown: how many of the rows that differ.
        to: the file to which all of them were written.
    """
    lines = [f"a {a}", f"b {b}"]
    width = max((len(name) for name, _, _ in found.settings), default=0)
    lines += [f"  {name:<{max(width, 12)}} {_setting(one)} -> {_setting(other)}" for name, one, other in found.settings]
    facts = [("rows", f"{number(found.num_rows, 'row')} in both, matched by {found.by}{_uncompared(found)}")]
    facts += [("intervals", f"{100 * found.confidence_level:g} %")]
    lines += [f"  {title:<12} {line}" for title, line in facts]
    if found.labels is not None:
        lines += _labels(found.labels)
    if found.texts is not None:
        lines += _texts(found.texts)
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([*lines, *_differing(found, num_shown, to)])


def _setting(value: Any) -> str:
    return "(none)" if value is None else shorten(value if isinstance(value, str) else repr(value), MAX_SETTING)


def _uncompared(found: Comparison) -> str:
    facts = []
    for name, only, errors, missing in (
        ("a", found.only_a, found.errors_a, found.missing_a),
        ("b", found.only_b, found.errors_b, found.missing_b),
    ):
        failed = f"error{'' if errors == 1 else 's'} in {name}"
        for count, what in ((only, f"only in {name}"), (errors, failed), (missing, f"missing in {name}")):
            if count:
                facts.append(f"; {count:,} {what}")
    return "".join(facts)


def _labels(found: Agreement) -> list[str]:
    lines = [
        f"  {'agreement':<12} {percent(found.agreement)}: {found.num_equal:,} of {found.num_rows:,}",
        f"  {'kappa':<12} {plain(found.kappa)}",
    ]
    if found.right is not None:
        lines += ["", *table_of([f"gold ({found.num_gold:,})", *PAIRED], [["accuracy", *_paired(found.right)]])]
    if found.table and len(found.classes) <= MAX_CLASSES:
        lines += ["", *_confusion(found)]
        shares = [[shorten(name, LONG_NAME), *_paired(paired)] for name, paired in found.of_classes]
        lines += ["", *table_of(["share", *PAIRED], shares)]
    return lines


def _paired(paired: Paired) -> list[str]:
    p_value = f"{paired.p_value:.3f}" if paired.p_value >= 0.001 else "< 0.001"
    shares = [f"{100 * paired.a:.1f} %", f"{100 * paired.b:.1f} %", points(paired.difference)]
    return [*shares, f"{paired.only_a:,}", f"{paired.only_b:,}", p_value]


def _confusion(found: Agreement) -> list[str]:
    names = [*(shorten(name, LONG_NAME) for name in found.classes), "none"]
    used = [idx for idx in range(len(names)) if idx < len(names) - 1 or any(row[idx] for row in found.table)]
    used = used if any(found.table[-1]) or len(used) == len(names) else [idx for idx in used if idx < len(names) - 1]
    rows = [[names[idx], *(f"{found.table[idx][other]:,}" for other in used)] for idx in used]
    return table_of(["a \\ b", *(names[idx] for idx in used)], rows)


def _texts(found: TextComparison) -> list[str]:
    lines = [
        f"  {'equal':<12} {percent(found.equal)}: {found.num_equal:,} of {found.num_rows:,} completions",
        f"  {'length':<12} {found.length_a:,.0f} characters in a, {found.length_b:,.0f} in b (mean)",
    ]
    if found.first_difference is not None:
        lines.append(f"  {'differ from':<12} character {found.first_difference:,.0f} on (median)")
    return lines


def _differing(found: Comparison, num_shown: int, to: str | None) -> list[str]:
    table, lines = found.differing, [""]
    if not len(table):
        return []
    for row in table.slice(0, num_shown).to_pylist():
        name = f"row {row['row_idx']}" if found.by == "row_idx" else f"{found.by} {shorten(row.get(found.by))}"
        gold = f", gold {shorten(row['gold'])}" if row.get("gold") is not None else ""
        if "first_difference" in row:
            place = row["first_difference"]
            lines.append(f"{name}, from character {place:,} on")
            lines += [f"  a | {_around(row['a'], place)}", f"  b | {_around(row['b'], place)}"]
        else:
            lines.append(f"{name}: a {_label(row, 'a')}, b {_label(row, 'b')}{gold}")
            lines += [f"  | {shorten(text, BEFORE + AFTER)}" for text in _shown(table, row)]
    if (num_more := len(table) - num_shown) > 0:
        differ = "more row that differs" if num_more == 1 else "more rows that differ"
        where = "--to FILE writes all" if to is None else f"all are in {to}"
        lines.append(f"... and {num_more:,} {differ}; {where}")
    return [visible(line) for line in lines]


def _label(row: dict[str, Any], side: str) -> str:
    confidence = row.get(f"confidence_{side}")
    return f"{shorten(row[side])}" + ("" if confidence is None else f" ({confidence:.2f})")


def _shown(table: pa.Table, row: dict[str, Any]) -> list[str]:
    """Return what shows a person the row: the prompt, or else its longest text."""
    own = ("row_idx", "a", "b", "gold", "confidence_a", "confidence_b")
    texts = [row[name] for name in table.column_names if name not in own and isinstance(row[name], str)]
    return [row["prompt"] or ""] if row.get("prompt") else [max(texts, key=len)] if texts else []


def _around(text: str, place: int) -> str:
    start, stop = max(0, place - BEFORE), place + AFTER
    cut = " ".join(text[start:stop].split("\n"))
    return f"{'...' if start else ''}{cut}{'...' if stop < len(text) else ''}"

"""Reports as text for a terminal."""

from job.errors import shorten
from job.observe.text import number
from job.report.accuracy import Accuracy
from job.report.calibration import Calibration
from job.report.label_next import LabelNext
from job.report.label_report import GoldReport, LabelReport
from job.report.shares import MIN_GOLD, Shares
from job.report.tables import LONG_NAME, percent, plain, table_of

MAX_CLASSES = 20
"""A confusion of more classes does not fit on a screen; --json has all."""

MAX_NAMED = 100
"""Of more labels, none is named."""


def describe_labels(report: LabelReport) -> str:
    """Return a report as text, which begins with an empty line."""
    lines = ["", *(f"  {title:<12}{line}" for title, line in _facts(report))]
    if report.gold is not None:
        lines += _of_gold(report.gold)
        lines += [f"note: {note}" for note in report.gold.notes]
    return "\n".join(lines)


def describe_next(chosen: LabelNext, *, is_written: bool) -> str:
    """Return which rows to label next as text."""
    counts = f"{chosen.num_random:,} at random, {chosen.num_uncertain:,} of which the model is least certain"
    lines = ["", f"  {'label next':<12}{number(len(chosen.table), 'row')}: {counts}"]
    if is_written:
        return "\n".join(lines)
    rows = chosen.table.slice(0, MAX_CLASSES).to_pylist()
    cells = [
        [str(row["row_idx"]), row["stratum"], shorten(row["label"], LONG_NAME), _two_digits(row.get("confidence"))]
        for row in rows
    ]
    lines += ["", *table_of(["row", "stratum", "label", "confidence"], cells)]
    more = f"  ... and {len(chosen.table) - len(rows):,} more; " if len(chosen.table) > len(rows) else "  "
    return "\n".join([*lines, f"{more}--label-next-to FILE writes them with an empty gold column"])


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _facts(report: LabelReport) -> list[tuple[str, str]]:
    rows = number(report.num_rows, "row")
    samples = "" if report.num_samples == 1 else f", from {report.num_samples:,} samples each"
    facts = [("rows", f"{rows} with a completion{samples}{_left_out(report)}")]
    counted = sorted(zip(report.classes, report.counts, strict=True), key=lambda pair: -pair[1])
    shown = [f"{shorten(name)} {count:,}" for name, count in counted[:MAX_CLASSES] if count]
    more = [f"{len(counted) - MAX_CLASSES:,} others"] if len(counted) > MAX_CLASSES else []
    if len(counted) > MAX_NAMED:
        shown, more = [], [f"{len(counted):,} different ones"]
    none = [f"none {report.num_without_label:,}"] if report.num_without_label else []
    facts.append(("labels", f"{', '.join([*shown, *more, *none])} (column {report.column.name})"))
    if (gold := report.gold) is not None:
        where = f"(column {gold.column} of {gold.place})"
        facts.append(("gold", f"{number(gold.num_rows, 'row')} {where}{_uncounted(gold)}"))
        facts.append(("intervals", f"{100 * report.confidence_level:g} %"))
    return facts


def _left_out(report: LabelReport) -> str:
    errors = f"; {report.num_errors:,} with an error are left out" if report.num_errors else ""
    missing = f"; {number(report.num_missing, 'row')} not finished yet" if report.num_missing else ""
    return errors + missing


def _uncounted(gold: GoldReport) -> str:
    without = f"; {number(gold.num_without_gold, 'row')} without gold not counted" if gold.num_without_gold else ""
    why = "chosen as uncertain are left out, because they are not like the others"
    return without + (f"; {gold.num_chosen:,} {why}" if gold.num_chosen else "")


def _of_gold(gold: GoldReport) -> list[str]:
    accuracy = gold.accuracy
    right = f"  {'accuracy':<12}{percent(accuracy.accuracy)}: {accuracy.num_right:,} of {accuracy.num_rows:,}"
    if not accuracy.confusion:
        return [right, *([] if gold.calibration is None else ["", *_calibration(gold.calibration)])]
    lines = [
        right,
        f"  {'kappa':<12}{plain(accuracy.kappa)}",
        f"  {'macro F1':<12}{plain(accuracy.macro_f1)}",
    ]
    if len(accuracy.classes) > MAX_CLASSES:
        lines += [f"  {len(accuracy.classes):,} classes are too many to show one by one; --json has them"]
    else:
        lines += ["", *_confusion(accuracy), "", *_classes(accuracy)]
    if gold.calibration is not None:
        lines += ["", *_calibration(gold.calibration)]
    few = f"shares are corrected with {MIN_GOLD} rows of gold or more"
    return [*lines, "", *(_shares(gold.shares) if gold.shares is not None else [f"  {few}"])]


def _confusion(accuracy: Accuracy) -> list[str]:
    has_none = any(row[-1] for row in accuracy.confusion)
    names = [shorten(name, LONG_NAME) for name in accuracy.classes]
    header = ["gold \\ label", *names, *(["none"] if has_none else [])]
    rows = [
        [name, *(f"{count:,}" for count in (row if has_none else row[:-1]))]
        for name, row in zip(names, accuracy.confusion, strict=True)
    ]
    return table_of(header, rows)


def _classes(accuracy: Accuracy) -> list[str]:
    rows = [
        [
            shorten(each.name, LONG_NAME),
            f"{each.num_gold:,}",
            f"{each.num_labels:,}",
            percent(each.precision),
            percent(each.recall),
            plain(each.f1),
        ]
        for each in accuracy.of_classes
    ]
    return table_of(["class", "gold", "labels", "precision", "recall", "F1"], rows)


def _calibration(found: Calibration) -> list[str]:
    is_noise = found.ece.value <= found.ece_if_calibrated
    noise = (
        f"perfect probabilities would give up to {found.ece_if_calibrated:.3f}{', so this may be chance' * is_noise}"
    )
    rows = [
        [
            f"{each.low:.1f} to {each.high:.1f}",
            f"{each.num_rows:,}",
            f"{each.confidence:.3f}",
            percent(each.accuracy),
        ]
        for each in found.bins
    ]
    return [
        f"  {'ECE':<12}{plain(found.ece)}; {noise}",
        f"  {'Brier score':<12}{found.brier:.3f}",
        "",
        *table_of(["probability", "rows", "mean", "right"], rows),
    ]


def _shares(found: Shares) -> list[str]:
    rows = [
        [shorten(each.name, LONG_NAME), f"{100 * each.labels:.1f} %", percent(each.gold), percent(each.corrected)]
        for each in found.of_classes[:MAX_CLASSES]
    ]
    header = ["share", f"labels ({found.num_rows:,})", f"gold ({found.num_gold:,})", "corrected"]
    return [*table_of(header, rows), *(f"note: {note}" for note in found.notes)]

"""``job report``: what is to be said of a run's output, in numbers. Only reads; needs no GPU."""

import json
from typing import TYPE_CHECKING

import click

from job.cli.options import RUN_ARGUMENT, Text, options
from job.cli.page import PAGE_OPTIONS, Asked, Pages
from job.cli.tables import format_of, write_file
from job.errors import JobError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from job.report.gold import GoldOptions
    from job.report.whole import Report


def _a_number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if value != value:  # click.FloatRange lets nan through
        raise UsageError("--confidence is nan; it must be a number from 0.5 to below 1, such as 0.95.")
    return value


GOLD_OPTIONS = options(
    click.option(
        "--gold",
        metavar="COLUMN",
        help="Column with the right labels: of the output, of the run's dataset, or of --gold-file. Rows where it is "
        "null are not counted.",
    ),
    click.option(
        "--gold-file",
        "gold_files",
        multiple=True,
        type=Text(),
        metavar="FILE",
        help="Read --gold from this file or dataset, whose rows are matched by the run's id column or by row_idx. "
        "Repeat for several.",
    ),
    click.option(
        "--gold-map",
        multiple=True,
        metavar="OLD=NEW",
        help="Read the gold label OLD as the label NEW; with nothing after the =, its rows have no gold. Repeat.",
    ),
    click.option(
        "--label",
        metavar="COLUMN",
        help="Column with the labels, or a property of --json-schema [default: what the run is about].",
    ),
    click.option(
        "--confidence",
        type=click.FloatRange(0.5, 1, max_open=True),
        callback=_a_number,
        default=0.95,
        show_default=True,
        help="Confidence of all intervals.",
    ),
)
"""Shared with ``job compare``."""


@click.command(short_help="Write a page about a run, and its labels against gold.")
@RUN_ARGUMENT
@GOLD_OPTIONS
@PAGE_OPTIONS
@click.option(
    "--label-next",
    type=click.IntRange(min=1),
    metavar="N",
    help="Choose N rows without gold that a person should label next: half at random, half where the model is least "
    "certain.",
)
@click.option(
    "--label-next-to",
    metavar="FILE",
    help="Write these rows to a .csv, .jsonl or .parquet file with an empty gold column, which --gold-file reads back.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the rows that are chosen at random.",
)
@click.option("--force", is_flag=True, help="Replace the file of --label-next-to if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(
    output: str,
    gold: str | None,
    gold_files: tuple[str, ...],
    gold_map: tuple[str, ...],
    label: str | None,
    confidence: float,
    page: str | None,
    no_page: bool,
    price: float | None,
    watch: bool,
    port: int | None,
    label_next: int | None,
    label_next_to: str | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Report on the run in OUTPUT, also while it runs: print its main numbers, and write a page to look at.

    The page is one HTML file that needs no network: rows in and out, time line, lengths, errors, labels, cost, and a
    browser of rows.

    With --gold: accuracy, Cohen's kappa, the confusion of classes, precision and recall, the calibration of
    probabilities, and the share of each class, corrected with the gold.

    Exit codes: 0 reported; 1 a part cannot be read; 2 wrong usage, or nothing to report.
    """
    from job.output.looking.found import find_run
    from job.report.describe import describe_labels, describe_next
    from job.report.describe_run import describe_run, main_numbers
    from job.report.whole import ReportOptions, make_report  # imports pyarrow: only now, so that --help is quick

    form = _form_of_next(label_next, label_next_to)
    asked = ReportOptions(
        gold=to_gold(gold, gold_files, gold_map),
        label=label,
        confidence=confidence,
        label_next=label_next or 0,
        seed=seed,
    )
    asked_page = Asked.of(page, no_page, price, watch, port, as_json)
    if asked_page.is_watched:
        return Pages(output, lambda: _report_of(lambda: make_report(find_run(output), asked)), asked_page).serve()
    found, why = None, None
    try:
        found = make_report(find_run(output), asked)
    except JobError as error:
        if gold is not None or label is not None or label_next is not None or as_json:
            raise
        why = str(error)  # labels were not asked for: the rest is reported on
    labels, chosen = (None, None) if found is None else (found.labels, found.label_next)
    if chosen is not None and label_next_to is not None and form is not None:
        write_file("label-next-to", label_next_to, chosen.blind, form, (output,), force=force)
    pages = Pages(output, lambda: (found, why), asked_page)
    data = pages.make()
    if as_json and found is not None:
        click.echo(json.dumps({"output": output, **main_numbers(data), **found.to_dict()}, ensure_ascii=False))
    else:
        said = [
            describe_run(data),
            labels and describe_labels(labels),
            chosen and describe_next(chosen, is_written=label_next_to is not None),
        ]
        click.echo("\n".join(text for text in said if text))
    if asked_page.is_wanted:  # after the numbers: the directory of somebody else's run may be read-only
        place = pages.write(data)
        if not as_json:
            click.echo(f"page: {place}")
    if data.status.unreadable_parts or data.damages:
        raise JobError(f"Some of it is damaged: job verify {output} says what, and why.")


def _form_of_next(number: int | None, file: str | None) -> str | None:
    """Return the format of the file of --label-next-to."""
    if file is not None and number is None:
        raise UsageError("--label-next-to was given without --label-next. Say how many rows to choose.")
    return None if file is None else format_of("label-next-to", file)


def _report_of(make: "Callable[[], Report]") -> "tuple[Report | None, str | None]":
    """Return the report of the labels, or why there is none (yet)."""
    try:
        return make(), None
    except JobError as error:
        return None, str(error)


def to_gold(gold: str | None, files: tuple[str, ...], renamed: tuple[str, ...]) -> "GoldOptions | None":
    """Return where gold labels are.

    Raises:
        UsageError: options do not go together, or are not of the form that they need.
    """
    from job.report.gold import GoldOptions

    if gold is None:
        for flag, is_given in {"--gold-file": files, "--gold-map": renamed}.items():
            if is_given:
                raise UsageError(f"{flag} was given without --gold. Name the column with the gold labels.")
        return None
    pairs = []
    for text in renamed:
        old, equals, new = text.partition("=")
        if not equals or not old.strip():
            raise UsageError(f"--gold-map is {text!r}; it must be OLD=NEW, such as pos=positive.")
        pairs.append((old.strip(), new.strip()))
    if doubles := [old for old, _ in pairs if len({new for name, new in pairs if name == old}) > 1]:
        raise UsageError(f"--gold-map gives {doubles[0]!r} several names. Give it one.")
    return GoldOptions(column=gold, files=files, renamed=tuple(pairs))

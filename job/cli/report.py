"""``job report``: what is to be said of a run's output, in numbers. Only reads; needs no GPU."""

import json
from typing import TYPE_CHECKING

import click

from job.cli.options import RUN_ARGUMENT, Text, options
from job.errors import UsageError

if TYPE_CHECKING:
    from job.report.gold import GoldOptions

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
        default=0.95,
        show_default=True,
        help="Confidence of all intervals.",
    ),
)
"""Shared with ``job compare``."""


@click.command(short_help="Report on the labels of a run, against gold labels.")
@RUN_ARGUMENT
@GOLD_OPTIONS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(
    output: str,
    gold: str | None,
    gold_files: tuple[str, ...],
    gold_map: tuple[str, ...],
    label: str | None,
    confidence: float,
    as_json: bool,
) -> None:
    """Report on the rows of the run in OUTPUT that are in parts, also while it runs.

    With --gold: accuracy, Cohen's kappa, the confusion of classes, precision and recall, the calibration of
    probabilities, and the share of each class, corrected with the gold.

    Exit codes: 0 reported; 1 a part cannot be read; 2 wrong usage, or nothing to report.
    """
    from job.output.looking.found import find_run
    from job.report.describe import describe_labels
    from job.report.whole import ReportOptions, make_report  # imports pyarrow: only now, so that --help is quick

    asked = ReportOptions(gold=to_gold(gold, gold_files, gold_map), label=label, confidence=confidence)
    found = make_report(find_run(output), asked)
    if as_json:
        click.echo(json.dumps({"output": output, **found.to_dict()}, ensure_ascii=False))
    elif found.labels is None:
        click.echo(f"{output} has no labels to report on. Name a column with --label.", err=True)
    else:
        click.echo(describe_labels(output, found.labels))


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
    return GoldOptions(column=gold, files=files, renamed=tuple(pairs))

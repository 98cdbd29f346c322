"""``job compare``: two runs, row by row. Only reads; needs no GPU."""

import json

import click

from job.cli.options import Place, tell_if_silent
from job.cli.report import GOLD_OPTIONS, to_gold
from job.cli.tables import format_of, write_file


@click.command(short_help="Compare the rows of two runs.")
@click.argument("a", type=Place(), callback=tell_if_silent)
@click.argument("b", type=Place(), callback=tell_if_silent)
@GOLD_OPTIONS
@click.option(
    "--by",
    metavar="COLUMN",
    help="Column that tells rows apart, in both runs [default: row_idx if both read the same dataset, else the id "
    "column].",
)
@click.option("--texts", is_flag=True, help="Compare completions as texts, even if both runs have labels.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=5, show_default=True, metavar="N", help="Show N rows that differ."
)
@click.option("--to", metavar="FILE", help="Write all rows that differ to this .csv, .jsonl or .parquet file.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(
    a: str,
    b: str,
    gold: str | None,
    gold_files: tuple[str, ...],
    gold_map: tuple[str, ...],
    label: str | None,
    confidence: float,
    by: str | None,
    texts: bool,
    limit: int,
    to: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the finished rows of the runs in A and B, side by side.

    Of labels: agreement, Cohen's kappa, the share of each label in both with McNemar's test, and with --gold which run
    is right more often. Of texts: the share that is equal, and where the others begin to differ.

    Exit codes: 0 compared; 1 a part cannot be read; 2 wrong usage, or no row is in both.
    """
    from job.output.looking.found import find_run
    from job.report.comparison import CompareOptions, compare_runs  # imports pyarrow: only now, so --help is quick
    from job.report.describe_comparison import describe_comparison

    form = None if to is None else format_of("to", to)
    asked = CompareOptions(
        by=by, label=label, texts=texts, gold=to_gold(gold, gold_files, gold_map), confidence=confidence
    )
    found = compare_runs(find_run(a), find_run(b), asked)
    if to is not None and form is not None:
        write_file("to", to, found.differing, form, (a, b), force=force)
    if as_json:
        click.echo(json.dumps({"a": a, "b": b, **found.to_dict()}, ensure_ascii=False))
    else:
        click.echo(describe_comparison(a, b, found, limit, to))

"""``job show``: prints rows of a run, finished or not. Only reads; needs no GPU."""

import shutil

import click

from job.cli.options import RUN_ARGUMENT
from job.errors import UsageError

MIN_ROWS = click.IntRange(min=1)


@click.command(short_help="Read rows of a run in the terminal.")
@RUN_ARGUMENT
@click.option("--errors", is_flag=True, help="Rows with an error.")
@click.option("--cut", is_flag=True, help="Rows whose completion reached --max-new-tokens or ended in a loop.")
@click.option("--unparsed", is_flag=True, help="Rows whose completion does not meet its constraint.")
@click.option("--row", "row_idx", type=int, metavar="N", help="The row with this row_idx, with all its samples.")
@click.option("--random", "num_random", type=MIN_ROWS, metavar="N", help="N rows chosen at random.")
@click.option("--limit", type=MIN_ROWS, metavar="N", help="At most N rows, in their order [default: 10].")
@click.option("--full", "in_full", is_flag=True, help="Show long values in full.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def show(
    output: str,
    errors: bool,
    cut: bool,
    unparsed: bool,
    row_idx: int | None,
    num_random: int | None,
    limit: int | None,
    in_full: bool,
    as_json: bool,
) -> None:
    """Print rows of the run in OUTPUT, the first ones unless told otherwise, also while it runs.

    Rows that are not in a part yet are read from journals, which have no columns of the dataset. Several of --errors,
    --cut and --unparsed select rows of any of these kinds.

    Exit codes: 0 shown; 1 a part cannot be read; 2 OUTPUT is not a run directory, or has no such row.
    """
    from job.observe.row_report import describe_row
    from job.output.looking.exporting.cells import to_cell, to_json  # imports pyarrow: only now, so --help is quick
    from job.output.looking.found import find_run
    from job.output.looking.shown_rows import Wanted, find_rows

    if num_random is not None and (row_idx is not None or limit is not None):
        raise UsageError("--random was given with --row or --limit. Give one of them.")
    run = find_run(output)
    limit = 10 if limit is None and row_idx is None and num_random is None else limit
    wanted = Wanted(errors=errors, cut=cut, unparsed=unparsed, row_idx=row_idx, num_random=num_random, limit=limit)
    width, num_shown = shutil.get_terminal_size().columns, 0
    for num_shown, row in enumerate(find_rows(run, wanted), 1):
        if as_json:
            click.echo(to_json(row))
        else:
            cells = {name: to_cell(value) for name, value in row.items()}
            text = describe_row(row, cells, num_samples=run.plan.num_samples, width=width, in_full=in_full)
            click.echo(text if num_shown == 1 else f"\n{text}")
    if not num_shown and row_idx is not None:
        other = ", or not of this kind" if wanted.has_kinds else ""
        raise UsageError(f"Row {row_idx} is not finished yet{other}.")
    if not num_shown:
        click.echo("No finished row is of this kind." if wanted.has_kinds else "No row is finished yet.", err=True)

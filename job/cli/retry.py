"""``job retry``: marks error rows, which the next run recomputes."""

from collections import Counter

import click

from job.cli.options import RUN_ARGUMENT, split_commas
from job.errors import UsageError
from job.observe.text import number


@click.command(short_help="Mark error rows, which the next run recomputes.")
@RUN_ARGUMENT
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    callback=split_commas,
    help="Only rows with errors of this kind, such as engine_error; repeat for several [default: all error rows].",
)
def retry(output: str, kinds: tuple[str, ...]) -> None:
    """Mark the error rows of the run in OUTPUT, its --output.

    Then run the same command as before: it recomputes these rows and no others. Their parts stay readable until the new
    ones replace them.
    """
    from job.output.looking.found import find_run
    from job.output.looking.retries import mark_for_retry, read_errors

    run = find_run(output)
    errors = read_errors(run.directory)
    present = sum(errors.values(), Counter[str]())
    unknown = sorted(set(kinds) - set(present))
    if unknown:
        kinds_present = ", ".join(f"{kind} ({number:,})" for kind, number in present.most_common()) or "none"
        raise UsageError(f"--kind {unknown[0]}: no finished row has this error. Kinds in this run: {kinds_present}.")
    marked = mark_for_retry(run, errors, kinds)
    if not marked:
        click.echo("No finished row has an error: nothing to retry.")
        return
    listed = ", ".join(f"{kind} {count:,}" for kind, count in marked.most_common())
    rows = number(marked.total(), run.plan.unit.removesuffix("s"))
    click.echo(f"{rows} will be recomputed ({listed}). Run the same command as before.")

"""``job export``: the rows of a run as one file. Needs no GPU."""

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from job.cli.options import RUN_ARGUMENT, split_commas
from job.cli.tables import FORMATS
from job.config import EXPORT_FORMATS
from job.errors import JobError, UsageError
from job.observe.text import number

if TYPE_CHECKING:
    from job.output.looking.exporting.run_table import RunTable
    from job.output.parts.manifest import Manifest

STDOUT = "-"


@click.command(short_help="Write the rows of a run to one file.")
@RUN_ARGUMENT
@click.option(
    "--format",
    "form",
    type=click.Choice(EXPORT_FORMATS),
    help="Output format; openai-batch is that of OpenAI's Batch API [default: from the extension of --to, else jsonl].",
)
@click.option("--to", default=STDOUT, show_default=True, metavar="FILE", help="File to write; '-' is standard output.")
@click.option(
    "--columns",
    multiple=True,
    callback=split_commas,
    help="Write only these columns, in this order. Repeat or use commas.",
)
@click.option("--errors/--no-errors", default=True, show_default=True, help="Include rows with an error.")
@click.option("--partial", is_flag=True, help="Write the rows that are finished, even if the run is not.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def export(
    output: str, form: str | None, to: str, columns: tuple[str, ...], errors: bool, partial: bool, force: bool
) -> None:
    """Write the rows of the run in OUTPUT to one file, in their order.

    In csv, lists and objects are JSON text and nulls are empty. The file appears only once it is complete.

    Exit codes: 0 written; 1 a part cannot be read or the file cannot be written; 2 wrong usage, or the run is not
    finished.
    """
    from job.output.looking.exporting.openai_answers import answer_columns, write_answers
    from job.output.looking.exporting.run_table import RunTable, Selection
    from job.output.looking.exporting.writers import WRITERS  # imports pyarrow: only now, so that --help is quick
    from job.output.looking.found import find_run
    from job.output.store.addresses import check_local, local_path
    from job.report.unfinished import Unfinished

    check_local("to", to, "Name a local file, and upload it afterwards.")
    form = _format(form, to)
    run, writer = find_run(output), WRITERS[form]
    if form == "openai-batch":
        if columns:
            raise UsageError(
                "--columns cannot be used with --format openai-batch, whose lines have a fixed form. Leave it out."
            )
        columns = answer_columns(run.manifest)
        writer = functools.partial(write_answers, token_bytes=_token_bytes(run.manifest))
    unfinished = Unfinished(run) if partial else None
    if unfinished is not None and unfinished.problem:
        click.echo(unfinished.problem, err=True)
    table = RunTable(run, Selection(columns=columns, include_errors=errors, is_partial=partial), unfinished)
    is_shown = sys.stderr.isatty() and not (to == STDOUT and sys.stdout.isatty())
    with (
        _open(to, local_path(output), force=force) as file,
        click.progressbar(length=table.num_parts, label="parts", file=sys.stderr, hidden=not is_shown) as bar,
    ):
        writer(table, table.read(lambda: bar.update(1)), file)
    click.echo(_summary(table, to), err=True)


def _token_bytes(manifest: "Manifest") -> Callable[[int], bytes] | None:
    """Return what gives the text of a token, for the log probabilities of a run that has them."""
    from job.output.looking.exporting.openai_answers import has_logprobs

    if not has_logprobs(manifest):
        return None
    from job.run.token_bytes import token_bytes_of

    try:
        return token_bytes_of(manifest)
    except JobError as error:
        click.echo(f"logprobs are left out, which need the text of tokens: {error}", err=True)
        return None


def _format(form: str | None, to: str) -> str:
    """Return the requested format, or else the one that the file's extension implies."""
    if to == STDOUT:
        if form == "parquet":
            raise UsageError("--format parquet cannot be written to standard output. Name a file with --to.")
        return form or "jsonl"
    found = form or FORMATS.get(Path(to).suffix.lower())
    if found is None:
        raise UsageError(f"--to {to} has no known extension. Set --format to one of {', '.join(EXPORT_FORMATS)}.")
    return found


def _open(to: str, run_dir: Path | None, *, force: bool) -> contextlib.AbstractContextManager[BinaryIO]:
    from job.output.looking.exporting.target import new_file, standard_output

    if to == STDOUT:
        return standard_output(sys.stdout.buffer)
    return new_file(Path(to), run_dir, force=force)


def _summary(table: "RunTable", to: str) -> str:
    """Return how many rows were written, and which were not."""
    facts = [number(table.num_rows, "row")]
    if table.num_errors:
        facts.append(f"{table.num_errors:,} of them with an error")
    if table.num_left_out:
        facts.append(f"{table.num_left_out:,} with an error left out")
    if table.num_missing:
        facts.append(f"{table.num_missing:,} not finished yet")
    return f"{'standard output' if to == STDOUT else to}: {', '.join(facts)}"

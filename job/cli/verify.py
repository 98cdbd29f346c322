"""``job verify``: checks that a run's output is correct and complete. Reads all of it, or recomputes some of it."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from job.cli.options import RUN_ARGUMENT
from job.cli.recompute import RECOMPUTE_OPTIONS, recompute, refuse_alone
from job.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from job.observe.text import number

if TYPE_CHECKING:
    from job.output.looking.verification import Verification

MAX_PROBLEMS = 20


@click.command(short_help="Read and check everything that a run has written.")
@RUN_ARGUMENT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all problems.")
@RECOMPUTE_OPTIONS
@click.pass_context
def verify(ctx: click.Context, /, output: str, as_json: bool, **values: Any) -> None:
    """Read every part of the run in OUTPUT in full and check it against the manifest and the plan.

    Each part must be readable and belong to this run, with the run's columns, exactly the rows of its shard in order,
    a completion or an error in each row, and the counts that its footer gives. That needs no GPU.

    With --recompute N, compute N finished rows again instead, each alone in its batch, on one process, and compare:
    each is equal, a near tie (where logits were rounded differently, another token may win by a hair), different, or
    unclear (its text may come from more tokens than were tried). A table says which host and worker computed the rows
    that differ.

    Exit codes: 0 correct and complete, or no row is known to differ but for ties; 1 something is wrong, or a row
    differs; 2 OUTPUT is not a run directory, or what the run read is no longer the same; 75 correct so far, run the
    same command to complete it.
    """
    number = values.pop("recompute")
    if number is not None:
        ctx.exit(recompute(output, number, values, as_json=as_json))
    refuse_alone(ctx, values)
    from job.output.looking.found import find_run  # imports pyarrow: only now, so that --help is quick
    from job.output.looking.verification import verify as verify_run

    run = find_run(output)
    with click.progressbar(
        length=run.plan.num_shards, label="parts", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        result = verify_run(run, lambda: bar.update(1))
    click.echo(json.dumps({"output": output, **result.to_dict()}) if as_json else describe(output, result))
    ctx.exit(exit_code_of(result))


def exit_code_of(result: "Verification") -> int:
    """Return the exit code of the command."""
    if result.problems:
        return EXIT_FAILED
    return EXIT_DONE if result.is_complete else EXIT_STOPPED


def describe(output: str, result: "Verification") -> str:
    """Return the report as text; the last line says what to do."""
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in result.errors.most_common())
    rows = [f"{result.num_done:,} done", f"{result.num_errors:,} error", f"{result.num_pending:,} pending"]
    if result.num_damaged:
        rows.append(f"{result.num_damaged:,} in damaged parts")
    more = len(result.problems) - MAX_PROBLEMS
    return "\n".join(
        [
            output,
            f"  parts    {result.num_parts:,} of {result.total_parts:,} correct",
            f"  rows     {result.total_rows:,} = {' + '.join(rows)}",
            *([f"  errors   {kinds}"] if kinds else []),
            *([f"  retry    rows in {number(result.num_to_retry, 'part')}"] if result.num_to_retry else []),
            *([f"  problems {len(result.problems):,}"] if result.problems else []),
            *(f"    {problem}" for problem in result.problems[:MAX_PROBLEMS]),
            *([f"    and {more:,} more; --json lists all"] if more > 0 else []),
            _advice(result),
        ]
    )


def _advice(result: "Verification") -> str:
    if result.problems:
        return "Remove these files and run the same command: their rows will be recomputed."
    if not result.is_complete:
        return "Correct so far, but not complete: run the same command to continue."
    return "Correct and complete."

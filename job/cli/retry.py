"""``job retry``: marks rows, which the next run recomputes."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from job.cli.options import RUN_ARGUMENT, split_commas
from job.errors import UsageError
from job.observe.text import number
from job.wording import listed

if TYPE_CHECKING:
    from job.output.looking.found import FoundRun


@click.command(short_help="Mark rows, which the next run recomputes: errors, or what was cut.")
@RUN_ARGUMENT
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    callback=split_commas,
    help="Only rows with errors of this kind, such as engine_error; repeat for several [default: all error rows].",
)
@click.option("--cut", is_flag=True, help="Rows that were cut by --max-new-tokens or ended in a loop.")
@click.option("--unparsed", is_flag=True, help="Rows that do not meet their schema, regex or grammar.")
@click.option("--max-new-tokens", type=int, help="Their limit, in place of the run's. Parts record which rows had it.")
@click.option("--temperature", type=float, help="Their temperature, in place of the run's.")
@click.option("--seed", type=int, help="Their seed, in place of the run's.")
def retry(output: str, kinds: tuple[str, ...], cut: bool, unparsed: bool, **options: Any) -> None:
    """Mark rows of the run in OUTPUT, its --output: error rows, those that were cut, or those that do not parse.

    Then run the same command as before: it recomputes these rows, and no others. With --max-new-tokens alone, rows that
    were cut go on where they were. Parts stay readable until the new ones replace them.
    """
    from job.output.looking.found import find_run
    from job.output.looking.retries import mark_for_retry, read_counts
    from job.output.parts.retry_marks import Mark

    run = find_run(output)
    changes = {name: value for name, value in options.items() if value is not None}
    _check(run, cut=cut, unparsed=unparsed, changes=changes)
    counts = read_counts(run.directory)
    present = sum((of_part.errors for of_part in counts.values()), Counter[str]())
    unknown = sorted(set(kinds) - set(present))
    if unknown:
        kinds_present = ", ".join(f"{kind} ({number:,})" for kind, number in present.most_common()) or "none"
        raise UsageError(f"--kind {unknown[0]}: no finished row has this error. Kinds in this run: {kinds_present}.")
    wants_errors = bool(kinds) or not (cut or unparsed)
    wanted = Mark(kinds=tuple(sorted(kinds)) if wants_errors else None, cut=cut, unparsed=unparsed, changes=changes)
    marked = mark_for_retry(run, counts, wanted)
    if not marked:
        reasons = [*(["has an error"] if wants_errors else []), *(["was cut"] if cut else [])]
        reasons += ["fails to parse"] if unparsed else []
        click.echo(f"No finished row {' or '.join(reasons)}: nothing to retry.")
        return
    shown = ", ".join(f"{reason} {count:,}" for reason, count in marked.most_common())
    rows = number(marked.total(), run.plan.unit.removesuffix("s"))
    click.echo(f"{rows} will be recomputed ({shown}). Run the same command as before.")


def _check(run: "FoundRun", *, cut: bool, unparsed: bool, changes: dict[str, Any]) -> None:
    """Refuse what would give the same rows again, and options that the run has no use for.

    Raises:
        UsageError: it would, or it has none.
    """
    from job.modes.structured import StructuredMode
    from job.tasks import SamplingParams
    from job.wording import flag

    sampling = run.manifest.section("sampling")
    SamplingParams(**{"min_new_tokens": sampling["min_new_tokens"], **changes})  # checks the values
    undrawn = next((mode.flag for mode in run.manifest.modes if mode.draws_nothing), None)
    if undrawn is not None and (cut or unparsed or changes):
        given = "--cut" if cut else "--unparsed" if unparsed else flag(next(iter(changes)))
        raise UsageError(f"{given} is for completions that are drawn. This run has {undrawn}, which draws none.")
    if "temperature" in changes and (sampling["num_beams"] or 1) > 1:
        raise UsageError(f"--temperature does not go with this run's {sampling['num_beams']} beams. Leave it out.")
    if unparsed and not any(isinstance(mode, StructuredMode) for mode in run.manifest.modes):
        raise UsageError("--unparsed is for runs with --json-schema, --regex or --grammar, which this one has not.")
    is_random = changes.get("temperature", sampling["temperature"]) > 0
    is_longer = changes.get("max_new_tokens", 0) > sampling["max_new_tokens"]
    if "seed" in changes and not is_random:
        raise UsageError("--seed has no effect: decoding is greedy. Set --temperature above 0.")
    if (cut or unparsed) and not (is_longer or {"seed", "temperature"} & changes.keys()):
        what = listed([*(["--cut"] if cut else []), *(["--unparsed"] if unparsed else [])])
        given = f" with --max-new-tokens {changes['max_new_tokens']}" if "max_new_tokens" in changes else ""
        same = "cut them again, or earlier" if given else "give the same completions again"
        raise UsageError(
            f"{what}{given or ' alone'} would {same}. Set --max-new-tokens above the run's "
            f"{sampling['max_new_tokens']:,}, or --seed or --temperature."
        )

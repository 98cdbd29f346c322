"""``job status``: shows a run's progress, its workers, and what to do next. Only reads; needs no GPU."""

import json
import re
from time import sleep

import click

from job.cli.options import RUN_ARGUMENT
from job.errors import EXIT_DONE, EXIT_FAILED

WATCH_SECS = 5.0
MIN_WATCH_SECS, MAX_WATCH_SECS = 0.1, 86_400.0


class WatchCommand(click.Command):
    """A command whose ``--watch`` may come with or without a number of seconds."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, give_watch_its_secs(args))


def give_watch_its_secs(args: list[str]) -> list[str]:
    """Add the default to a ``--watch`` without a number: click would take OUTPUT as its value.

    >>> give_watch_its_secs(["--watch", "runs/a"]), give_watch_its_secs(["--watch", "2", "runs/a"])
    (['--watch=5.0', 'runs/a'], ['--watch', '2', 'runs/a'])
    >>> give_watch_its_secs([])
    []
    """
    return [
        f"--watch={WATCH_SECS}" if arg == "--watch" and not re.fullmatch(r"-?\d+(\.\d*)?", following) else arg
        for arg, following in zip(args, [*args, ""][1:], strict=True)
    ]


def check_watch_secs(ctx: click.Context, param: click.Parameter, secs: float | None) -> float | None:
    """Refuse an interval that is out of range. (``click.FloatRange`` lets nan through.)"""
    if secs is not None and not MIN_WATCH_SECS <= secs <= MAX_WATCH_SECS:
        raise click.BadParameter(f"{secs:g} seconds; it must be {MIN_WATCH_SECS:g} to {MAX_WATCH_SECS:g}.", ctx, param)
    return secs


@click.command(cls=WatchCommand, short_help="Show a run's progress and workers.")
@RUN_ARGUMENT
@click.option(
    "--watch",
    "watch_secs",
    type=float,
    callback=check_watch_secs,
    metavar="[SECS]",
    help=f"Repeat every SECS seconds (default: {WATCH_SECS:g}), until the run is done or Ctrl-C.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch, one per line.")
@click.pass_context
def status(ctx: click.Context, /, output: str, watch_secs: float | None, as_json: bool) -> None:
    """Show how far along the run in OUTPUT is: shards, rows, errors, speed, workers, and what to do next.

    Works during the run and after it, on any machine that sees the directory, even without write permission.

    Exit codes: 0 shown; 1 a part is damaged; 2 OUTPUT is not a run directory.
    """
    from job.observe.status_report import describe_status
    from job.run.status import Inspection  # imports pyarrow: only now, so that --help is quick

    inspection = Inspection(output)
    try:
        while True:
            seen = inspection.look()
            if watch_secs is not None and not as_json:
                click.clear()
            click.echo(json.dumps(seen.to_dict()) if as_json else describe_status(seen))
            if watch_secs is None or seen.is_done:
                ctx.exit(EXIT_FAILED if seen.unreadable_parts else EXIT_DONE)
            sleep(watch_secs)
    except KeyboardInterrupt:
        if watch_secs is None:  # Ctrl-C is how --watch ends
            raise

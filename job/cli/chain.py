"""``job chain``: several runs, each over the rows of an earlier one."""

import os
import sys
from pathlib import Path

import click

import job
from job.cli.chain_file import read_steps
from job.cli.options import Place, Text
from job.config import RunConfig
from job.errors import EXIT_DONE
from job.launch.environment import is_first_process, told_once
from job.launch.stop import StopFlag
from job.observe.noise import silence_libraries, silence_progress_bars
from job.observe.progress import Progress

PASSED_ON = {"ignore_unknown_options": True}
"""Options that are not known here are those of ``job run``."""


@click.command(short_help="Run several steps, each over the rows of an earlier one.", context_settings=PASSED_ON)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dataset", type=Text(), metavar="ID_OR_PATH", help="Dataset of the chain [default: the file's].")
@click.option(
    "--output", type=Place(), metavar="DIR", help="Directory of the steps' run directories [default: the file's]."
)
@click.option("--dry-run", is_flag=True, help="Check the steps, print their columns, and start nothing.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="OPTIONS OF job run...")
@click.pass_context
def chain(
    ctx: click.Context, /, file: Path, dataset: str | None, output: str | None, dry_run: bool, options: tuple[str, ...]
) -> None:
    """Run the steps in FILE, one after the other. The dataset of each is what the step before it wrote.

    FILE is TOML. Options at its top are those of all steps; the table [steps.NAME] has those of one, whose run
    directory is NAME in that of the chain. All other options here are those of job run, and win over the file.

    Run the same command again after any interruption: finished steps are kept. Signals and exit codes are those of
    job run; a step with an exit code other than 0 ends the chain.
    """
    with told_once(os.environ):
        steps = read_steps(ctx, file, options, dataset=dataset, output=output)
    is_verbose = any(step.config.verbose for step in steps)
    silence_libraries(verbose=is_verbose)
    is_first = is_first_process(os.environ)
    stop = StopFlag(speaks=is_first)
    stop.install()  # before the imports, which take seconds
    names = ", ".join(step.name for step in steps)
    Progress(enabled=is_first and "torch" not in sys.modules).note(
        f"job {job.__version__}: preparing the steps {names}"
    )
    from job.run.chain import launch_chain  # imports torch: only now, so that --help is quick
    from job.run.chain_check import describe_ahead

    silence_progress_bars(verbose=is_verbose)
    if dry_run:
        for line in describe_ahead(steps):
            click.echo(line)
        ctx.exit(EXIT_DONE)

    def progress_of(config: RunConfig, speaks: bool) -> Progress:
        return Progress(enabled=speaks, shows_rows=config.output.show_rows)

    ctx.exit(launch_chain(steps, stop, progress_of=progress_of, typed=sys.argv[1:]))

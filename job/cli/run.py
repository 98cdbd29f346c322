"""``job run``: one completion for every row."""

import os
import sys
from typing import Any

import click

import job
from job.cli.options import (
    CONFIG_OPTION,
    DATA_OPTIONS,
    ENGINE_OPTIONS,
    MODE_OPTIONS,
    MODEL_OPTIONS,
    OUTPUT_OPTIONS,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
)
from job.cli.repeated import RepeatingCommand, notes_on_repeats
from job.launch.environment import is_first_process, told_once
from job.launch.stop import StopFlag
from job.observe.noise import silence_libraries, silence_progress_bars
from job.observe.progress import Progress
from job.run.parsing import to_config


@click.command(cls=RepeatingCommand, short_help="Complete every row of a dataset.")
@MODEL_OPTIONS
@DATA_OPTIONS
@PROMPT_OPTIONS
@SAMPLING_OPTIONS
@MODE_OPTIONS
@OUTPUT_OPTIONS
@ENGINE_OPTIONS
@CONFIG_OPTION
@click.option("--verbose", is_flag=True, help="Let DeepSpeed, transformers and datasets write to stderr.")
@click.pass_context
def run(ctx: click.Context, /, **values: Any) -> None:
    """Complete every row of DATASET with MODEL and write Parquet parts to OUTPUT.

    Run the same command again after any interruption, on any number of GPUs: finished rows are kept.

    Exit codes: 0 done; 1 failed; 2 wrong usage, nothing was started; 3 too many error rows;
    4 stopped by --stop-after, and not done; 75 stopped on request, run the same command again.
    """
    with told_once(os.environ):
        config = to_config(values)
    silence_libraries(verbose=config.verbose)
    is_first = is_first_process(os.environ)
    stop = StopFlag(speaks=is_first)
    stop.install()  # before the imports, which take seconds
    Progress(enabled=is_first and "torch" not in sys.modules).note(
        f"job {job.__version__}: preparing the run {config.output.output}"
    )
    for note in notes_on_repeats():
        Progress(enabled=is_first).note(note)
    from job.run.process import launch  # imports torch: only now, so that --help is quick

    silence_progress_bars(verbose=config.verbose)

    def progress_of(speaks: bool) -> Progress:
        return Progress(enabled=speaks, shows_rows=config.output.show_rows)

    ctx.exit(launch(config, stop, progress_of=progress_of, typed=sys.argv[1:]))

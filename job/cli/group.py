"""The ``job`` command group, and the one place where errors become text and exit codes."""

import os
import sys
from typing import Any

import click

import job
from job.cli.export import export
from job.cli.preview import preview
from job.cli.retry import retry
from job.cli.run import run
from job.cli.status import status
from job.cli.verify import verify
from job.errors import EXIT_USAGE, JobError, PeerFailed
from job.launch import is_first_process


class JobGroup(click.Group):
    """Prints our errors as one line; every other exception is a bug and keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program and end the process."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as leaving:
            _end_if_distributed(leaving.code)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if is_first_process(os.environ):  # all processes of a launch were given the same wrong option: one tells
                command = error.ctx.command_path if error.ctx else "job"
                click.echo(f"job: {error.format_message()} See {command} --help.", err=True)
            ctx.exit(EXIT_USAGE)
        except PeerFailed as error:
            ctx.exit(error.exit_code)
        except JobError as error:
            click.echo(f"job: {error}", err=True)
            ctx.exit(error.exit_code)


def _end_if_distributed(exit_code: Any) -> None:
    """End a process that has joined a launch here and now, without the interpreter's clean-up.

    In that clean-up gloo's threads may meet objects that are gone already ("terminate called without an active
    exception"): a rank whose work was done left with signal 6 in 2 of some 12 launches, and spoilt the exit code.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code if isinstance(exit_code, int) else 0)


@click.group(cls=JobGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(job.__version__, prog_name="job")
# The deepspeed launcher puts --local_rank=N in front of everything; the environment says it too.
@click.option("--local_rank", "--local-rank", type=int, hidden=True, expose_value=False)
def main() -> None:
    """A batch offline inference job over datasets: one completion for every row, in Parquet."""


main.add_command(run)
main.add_command(export)
main.add_command(preview)
main.add_command(retry)
main.add_command(status)
main.add_command(verify)

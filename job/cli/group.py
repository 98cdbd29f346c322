"""The ``job`` command group, and the one place where errors become text and exit codes."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import job
from job.cli.chain import chain
from job.cli.compare import compare
from job.cli.export import export
from job.cli.foreign import advice_on
from job.cli.launch import launch
from job.cli.preview import preview
from job.cli.publish import publish
from job.cli.report import report
from job.cli.retry import retry
from job.cli.run import run
from job.cli.show import show
from job.cli.status import status
from job.cli.submit import submit
from job.cli.verify import verify
from job.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE, JobError, PeerFailed, UsageError, shorten
from job.launch.environment import is_first_process, told_once
from job.observe.noise import redact_tracebacks

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What writing to standard output raises if its disk is full or its terminal was closed."""


class JobGroup(click.Group):
    """Prints our errors as one line; every other exception is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with told_once(os.environ):
                check_text(ctx.args)
            return super().invoke(ctx)
        except click.UsageError as error:
            if is_first_process(os.environ):  # every process of a launch got the same wrong option: one reports it
                click.echo(f"job: {_explain(error)}", err=True)
            ctx.exit(EXIT_USAGE)
        except PeerFailed as error:
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:  # of job run, the second one
            if is_first_process(os.environ):
                click.echo("\njob: ended by Ctrl-C. What was finished is kept; run the same command again.", err=True)
            ctx.exit(EXIT_STOPPED)
        except JobError as error:
            click.echo(f"job: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                click.echo(f"job: {shorten(error.filename)!r} is too long to be a path. Give a shorter one.", err=True)
                ctx.exit(EXIT_USAGE)
            if error.filename is not None or error.errno not in FULL:
                raise
            click.echo(f"job: the output cannot be written: {error.strerror}.", err=True)
            ctx.exit(EXIT_FAILED)


def _explain(error: click.UsageError) -> str:
    """Return what is wrong with the command line, and what to do."""
    if isinstance(error, click.NoSuchOption) and (advice := advice_on(error.option_name)) is not None:
        return f"No such option {error.option_name!r}. {advice}"
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        dashed = error.option_name.replace("_", "-")
        if any(dashed in (*param.opts, *param.secondary_opts) for param in error.ctx.command.params):
            return f"No such option {error.option_name!r}. Write {dashed}."
    command = error.ctx.command_path if error.ctx else "job"
    message = error.format_message()
    if message.startswith("Got unexpected extra argument"):
        message += ". An option takes a single value, in quotes if it has spaces; repeat the option for several."
    return f"{message} See {command} --help."


def check_text(args: Sequence[str]) -> None:
    """Refuse arguments that are not valid text: the manifest could not store them, nor a tokenizer read them.

    Raises:
        UsageError: one of them has bytes that are not UTF-8, which Python passes on as lone surrogates.
    """
    for before, arg in zip(["", *args], args, strict=False):
        try:
            arg.encode()
        except UnicodeEncodeError:
            where = f"The argument{f' after {before}' if before.startswith('--') else ''}"
            content = os.fsencode(arg)
            with contextlib.suppress(UnicodeDecodeError):
                raise UsageError(
                    f"{where}, {shorten(content.decode())}, cannot be read in this locale "
                    f"({sys.getfilesystemencoding()}). Set LANG=C.UTF-8, or PYTHONUTF8=1."
                ) from None
            raise UsageError(f"{where} is not UTF-8 text: {shorten(content)}.") from None


@click.group(cls=JobGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(job.__version__, prog_name="job")
# The deepspeed launcher puts --local_rank=N before all other arguments; the environment has it, too.
@click.option("--local_rank", "--local-rank", type=int, hidden=True, expose_value=False)
def main() -> None:
    """Batch offline LLM inference over datasets: one completion for every row, in Parquet."""


main.add_command(run)
main.add_command(launch)
main.add_command(chain)
main.add_command(submit)
main.add_command(compare)
main.add_command(export)
main.add_command(preview)
main.add_command(publish)
main.add_command(report)
main.add_command(retry)
main.add_command(show)
main.add_command(status)
main.add_command(verify)


def program() -> NoReturn:
    """Run the command line, then end the process without the interpreter's clean-up.

    During the clean-up, library threads may use objects that are already destroyed ("terminate called without an active
    exception"). Processes that had finished their work died of signal 6, which spoilt the exit code: one process in 2
    of about 12 launches, and a single process in 1 of about 40 runs, with torch 2.11.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see ``__main__``
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stderr, sys.stdout):  # a name that the terminal's encoding lacks must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    redact_tracebacks()
    exit_code = EXIT_DONE
    try:
        main(prog_name="job")
    except SystemExit as leaving:
        exit_code = leaving.code if isinstance(leaving.code, int) else EXIT_FAILED
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(OSError):  # the code that wrote to it has already had this error
            stream.flush()
    os._exit(exit_code)

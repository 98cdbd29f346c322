"""``job launch``: ``job run`` or ``job chain`` in several processes of this machine."""

import os
from itertools import takewhile
from typing import Any

import click

import job
from job.cli.chain import chain
from job.cli.chain_file import read_steps
from job.cli.run import run
from job.config import RunConfig
from job.errors import UsageError
from job.launch.environment import not_a_multiple, read_process_info, told_once
from job.observe.progress import Progress
from job.run.parsing import to_config

PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True}
"""Options that are not known here are those of ``job run``."""

OF_CHAIN = "[chain FILE] OPTIONS OF job run..."


@click.command(short_help="Run on several GPUs of this machine.", context_settings=PASSED_ON)
@click.option(
    "--gpus", "num_gpus", type=click.IntRange(min=1), help="Number of GPUs, one process each [default: all visible]."
)
@click.option(
    "--processes", "num_processes", type=click.IntRange(min=1), help="Number of processes that compute on the CPU."
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar=OF_CHAIN)
@click.pass_context
def launch(ctx: click.Context, /, num_gpus: int | None, num_processes: int | None, options: tuple[str, ...]) -> None:
    """Start job run, or job chain FILE, in one process per GPU of this machine, through DeepSpeed's launcher.

    All other options are those of job run: see job run --help. "chain FILE" comes before them. With
    --tensor-parallel-size T, each T processes share one copy of the model.

    Signals and exit codes are those of job run: Ctrl-C or SIGTERM stops the run with exit code 75.
    """
    with told_once(os.environ):
        config, words = command_of(ctx, options)
        _refuse_nesting()
        gpus = _gpus(config, num_gpus, num_processes)
    size = config.engine.tensor_parallel_size
    total = len(gpus) or num_processes or size
    if total % size:
        raise UsageError(not_a_multiple(f"{total} {'GPUs' if gpus else 'processes'}", total, size))
    where = "on the CPU" if not gpus else "on one GPU each" if total > 1 else "on one GPU"
    Progress(enabled=True).note(
        f"job {job.__version__}: starting {total} process{'es' if total > 1 else ''} {where}: "
        f"{total // size} {'copy' if total == size else 'copies'} of the model"
    )
    # The launcher sets CUDA_VISIBLE_DEVICES without any GPU, too, which would be a promise.
    more = () if gpus or config.engine.device == "cpu" else ("--device", "cpu")
    from job.launch.one_node import start_on_this_node  # imports psutil: only now, so that --help is quick

    ctx.exit(start_on_this_node(gpus, total, (*words, *more)))


def command_of(ctx: click.Context, options: tuple[str, ...]) -> tuple[RunConfig, tuple[str, ...]]:
    """Check what is to be started, so that a mistake is reported before anything is.

    Args:
        options: of ``job run``; or ``chain``, its file and its options.

    Returns:
        The configuration of the run, or of the first step, which has the same launch as the others; and what follows
        ``job`` in the command.

    Raises:
        UsageError: an option is wrong.
    """
    if options[:1] == (run.name,):
        raise UsageError(f"{ctx.command_path} takes the options of job run directly: leave out 'run'.")
    if options[:1] != (chain.name,):
        with run.make_context("run", list(options), parent=ctx.parent) as of_run:
            return to_config(of_run.params), ("run", *options)
    with chain.make_context("chain", list(options[1:]), parent=ctx.parent) as of_chain:
        given = of_chain.params
        if given["dry_run"]:
            raise UsageError("--dry-run of a chain starts nothing. Use job chain FILE --dry-run.")
        steps = read_steps(ctx, given["file"], given["options"], dataset=given["dataset"], output=given["output"])
    return steps[0].config, options


def _refuse_nesting() -> None:
    info = read_process_info(os.environ, 1)
    if info.world_size > 1:
        raise UsageError(
            f"job launch starts the processes itself, but {info.launcher.name} has already started {info.world_size}. "
            f"Use job run here, or unset {info.launcher.recognized_by[0]}."
        )


def _gpus(config: RunConfig, num_gpus: int | None, num_processes: int | None) -> list[str]:
    """Return the GPUs to use, one for each process. If there are none, the processes compute on the CPU.

    Raises:
        UsageError: there are fewer than were asked for, or the options contradict each other.
    """
    on_cpu = config.engine.device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu"
    if num_processes is not None and (num_gpus is not None or config.engine.device == "cuda"):
        other = "--gpus" if num_gpus is not None else "--device cuda"
        raise UsageError(f"--processes and {other} were given together. Give --processes for the CPU, --gpus for GPUs.")
    if on_cpu and num_gpus is not None:
        raise UsageError("--gpus was given, but the device is the CPU. Use --processes, or leave out --device cpu.")
    if on_cpu or num_processes is not None:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = None if visible is None else _named_in(visible)
    if found is None and num_gpus is not None:
        return [str(idx) for idx in range(num_gpus)]  # the processes check whether they are there
    if found is None:
        import torch  # takes seconds

        found = [str(idx) for idx in range(torch.cuda.device_count())]
    if num_gpus is not None and num_gpus > len(found):
        raise UsageError(f"--gpus is {num_gpus}, but CUDA_VISIBLE_DEVICES names {len(found)}: {visible!r}.")
    if not found:
        raise UsageError("No GPU is visible. Use --processes N to compute on the CPU, with N processes.")
    return found[:num_gpus]


def _named_in(visible: str) -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names. CUDA ignores those that follow -1.

    >>> _named_in("0, 2"), _named_in("-1"), _named_in("")
    (['0', '2'], [], [])
    """
    names = (name.strip() for name in visible.split(","))
    return [name for name in takewhile(lambda name: name != "-1", names) if name]

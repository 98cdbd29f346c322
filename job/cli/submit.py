"""``job submit``: ``job run`` or ``job chain`` as a batch job of Slurm."""

import os
from typing import Any

import click

from job.cli.launch import OF_CHAIN, PASSED_ON, command_of
from job.errors import UsageError
from job.launch.environment import not_a_multiple, told_once
from job.launch.submission import Submission

COUNT = click.IntRange(min=1)


@click.command(short_help="Submit a run to Slurm.", context_settings=PASSED_ON)
@click.option("--nodes", type=COUNT, default=1, show_default=True, help="Number of nodes (of each array task).")
@click.option("--gpus-per-node", type=COUNT, default=1, show_default=True, help="GPUs per node, one process each.")
@click.option("--processes-per-node", type=COUNT, help="Processes per node that compute on the CPU, in place of GPUs.")
@click.option("--cpus-per-task", type=COUNT, default=8, show_default=True, help="CPU cores for each process.")
@click.option("--mem", help="Memory per node, such as 64G, or 0 for all of it [default: the site's].")
@click.option("--time", default="24:00:00", show_default=True, help="Time limit, after which the job is requeued.")
@click.option("--array", metavar="RANGE", help="Job array, such as 0-7 or 0-99%8: tasks that share the work.")
@click.option("--partition", help="Partition [default: the site's].")
@click.option("--account", help="Account [default: yours].")
@click.option("--job-name", default="job-run", show_default=True, help="Name of the job and of its log.")
@click.option("--max-requeues", type=click.IntRange(min=0), default=50, show_default=True, help="Restarts at most.")
@click.option(
    "--sbatch-option", "sbatch_options", multiple=True, metavar="OPTION", help="Such as qos=high; may be repeated."
)
@click.option("--dry-run", is_flag=True, help="Print the batch script and submit nothing.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar=OF_CHAIN)
@click.pass_context
def submit(
    ctx: click.Context, /, options: tuple[str, ...], dry_run: bool, processes_per_node: int | None, **values: Any
) -> None:
    """Submit job run, or job chain FILE, to Slurm with one task per GPU. All other options are those of job run: see
    job run --help. "chain FILE" comes before them.

    The job stops in time for a time limit or a preemption, goes back into the queue and continues; its exit code is
    that of job run. Log: NAME-ID.log in this directory.

    Exit codes: 0 submitted; 1 Slurm refuses the job; 2 wrong options.
    """
    with told_once(os.environ):
        config, words = command_of(ctx, options)
    more: tuple[str, ...] = ()
    if processes_per_node is not None:
        if ctx.get_parameter_source("gpus_per_node") is click.core.ParameterSource.COMMANDLINE:
            raise UsageError("--gpus-per-node and --processes-per-node were given together. Give only one.")
        values["gpus_per_node"] = 0
        more = () if config.engine.device == "cpu" else ("--device", "cpu")
    submission = Submission(**values, processes_per_node=processes_per_node or values["gpus_per_node"])
    size, total = config.engine.tensor_parallel_size, submission.nodes * submission.processes_per_node
    if total % size:
        raise UsageError(not_a_multiple(f"{total} processes (nodes x processes per node)", total, size))
    if dry_run:
        click.echo(submission.script((*words, *more)), nl=False)
        return
    job_id = submission.submit((*words, *more))
    log = submission.log.replace("%x", submission.job_name).replace("%j", job_id).replace("%A_%a", f"{job_id}_*")
    click.echo(job_id)
    click.echo(f"submitted job {job_id}; log: {log}; progress: job status {config.output.output}", err=True)

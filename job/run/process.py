"""One process of a launch, from its first step to its last: join the others, prepare, load, then lead or follow."""

import os
from collections.abc import Callable
from typing import TypeVar

from job.config import RunConfig
from job.engine.kinds import ENGINES
from job.engine.model.info import ModelInfo, inspect_model
from job.engine.model.loading import LoadedModel, load_model
from job.engine.protocol import Engine
from job.errors import EXIT_DONE, EXIT_STOPPED, EXIT_TOO_MANY_ERRORS, JobError
from job.launch.environment import read_process_info, told_once
from job.launch.parents import launchers_above, watch
from job.launch.replica import Replica
from job.launch.stop import StopFlag
from job.observe.noise import silence_progress_bars
from job.observe.progress import Progress
from job.observe.stopwatch import Stopwatch
from job.run.conclusion import conclude, exit_code_of
from job.run.preparation import Prepared, prepare
from job.run.runner import Runner

Result = TypeVar("Result")


def launch(config: RunConfig, stop: StopFlag) -> int:
    """Run this process's part of ``job run``.

    Args:
        stop: set by signals, perhaps already.

    Returns:
        The exit code.

    Raises:
        JobError: the run cannot start or go on; it knows its exit code.
    """
    watch(launchers_above(os.getpid()), lambda: stop.request("the end of its launcher"))
    silence_progress_bars(verbose=config.verbose)
    stopwatch = Stopwatch()
    with told_once(os.environ):
        info = read_process_info(os.environ, config.engine.tensor_parallel_size)
        replica = Replica(info)
    progress = Progress(enabled=info.speaks)
    with stopwatch.measure("prepare"):
        prepared = _prepare_in_turn(config, replica)
    early = _attempt(replica, lambda: _finish_early(prepared, progress, stop), info.speaks)
    exit_code: int | None = replica.agree_in_world(early)
    if exit_code is None:
        exit_code = _work(config, replica, prepared, stop, progress, stopwatch)
    replica.close()
    return exit_code


def _finish_early(prepared: Prepared | None, progress: Progress, stop: StopFlag) -> int | None:
    """If every shard is final, or a stop was requested, say so without loading a model, and return the exit code.

    One process of a launch does this for all: it reads the footers of all parts.
    """
    if prepared is None or not (prepared.is_done or stop()):
        return None
    if not prepared.is_done:
        progress.note(f"stopped on {stop.signal_name} before the model was loaded; run the same command again")
        return EXIT_STOPPED
    totals = conclude(prepared)
    progress.note(f"all {totals.num_rows:,} rows are done already, {totals.num_errors:,} with an error")
    return exit_code_of(totals, prepared)


def _work(
    config: RunConfig,
    replica: Replica,
    prepared: Prepared | None,
    stop: StopFlag,
    progress: Progress,
    stopwatch: Stopwatch,
) -> int:
    """Load the model, then lead or follow until there is nothing left to do."""
    with stopwatch.measure("load"):
        engine = _build_engine(config, replica, prepared, stop, progress)
    if prepared is None:
        return engine.follow()
    runner = Runner(prepared, engine, stop, progress, stopwatch, replica.launch_id, replica.info.num_replicas)
    return _lead(runner, engine, stop, progress)


def _prepare_in_turn(config: RunConfig, replica: Replica) -> Prepared | None:
    """Let rank 0 check everything first, so that a mistake is told once; then the other leaders. None on followers."""
    is_first, is_leader = replica.info.speaks, replica.info.is_leader
    first = _attempt(replica, lambda: prepare(config, replica.device), is_first)
    return _attempt(replica, lambda: prepare(config, replica.device), is_leader and not is_first) or first


def _attempt(replica: Replica, work: Callable[[], Result], is_my_turn: bool) -> Result | None:
    """Do what may fail, if it is this process's turn, while all others of the launch wait to hear whether it did.

    Raises:
        JobError: it has failed here, or elsewhere.
    """
    result, failure = None, None
    if is_my_turn:
        try:
            result = work()
        except JobError as error:
            failure = error
    replica.check_world(failure)
    return result


def _build_engine(
    config: RunConfig, replica: Replica, prepared: Prepared | None, stop: StopFlag, progress: Progress
) -> Engine:
    """Build the engine that was asked for, its model being loaded on every process of the launch at the same time."""
    if prepared is not None:
        _announce(prepared, replica, progress)
    kind = ENGINES[config.engine.engine]
    model = _load(config, replica, prepared) if kind.needs_model else None
    return kind.build(model, config.engine, replica, should_stop=stop, note=progress.note)


def _load(config: RunConfig, replica: Replica, prepared: Prepared | None) -> LoadedModel:
    model_info = prepared.model_info if prepared else _inspect_as_follower(config, replica)
    stop_token_ids = replica.command(prepared.stop_token_ids if prepared else None)
    return load_model(config.model, model_info, replica, stop_token_ids)


def _inspect_as_follower(config: RunConfig, replica: Replica) -> ModelInfo:
    return inspect_model(config.model, replica.device, config.engine.tensor_parallel_size)


def _announce(prepared: Prepared, replica: Replica, progress: Progress) -> None:
    info, plan = replica.info, prepared.plan
    if prepared.model_info.dtype_note and prepared.config.engine.needs_model:
        progress.note(prepared.model_info.dtype_note)
    for note in prepared.notes:
        progress.note(note)
    shards = "1 shard" if plan.num_shards == 1 else f"{plan.num_shards:,} shards"
    replicas = "1 replica" if info.num_replicas == 1 else f"{info.num_replicas} replicas"
    processes = "1 process" if info.tensor_parallel_size == 1 else f"{info.tensor_parallel_size} processes"
    samples = "" if plan.num_samples == 1 else f" with {plan.num_samples} samples each"
    progress.note(
        f"{plan.num_rows:,} rows{samples} in {shards}, {len(prepared.paths.done_shards()):,} done; "
        f"loading {prepared.config.model.model} in {prepared.model_info.dtype} on {replica.device.type}, "
        f"{replicas} of {processes}"
    )


def _lead(runner: Runner, engine: Engine, stop: StopFlag, progress: Progress) -> int:
    exit_code = runner.run()
    engine.close(exit_code)
    if exit_code == EXIT_STOPPED:
        progress.note(
            f"stopped on {stop.signal_name}; what is finished is safe, run the same command again to continue"
        )
    if exit_code in (EXIT_DONE, EXIT_TOO_MANY_ERRORS):
        progress.finish(runner.summary())
    return exit_code

"""One process of a launch, from start to end: join the others, prepare, load, then lead or follow."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from job.config import RunConfig
from job.engine.model.info import inspect_model
from job.engine.model.loading import LoadedModel
from job.engine.model.logit_hooks import disturb
from job.engine.registry import ENGINES
from job.errors import JobError
from job.launch.activity import doing, telling_what_takes_long
from job.launch.environment import read_process_info, told_once
from job.launch.parents import launchers_above, watch
from job.launch.replica import Replica
from job.launch.stop import StopFlag
from job.observe.progress import Progress
from job.observe.stopwatch import Stopwatch
from job.observe.watchdog import Heartbeat
from job.remote.model_files import ModelFiles
from job.remote.patience import set_patience
from job.run.announcement import announce
from job.run.conclusion import finish_early
from job.run.devices import Devices
from job.run.ending import Ending
from job.run.examination import Examined
from job.run.held import Held
from job.run.leading import lead, lead_without_model
from job.run.live import Live, run_of
from job.run.model import free_memory, load_in_range
from job.run.pinned import based
from job.run.preparation import Prepared, prepare, settle
from job.run.runner import Runner

Result = TypeVar("Result")


def launch(
    config: RunConfig, stop: StopFlag, *, progress_of: Callable[[bool], Progress], typed: Sequence[str] = ("run", "...")
) -> int:
    """Run this process's part of ``job run``.

    Args:
        stop: asks it to stop.
        progress_of: returns how progress is shown, given whether this process is the one of the launch that does.
        typed: what the user typed after ``job``, for the command that a message proposes.

    Returns:
        The exit code.

    Raises:
        JobError: the run cannot start or continue; the error has the exit code.
    """
    note = progress_of(True).note
    with contextlib.closing(Live()) as live, Ending(config, stop, note) as ending:
        process = Process(config, stop, note, typed, live, ending)
        ending.exit_code = process.run(config, progress_of(process.speaks))
        process.close()
    return ending.exit_code


class Process:
    """A process of a launch. It works on one run after the other, and keeps the model that it has loaded."""

    def __init__(
        self,
        config: RunConfig,
        stop: StopFlag,
        note: Callable[[str], None] = lambda text: None,
        typed: Sequence[str] = ("run", "..."),
        live: Live | None = None,
        ending: Ending | None = None,
    ) -> None:
        """Join the others of the launch.

        Args:
            config: of the first run. The device and the number of processes of a model are the same for all.
            note: prints a line for the user, also where this process does not speak for the launch.
            typed: see ``launch``.
            live: shows others what this process does.
            ending: is told what it has done.

        Raises:
            JobError: the processes cannot find each other.
        """
        watch(launchers_above(os.getpid()), lambda: stop.request("the end of its launcher"))
        set_patience(config.engine.hub_timeout, stop.wait)
        self._stop, self._stopwatch = stop, Stopwatch()
        with told_once(os.environ):
            info = read_process_info(os.environ, config.engine.tensor_parallel_size, typed)
            self._replica = Replica(info, stop, note, config.engine.device)
        self._held: Held | None = None
        self._live, self._ending = live or Live(), ending
        if ending is not None:
            ending.joined(self._replica)
        if info.is_leader:
            self._live.open(config.launch, info.local_rank // info.tensor_parallel_size, note)

    @property
    def speaks(self) -> bool:
        """Whether this process is the one of the launch that shows progress."""
        return self._replica.info.speaks

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._replica.device

    def run(
        self, config: RunConfig, progress: Progress, check: Callable[[Examined], None] = lambda examined: None
    ) -> int:
        """Work on a run until it is done, or until asked to stop. Every process of the launch must call this.

        Args:
            check: refuses the run for reasons of its own, before its directory is claimed. One process calls it.

        Returns:
            The exit code.

        Raises:
            JobError: the run cannot start or continue; the error has the exit code.
        """
        replica, stopwatch = self._replica, self._stopwatch
        self._live.enter("preparing", run=run_of(config.output.output))
        with stopwatch.measure("prepare"), telling_what_takes_long(progress.note):
            prepared, files = _prepare_in_turn(config, replica, check)
        config = based(config, files)
        early = _attempt(replica, lambda: self._end_early(prepared, progress), self.speaks)
        exit_code: int | None = replica.agree_in_world(early)
        if exit_code is None:
            exit_code = self._work(config, files, prepared, progress)
        self._stopwatch = Stopwatch()
        return exit_code

    def _end_early(self, prepared: Prepared | None, progress: Progress) -> int | None:
        """End the run if nothing is left to compute, and return the exit code."""
        assert prepared is not None
        launch_id = self._replica.launch_id
        exit_code = finish_early(prepared, progress, launch_id)
        if exit_code is None:
            add = self._ending.add if self._ending is not None else lambda workers: None
            exit_code = lead_without_model(prepared, self._stop, progress, self._stopwatch, launch_id, self._live, add)
        return exit_code

    def _work(self, config: RunConfig, files: ModelFiles, prepared: Prepared | None, progress: Progress) -> int:
        """Load the model, unless it is there already, then lead or follow until there is nothing left to do."""
        replica, stop, stopwatch = self._replica, self._stop, self._stopwatch
        self._live.enter("loading")
        with stopwatch.measure("load"), telling_what_takes_long(progress.note):
            fits = self._held is not None and self._held.fits(config, files, prepared)
            is_kept = bool(replica.agree_in_world(fits))
            if prepared is not None:
                announce(prepared, replica, progress, is_kept=is_kept)
            if not is_kept:
                self.release()
                self._held = _load(config, files, replica, prepared, stop, progress)
            held = self._held
            assert held is not None
            prepared = _settle_in_turn(replica, prepared, held.dtype)
        doing("waiting for the other processes of this launch")
        replica.check_world(None)  # no process of a replica may end immediately while the others work
        stop.begin_work()
        if prepared is None:
            return held.engine.follow()
        launch_id, num_replicas = replica.launch_id, replica.info.num_replicas
        devices = Devices.of(replica.device, replica.info.tensor_parallel_size)
        self._live.enter("computing", worker=str(prepared.worker))
        runner = Runner(
            prepared,
            held.engine,
            stop,
            held.heartbeat,
            progress,
            stopwatch,
            launch_id,
            num_replicas,
            devices,
            self._live,
        )
        try:
            return lead(runner, held.engine, stop, progress)
        finally:
            self._live.enter("ended")
            if self._ending is not None:
                self._ending.add(runner.of_launch())

    def release(self) -> None:
        """Give back the memory of the model."""
        if self._held is not None:
            self._held = None
            free_memory()

    def close(self) -> None:
        """Leave the launch."""
        self._replica.close()


def _prepare_in_turn(
    config: RunConfig, replica: Replica, check: Callable[[Examined], None]
) -> tuple[Prepared | None, ModelFiles]:
    """Prepare on rank 0 first, then on the other leaders.

    Rank 0 alone looks up branches of the Hub, which may move at any moment, and all processes read those commits.

    Returns:
        What a leader needs (None on followers), and where the model is.
    """
    is_first, is_leader = replica.info.speaks, replica.info.is_leader
    first = _attempt(replica, lambda: prepare(config, replica.device, check=check), is_first)
    found = None if first is None else (first.model_info.files, first.dataset.commit)
    files, commit = replica.agree_in_world(found)
    if commit is not None:
        config = replace(config, data=replace(config.data, dataset_revision=commit))
    other = _attempt(replica, lambda: prepare(config, replica.device, files), is_leader and not is_first)
    return first or other, files


def _in_turn(replica: Replica, work: Callable[[], Prepared]) -> Prepared | None:
    """Run ``work`` on rank 0 first, so that an error is reported once; then on the other leaders. None on followers."""
    is_first, is_leader = replica.info.speaks, replica.info.is_leader
    first = _attempt(replica, work, is_first)
    return _attempt(replica, work, is_leader and not is_first) or first


def _settle_in_turn(replica: Replica, prepared: Prepared | None, dtype: str | None) -> Prepared | None:
    """Claim the run directory for the dtype that the model runs in."""

    def work() -> Prepared:
        assert prepared is not None
        return settle(prepared, dtype or prepared.model_info.dtype, replica.device)

    return _in_turn(replica, work)


def _attempt(replica: Replica, work: Callable[[], Result], is_my_turn: bool) -> Result | None:
    """Run ``work`` if it is this process's turn, while the others of the launch wait to hear whether it failed.

    Raises:
        JobError: it failed, here or on another process.
    """
    result, failure = None, None
    if is_my_turn:
        try:
            result = work()
        except JobError as error:
            failure = error
    replica.check_world(failure)
    return result


def _load(
    config: RunConfig,
    files: ModelFiles,
    replica: Replica,
    prepared: Prepared | None,
    stop: StopFlag,
    progress: Progress,
) -> Held:
    """Load the model and build its engine, on every process of the launch at the same time."""
    heartbeat = Heartbeat(stop)
    model = _load_model(config, files, replica, prepared, progress) if config.engine.needs_model else None
    doing("building the engine")
    disturb(model, None if prepared is None else str(prepared.worker))
    kind = ENGINES[config.engine.engine]
    engine = kind.build(model, config.engine, replica, should_stop=heartbeat.beat, note=progress.note)
    return Held.of(config, files, prepared, model, engine, heartbeat)


def _load_model(
    config: RunConfig, files: ModelFiles, replica: Replica, prepared: Prepared | None, progress: Progress
) -> LoadedModel:
    """Load the model in rank 0's dtype."""
    size = replica.info.tensor_parallel_size
    inspected = _attempt(replica, lambda: inspect_model(config.model, files, replica.device, size), prepared is None)
    own = prepared.model_info if prepared else inspected
    assert own is not None
    stop_token_ids = replica.command(prepared.tokenizer.stop_token_ids if prepared else None)
    fallback_dtype = None if prepared is None or prepared.is_claimed else own.fallback_dtype
    is_restart = prepared is not None and prepared.is_restart
    dtype, fallback_dtype, is_restart = replica.agree_in_world((own.dtype, fallback_dtype, is_restart))
    info = own.in_dtype(dtype, fallback_dtype)
    return load_in_range(config, info, replica, stop_token_ids, is_restart=is_restart, note=progress.note)

"""A chain: several runs over one dataset, one after the other, each with the rows of an earlier one as its dataset.

Every step is a run directory of its own, and nothing else is recorded: a restart finds the finished steps finished, and
goes on with the first that is not. The model stays loaded from step to step where it is the same.
"""

import contextlib
from collections.abc import Callable, Sequence

from job.config import RunConfig
from job.errors import EXIT_DONE, EXIT_STOPPED
from job.launch.stop import StopFlag
from job.observe.progress import Progress
from job.run.chain_check import look_ahead
from job.run.chain_step import Step, of_changed_step, of_step
from job.run.ending import Ending
from job.run.examination import Examined
from job.run.live import Live
from job.run.process import Process


def launch_chain(
    steps: Sequence[Step], stop: StopFlag, *, progress_of: Callable[[RunConfig, bool], Progress], typed: Sequence[str]
) -> int:
    """Run this process's part of all steps, until one is not done.

    Args:
        stop: asks it to stop.
        progress_of: returns how the progress of a step is shown, given whether this process is the one that does.
        typed: what the user typed after ``job``.

    Returns:
        The exit code of the last step that was worked on.

    Raises:
        JobError: a step cannot start or continue; the error has its name and the exit code.
    """
    note = progress_of(steps[0].config, True).note
    with contextlib.closing(Live()) as live, Ending(steps[0].config, stop, note) as ending:
        process = Process(steps[0].config, stop, note, typed, live, ending)
        ending.exit_code = _run_steps(process, steps, stop, progress_of, ending)
        process.close()
    return ending.exit_code


def _run_steps(
    process: Process,
    steps: Sequence[Step],
    stop: StopFlag,
    progress_of: Callable[[RunConfig, bool], Progress],
    ending: Ending,
) -> int:
    exit_code = EXIT_DONE
    for idx, step in enumerate(steps):
        progress = progress_of(step.config, process.speaks)
        ending.begins(step.config, step.name)
        if stop():
            exit_code = EXIT_STOPPED
            progress.note(f"stopped on {stop.signal_name}; run the same command again to continue")
            break
        progress.note(f"step {idx + 1} of {len(steps)}: {step.name}")
        with of_step(step.name), of_changed_step(step, steps[idx:]):
            exit_code = process.run(step.config, progress, _check_of(steps[idx:], process))
        stop.end_work()
        if exit_code != EXIT_DONE:
            if exit_code != EXIT_STOPPED and step is not steps[-1]:
                progress.note(f"the chain ends with step {step.name}, because of its exit code {exit_code}")
            break
    return exit_code


def _check_of(steps: Sequence[Step], process: Process) -> Callable[[Examined], None]:
    """Return what checks the later steps before the first of these is worked on."""

    def check(examined: Examined) -> None:
        for _ in look_ahead(examined, steps, process.device):
            pass

    return check

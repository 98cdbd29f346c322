"""The lines that say what a launch is about to do, before it loads the model."""

from job.launch.replica import Replica
from job.observe.progress import Progress
from job.observe.text import number
from job.run.preparation import Prepared

READ_SECS = 5.0
"""How long counting what is finished of a run may delay its restart."""


def announce(prepared: Prepared, replica: Replica, progress: Progress, *, is_kept: bool) -> None:
    """Print them.

    Args:
        is_kept: whether the model is loaded already, for an earlier run of this process.
    """
    if not progress.is_enabled:
        return
    info, plan = replica.info, prepared.plan
    progress.note(prepared.dataset.describe(prepared.config.data.limit))
    if prepared.model_info.dtype_note and prepared.config.engine.needs_model:
        progress.note(prepared.model_info.dtype_note)
    for note in prepared.notes:
        progress.note(note)
    samples = "" if plan.num_samples == 1 else f" with {plan.num_samples} samples each"
    finished = prepared.finished
    finished.look(budget_secs=READ_SECS)
    at_least = "at least " if finished.is_partial else ""
    num_done = finished.num_rows() - prepared.counts.num_rows
    done = f"{at_least}{num_done:,} of {plan.num_completions:,} {plan.unit} already done"
    progress.note(
        f"{number(plan.num_rows, 'row')}{samples} in {number(plan.num_shards, 'shard')}, {done}; "
        f"{'keeping' if is_kept else 'loading'} {prepared.config.model.model} in {prepared.model_info.dtype} "
        f"on {replica.device.type}, "
        f"{number(info.num_replicas, 'replica')} of {number(info.tensor_parallel_size, 'process')}"
    )

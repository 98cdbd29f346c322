"""Whether a run can be computed in the order, and be stopped where, the options say. Notes where they do nothing."""

from collections.abc import Iterator

from job.config import LaunchConfig
from job.data.source import Source
from job.errors import UsageError
from job.output.parts.plan import Plan

MAX_SHARDS = 1000
"""In random order, each worker has a journal of each shard."""


def check_order(config: LaunchConfig, source: Source, plan: Plan, *, has_copies: bool) -> Iterator[str]:
    """Yield notes.

    Args:
        has_copies: whether rows of other runs are copied.

    Raises:
        UsageError: rows cannot be read in random order, or have too many shards for it.
    """
    if config.is_random and has_copies:
        raise UsageError(
            "--order random does not go with --reuse: copied rows would not be in the sample. Leave out --order."
        )
    if config.is_random and source.is_remote:
        raise UsageError(
            "--order random reads rows at random places, each of which would fetch a part of a remote file. Leave out "
            "--streaming, so that the files are fetched first."
        )
    if config.is_random and plan.num_shards > MAX_SHARDS:
        least = -(-plan.num_rows // MAX_SHARDS)
        raise UsageError(
            f"--order random has a journal for each shard, of which there are {plan.num_shards:,}; at most "
            f"{MAX_SHARDS:,} are possible. Use --rows-per-shard {least} or more in a new --output."
        )
    bound = config.stop_bound
    if bound is not None and bound.rows is not None and bound.rows >= plan.num_rows:
        yield f"--stop-after {bound.text} has no effect: the run has {plan.num_rows:,} rows"

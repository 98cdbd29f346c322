"""Builds the engine for a loaded model: the paged one if it supports the model, else the static one, with a note."""

from collections.abc import Callable
from dataclasses import replace

from job.config import EngineConfig
from job.engine.duplicates import SharedCompletions
from job.engine.model.experts import one_after_the_other
from job.engine.model.loading import LoadedModel
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.engine.protocol import Engine
from job.engine.reasoned_scores import ReasonedScores
from job.engine.static.engine import StaticEngine
from job.errors import JobError
from job.launch.replica import Replica

ONE_AT_A_TIME = ("hrm_text", "xlstm")
"""Model types whose tokens were wrong in batches of rows of different lengths, and right one by one (transformers
5.23; ``scripts/bench architectures``).
"""


def build_paged(
    model: LoadedModel,
    config: EngineConfig,
    replica: Replica,
    *,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> Engine:
    """Build the paged engine, or the static one if it cannot serve the model. All ranks of a replica do this together.

    Args:
        should_stop: see the engines.
        note: prints a line for the user.
    """
    reads_ahead = model.head is not None and model.head.reads_ahead
    shapes, reason = ({}, "its tokens see those after them") if reads_ahead else check_support(model, replica)
    is_static = reads_ahead or model.decoder is not None  # then there is nothing faster
    if reason is not None:
        model_type = model.module.config.model_type
        if model.cache_dtype not in (None, model.dtype):
            raise JobError(
                f"--kv-cache-dtype fp8 needs the paged engine, which cannot serve model type {model_type!r}: {reason}. "
                "Leave it out, with a new --output."
            )
        if not is_static:
            note(f"model type {model_type!r} is served by static batches, which are slower: {reason}")
        return build_static(model, config, replica, should_stop=should_stop, note=note)
    engine = PagedEngine(model, shapes, config, replica, should_stop)
    if engine.no_kernel is not None:
        note(f"attention runs in plain torch operations, which are slower: {engine.no_kernel}")
    if engine.fused is not None:
        note(f"fused: {engine.fused}")
    if engine.smaller_steps is not None:
        note(f"steps have at most {engine.scheduler.max_tokens:,} tokens: {engine.smaller_steps}")
    if engine.no_graphs is not None:
        reason = one_after_the_other(model.module.config, model.dtype, replica.device) or engine.no_graphs
        note(f"decode steps are launched kernel by kernel, which is slower: {reason}")
    return SharedCompletions(ReasonedScores(engine))


def build_static(
    model: LoadedModel,
    config: EngineConfig,
    replica: Replica,
    *,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> Engine:
    """Build the static engine; see ``build_paged``."""
    model_type = model.module.config.model_type
    if model_type in ONE_AT_A_TIME and config.max_batch_rows != 1:
        note(f"model type {model_type!r} is computed row by row, which is slow: it reads the padding of a batch")
        config = replace(config, max_batch_rows=1)
    return SharedCompletions(ReasonedScores(StaticEngine(model, config, replica, should_stop)))

"""Loads the model of a run in a dtype that it does not overflow.

On CUDA, ``auto`` is float16, which some models overflow. A new run then changes to the dtype of the checkpoint before
its manifest is written. Restarts find that dtype in the manifest.
"""

import gc
from collections.abc import Callable, Sequence

import torch

from job.config import RunConfig
from job.engine.model.info import ModelInfo
from job.engine.model.loading import LoadedModel, load_model
from job.engine.model.overflow import find_overflow
from job.errors import EXIT_USAGE, PeerFailed, UsageError
from job.launch.replica import Replica


def load_in_range(
    config: RunConfig,
    info: ModelInfo,
    replica: Replica,
    stop_token_ids: Sequence[int],
    *,
    is_restart: bool,
    note: Callable[[str], None],
) -> LoadedModel:
    """Load a model and test it. Every process of the launch must call this at the same time, with the same arguments.

    Args:
        info: its ``fallback_dtype`` is None if the run has already started in its dtype.
        is_restart: whether the run existed before: rows that were finished show that its dtype can work.
        note: prints a note for the user.

    Raises:
        UsageError: it overflows its dtype and may not use another. Raised on one process; the others only exit.
        JobError: it cannot be loaded.
    """
    model = load_model(config.model, info, replica, stop_token_ids, verbose=config.verbose)
    found = replica.gather_in_world(find_overflow(model, replica))
    overflow = next((text for text in found if text is not None), None)
    if overflow is None:
        for text in model.notes:
            note(text)
        return model
    if is_restart:
        note(f"in {info.dtype}, {overflow} not finite for a short text: rows may end with the error non_finite_logits")
        return model
    fallback_dtype = info.fallback_dtype
    if fallback_dtype is None:
        raise UsageError(_refusal(config, info, overflow)) if replica.info.speaks else PeerFailed(EXIT_USAGE)
    del model  # first: the device may have no room for two
    free_memory()
    note(f"in {info.dtype}, {overflow} not finite: loading the model in {fallback_dtype}, the dtype of its checkpoint")
    info = info.in_dtype(fallback_dtype)
    return load_in_range(config, info, replica, stop_token_ids, is_restart=is_restart, note=note)


def free_memory() -> None:
    """Give back the memory of a model that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _refusal(config: RunConfig, info: ModelInfo, overflow: str) -> str:
    problem = f"--model {config.model.model} overflows in {info.dtype}: {overflow} not finite"
    if info.dtype == "float16":
        return f"{problem}. Use --dtype bfloat16 or float32; a run that was started in float16 needs a new --output."
    return f"{problem}. Are its weights damaged? Copy them again, or try --dtype float32 and a new --output."

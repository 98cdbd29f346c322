"""What a failed step means: too little memory, a row that the model cannot take, or a device that is broken."""

import re
import traceback

import torch

from job.errors import JobError, first_line
from job.records import Generation, Request, RowError

OUT_OF_MEMORY = "out of memory"
"""What a rank reports when a batch did not fit."""

_MEMORY = re.compile(
    r"\[enforce fail at .*DefaultCPUAllocator: (can't allocate|not enough) memory|CUDA out of memory"
    r"|CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
)
_DEVICE = re.compile(r"CUDA error: |cuDNN error: ")
"""How torch begins the messages of errors for which it has no class but ``RuntimeError``."""


class OutOfMemory(Exception):
    """The batch did not fit; a smaller one may. All ranks agree."""


class BatchFailed(Exception):
    """The batch raised, on all ranks or on the leader between two tokens. The engine is intact."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _says(_MEMORY, error)


def is_broken_device(error: Exception) -> bool:
    """Whether nothing that the device computes can be trusted any more."""
    return isinstance(error, torch.AcceleratorError) or _says(_DEVICE, error)


def is_broken_connection(error: Exception) -> bool:
    """Whether a collective failed. gloo's errors have no class of their own, so it counts where one was raised."""
    if isinstance(error, torch.distributed.DistError):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    return isinstance(error, RuntimeError) and any(f"{module}.".startswith("torch.distributed.") for module in modules)


def _says(beginning: re.Pattern[str], error: Exception) -> bool:
    """Whether torch says so. Only in an error of exactly this class, and only at its beginning: the rest of a text, and
    errors of others, may quote a row.
    """
    return type(error) is RuntimeError and beginning.match(first_line(error)) is not None


def describe_failure(error: Exception) -> str:
    """Return what failed, in one line; ``OUT_OF_MEMORY`` if it was that.

    Raises:
        JobError: a device or a connection broke. Nothing after it can be trusted, and no row is to blame.
    """
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    text = first_line(error)
    if is_broken_device(error):
        raise JobError(f"The device failed: {text}. The same command continues, on this device or another.") from error
    if is_broken_connection(error):
        raise JobError(
            f"The connection to another process of this replica broke: {text}. Its own message says why; "
            "the same command continues."
        ) from error
    return f"{type(error).__name__}: {text}"


def failed(request: Request, kind: str, detail: str) -> Generation:
    """Return what becomes of a request that cannot be completed."""
    error = RowError(kind, f"{len(request.prompt_ids)} prompt tokens: {detail}")
    return Generation(request=request, token_ids=[], finish_reason=None, error=error)


def not_finite(dtype: torch.dtype) -> str:
    """Return the detail of a row whose logits overflowed."""
    return f"in {dtype}; --dtype bfloat16 or float32 has more range"

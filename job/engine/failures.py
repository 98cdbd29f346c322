"""What a failed step means: too little memory, a row that the model fails on, or a broken device."""

import re
import traceback

import torch

from job.errors import JobError, first_line
from job.records import Generation, Request, RowError

OUT_OF_MEMORY = "out of memory"
"""What a rank reports when a batch did not fit into memory."""

_MEMORY = re.compile(
    r"\[enforce fail at .*DefaultCPUAllocator: (can't allocate|not enough) memory|CUDA out of memory"
    r"|CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
)
_DEVICE = re.compile(r"CUDA error: |cuDNN error: ")
"""How torch begins the messages of device errors that it raises as a plain ``RuntimeError``."""


class OutOfMemory(Exception):
    """The batch did not fit into memory; a smaller one may. All ranks agree."""


class BatchFailed(Exception):
    """The batch raised an exception, on all ranks or on the leader between two tokens. The engine is intact."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _says(_MEMORY, error)


def is_broken_device(error: Exception) -> bool:
    """Whether the device's results can no longer be trusted."""
    return isinstance(error, torch.AcceleratorError) or _says(_DEVICE, error)


def is_broken_connection(error: Exception) -> bool:
    """Whether a collective failed. gloo's errors have no class of their own; where they were raised identifies them."""
    if isinstance(error, torch.distributed.DistError):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    return isinstance(error, RuntimeError) and any(f"{module}.".startswith("torch.distributed.") for module in modules)


def _says(beginning: re.Pattern[str], error: Exception) -> bool:
    """Whether torch itself says so. Only a plain ``RuntimeError`` counts, and only the beginning of its message: the
    rest of it, and the errors of other libraries, may quote a row.
    """
    return type(error) is RuntimeError and beginning.match(first_line(error)) is not None


def describe_failure(error: Exception) -> str:
    """Describe a failure in one line; ``OUT_OF_MEMORY`` if memory ran out.

    Raises:
        JobError: a device or a connection is broken. No later result can be trusted, and no row is to blame.
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
    """Return the error row of a request that cannot be completed."""
    error = RowError(kind, f"{len(request.prompt_ids)} prompt tokens: {detail}")
    return Generation(request=request, token_ids=[], finish_reason=None, error=error)


def not_finite(dtype: torch.dtype) -> str:
    """Return the error detail of a row whose logits overflowed."""
    return f"its logits are not finite in {dtype}; --dtype bfloat16 or float32 has a larger range"

"""What a failed step means: too little memory, a row that the model cannot take, or a device that is broken."""

import torch

from job.errors import JobError, first_line
from job.records import Generation, Request, RowError

OUT_OF_MEMORY = "out of memory"
"""What a rank reports when a batch did not fit."""

_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_CONNECTION_WORDS = ("Connection", "gloo", "NCCL", "Timed out")


class OutOfMemory(Exception):
    """The batch did not fit; a smaller one may. All ranks agree."""


class BatchFailed(Exception):
    """The batch raised, on all ranks or on the leader between two tokens. The engine is intact."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch's CPU allocator and cuBLAS have no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in first_line(error) for word in _MEMORY_WORDS)


def describe_failure(error: Exception) -> str:
    """Return what failed, in one line; ``OUT_OF_MEMORY`` if it was that.

    Raises:
        JobError: a device or a connection broke. Nothing after it can be trusted, and no row is to blame.
    """
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    text = first_line(error)
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in text:
        raise JobError(f"The device failed: {text}. The same command continues, on this device or another.") from error
    if isinstance(error, torch.distributed.DistError) or any(word in text for word in _CONNECTION_WORDS):
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

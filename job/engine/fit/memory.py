"""What a run needs of each GPU's memory, and the least time that it takes: a model of the engine, never a measurement.

Shares and limits are the engine's own (``paged.budget``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from job.config import EngineConfig
from job.engine.fit.gpus import Gpu
from job.engine.fit.shape import ModelShape
from job.engine.model.kv_size import kv_bytes_per_token
from job.engine.model.precision import Precision
from job.engine.model.tensor_parallel import check_tensor_parallel
from job.engine.paged.budget import cpu_cache_bytes, cuda_cache_bytes, logits_bytes, row_limits
from job.errors import UsageError

SIZES = (1, 2, 4, 8, 16)
"""Tensor-parallel sizes that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory that a process may use."""

    name: str
    num_bytes: int
    is_gpu: bool
    gpu: Gpu | None = None
    """None: its speed is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the process of a replica that needs the most memory needs, in bytes."""

    tensor_parallel_size: int
    weight_bytes: int
    logits_bytes: int
    """While tokens are chosen."""
    activation_bytes: int
    """Of the longest step, roughly."""
    cache_bytes: int
    """What is left for keys and values; 0 if not even the rest fits."""
    bytes_per_token: int
    """Of keys and values."""
    max_rows: int
    spare_bytes: int
    """What is left when everything has its memory; below 0 if it does not fit."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the KV cache of a replica holds."""
        return self.cache_bytes // self.bytes_per_token

    def fits(self, row_tokens: int) -> bool:
        """Whether a row of this length can be computed."""
        return self.spare_bytes >= 0 and self.num_tokens >= row_tokens

    def num_rows(self, row_tokens: int) -> int:
        """Return how many rows of this length are computed at once."""
        return min(self.max_rows, self.num_tokens // max(1, row_tokens))


def fit(
    config: Any,
    shape: ModelShape,
    precision: Precision,
    room: Room,
    engine: EngineConfig,
    size: int,
) -> Fit | None:
    """Return what a run needs at a tensor-parallel size.

    Args:
        config: transformers' configuration.
        engine: the limits that the user has set.

    Returns:
        None if the model cannot be cut into so many parts, or its sizes are unknown.
    """
    try:
        check_tensor_parallel(config, size)
    except UsageError:
        return None
    token_bytes = kv_bytes_per_token(config, precision.stored_dtype, size)
    if not token_bytes:
        return None
    max_rows, max_tokens = row_limits(engine, on_cuda=room.is_gpu)
    weights = shape.bytes_of_process(size, precision)
    num_processes = 1 if room.is_gpu else size  # a machine's memory is that of all its processes
    free, logits = room.num_bytes - weights * num_processes, logits_bytes(max_rows, shape.vocab_size)
    activations = max_tokens * (4 * shape.hidden_size + 3 * shape.intermediate_size // size) * precision.itemsize
    if room.is_gpu:
        if precision.quantization is not None:  # the experts of a layer are dequantized while it is computed
            activations += shape.layer_experts_params // size * precision.itemsize
        cache = most = cuda_cache_bytes(free, activations, logits, records=engine.records_steps(is_sharded=size > 1))
    else:
        cache, most = cpu_cache_bytes(free, num_processes), free // num_processes - logits - activations
    cache = max(0, cache) if engine.kv_cache_memory is None else engine.kv_cache_memory
    return Fit(
        tensor_parallel_size=size,
        weight_bytes=weights,
        logits_bytes=logits,
        activation_bytes=activations,
        cache_bytes=cache,
        bytes_per_token=token_bytes,
        max_rows=max_rows,
        spare_bytes=most - cache,
    )


def fits_from(
    config: Any,
    shape: ModelShape,
    precision: Precision,
    room: Room,
    engine: EngineConfig,
    row_tokens: int,
) -> Iterator[Fit]:
    """Yield what a run needs at each size at which a row of this length fits, the smallest first."""
    for size in SIZES:
        found = fit(config, shape, precision, room, engine, size)
        if found is not None and found.fits(row_tokens):
            yield found


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The tokens of a whole run."""

    num_rows: int
    """Completions."""
    num_prompt_tokens: int
    """In all, without prefixes that are computed once."""
    num_new_tokens: int
    """The most in all."""

    @property
    def row_tokens(self) -> int:
        """The mean length of a row when it is finished."""
        return (self.num_prompt_tokens + self.num_new_tokens) // max(1, self.num_rows)


def least_secs(shape: ModelShape, precision: Precision, fitted: Fit, gpu: Gpu, work: Work) -> float:
    """Return a time that no engine can beat on one replica: what is read, and what is multiplied, at the data sheet's
    rates. It leaves out communication, scheduling, and everything else that takes time.
    """
    bandwidth, flops = gpu.bandwidth_gb_per_sec * 1e9, gpu.teraflops * 1e12
    flops_per_token = 2 * shape.multiplied_params(fitted.tensor_parallel_size)
    if precision.quantization == "fp8":  # products at twice the rate of 16 bits
        size = fitted.tensor_parallel_size
        flops_per_token -= max(0, shape.quantized_params(size) - shape.experts_params // size)
    num_at_once = max(1, min(work.num_rows, fitted.num_rows(work.row_tokens)))
    read_bytes = fitted.weight_bytes + num_at_once * work.row_tokens * fitted.bytes_per_token
    step_secs = max(read_bytes / bandwidth, num_at_once * flops_per_token / flops)
    return work.num_new_tokens / num_at_once * step_secs + work.num_prompt_tokens * flops_per_token / flops

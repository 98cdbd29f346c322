"""The host's side of the fused kernels: block shapes, launches as values, and functions of tensors.

Block shapes follow from the model's sizes alone, so that no kernel is compiled anew when a step has other tokens.

Letters: T tokens, C numbers of a row, H heads, D head size, R numbers that are rotated, B rows of logits, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch

from job.engine.paged.attention.interface import DelayedRotation
from job.engine.paged.cuda.kernels.gate import gate_kernel
from job.engine.paged.cuda.kernels.largest import largest_kernel
from job.engine.paged.cuda.kernels.norm import norm_kernel
from job.engine.paged.cuda.kernels.rotate import rotate_kernel
from job.engine.paged.cuda.kernels.rotate_and_store import rotate_and_store_kernel
from job.engine.paged.cuda.launches import Launch, Pool, padded, stored

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a norm applies its weight."""

    offset: float = 0.0
    """What is added to the weight."""
    is_wide: bool = False
    """Whether it is applied in float32, not in the dtype of the values."""


GATE_BLOCK, LARGEST_BLOCK = 1024, 4096


def add_and_norm(
    values: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    scaling: Scaling,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the RMSNorm of values [..., C] (plus residual) with a weight [C], and what was normalized."""
    if values.stride(-1) != 1 or sum(size > 1 for size in values.shape[:-1]) > 2:
        values = values.contiguous()
    output = values.new_empty(values.shape)
    summed = values if residual is None else values.new_empty(values.shape)
    if output.numel():
        norm_launch(output, summed, values, residual, weight, epsilon, scaling).run()
    return output, summed


def norm_launch(
    output: torch.Tensor,
    summed: torch.Tensor,
    values: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    scaling: Scaling,
) -> Launch:
    """Return the launch of ``add_and_norm``, for values of at most two dimensions of more than one row."""
    width = values.shape[-1]
    block = padded(width, 1)
    rows_each = max(1, 1024 // block)
    dims = [(size, values.stride(dim)) for dim, size in enumerate(values.shape[:-1]) if size > 1]
    (num_outer, outer_stride), (num_inner, inner_stride) = ([(1, 0), (1, 0), *dims])[-2:]
    num_rows = num_outer * num_inner
    arguments = {
        "output": output,
        "summed": summed,
        "values": values,
        "residual": values if residual is None else residual.contiguous(),
        "weight": weight,
        "num_rows": num_rows,
        "num_inner": num_inner,
        "outer_stride": outer_stride,
        "inner_stride": inner_stride,
        "epsilon": epsilon,
        "OFFSET": scaling.offset,
        "WIDE": scaling.is_wide,
        "RESIDUAL": residual is not None,
        "C": width,
        "C_PADDED": block,
        "ROWS": rows_each,
    }
    return Launch(norm_kernel, (-(-num_rows // rows_each),), arguments, _warps(rows_each * block))


def rotate(
    query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys [T, H, D] rotated by angles [T, R]: two dense tensors.

    Not in place, which would save no bytes unless R is less than D: a model may look at unrotated keys again.
    """
    new_query, new_key = query.new_empty(query.shape), key.new_empty(key.shape)
    if len(query):
        rotate_launch(new_query, new_key, query, key, cosines, sines).run()
    return new_query, new_key


def rotate_launch(
    new_query: torch.Tensor,
    new_key: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> Launch:
    """Return the launch of ``rotate``; the last dimension of all tensors is dense."""
    arguments = {"new_query": new_query, "new_key": new_key, **_rotation(query, key, cosines, sines)}
    return _rotation_launch(rotate_kernel, arguments, len(query))


def rotate_and_store(pool: Pool, rotation: DelayedRotation, value: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the rotated queries [T, H * G, D]; store the rotated keys, and values [T, H, V], at ``places`` [T]."""
    new_query = rotation.query.new_empty(rotation.query.shape)
    if len(new_query):
        rotate_and_store_launch(new_query, pool, rotation, value, places).run()
    return new_query


def rotate_and_store_launch(
    new_query: torch.Tensor, pool: Pool, rotation: DelayedRotation, value: torch.Tensor, places: torch.Tensor
) -> Launch:
    """Return the launch of ``rotate_and_store``; the last dimension of all tensors is dense."""
    arguments = {
        "new_query": new_query,
        **stored(pool, rotation.key, value, places),
        **_rotation(rotation.query, rotation.key, rotation.cosines, rotation.sines),
        "KEYS_PADDED": padded(pool.num_heads, 1),
    }
    return _rotation_launch(rotate_and_store_kernel, arguments, len(new_query), num_more=1)


def _rotation(query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of both kernels that rotate."""
    _, num_queries, size = query.shape
    num_keys, half = key.shape[1], cosines.shape[-1] // 2
    return {
        "query": query,
        "key": key,
        "cosines": cosines,
        "sines": sines,
        "query_token_stride": query.stride(0),
        "query_head_stride": query.stride(1),
        "key_token_stride": key.stride(0),
        "key_head_stride": key.stride(1),
        "cosine_stride": cosines.stride(0),
        "sine_stride": sines.stride(0),
        "QUERIES": num_queries,
        "KEYS": num_keys,
        "D": size,
        "HALF": half,
        "HALF_PADDED": padded(half, 1),
        "REST": size - 2 * half,
        "REST_PADDED": padded(max(1, size - 2 * half), 1),
        "HEADS": min(8, padded(num_queries + num_keys, 1)),
    }


def _rotation_launch(kernel: Any, arguments: dict[str, Any], num_tokens: int, num_more: int = 0) -> Launch:
    num_blocks = -(-(arguments["QUERIES"] + arguments["KEYS"]) // arguments["HEADS"])
    # With 1,024 angles on two warps, the compiler has to spill registers.
    options = {"num_warps": 2 if arguments["HALF_PADDED"] <= 64 else 4}
    return Launch(kernel, (num_tokens, num_blocks + num_more), arguments, options)


def gate(both: torch.Tensor, activation: str) -> torch.Tensor:
    """Return activation(gate) * up [..., C] of gate and up [..., 2 C], for one of ``ACTIVATIONS``."""
    width = both.shape[-1] // 2
    output = both.new_empty(*both.shape[:-1], width)
    if output.numel():
        gate_launch(output.view(-1, width), both.reshape(-1, 2 * width), activation).run()
    return output


def gate_launch(output: torch.Tensor, both: torch.Tensor, activation: str) -> Launch:
    """Return the launch of ``gate``, for [T, 2 C]."""
    width = output.shape[-1]
    block = min(GATE_BLOCK, padded(width, 1))
    arguments = {
        "output": output,
        "both": both,
        "stride": both.stride(0),
        "C": width,
        "BLOCK": block,
        "ACTIVATION": activation,
    }
    return Launch(gate_kernel, (len(both), -(-width // block)), arguments, {"num_warps": 4})


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``logits.reductions.largest`` returns, in one pass over logits [B, V]."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    top = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    best = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        largest_launch(top, best, logits).run()
    return top, best


def largest_launch(top: torch.Tensor, best: torch.Tensor, logits: torch.Tensor) -> Launch:
    """Return the launch of ``largest``."""
    vocab_size = logits.shape[1]
    block = min(LARGEST_BLOCK, padded(vocab_size, 1))
    arguments = {
        "top": top,
        "best": best,
        "logits": logits,
        "stride": logits.stride(0),
        "V": vocab_size,
        "BLOCK": block,
    }
    return Launch(largest_kernel, (len(logits),), arguments, _warps(block))


def _warps(size: int) -> dict[str, Any]:
    """Return the number of warps for a block of so many numbers: sixteen a thread."""
    return {"num_warps": min(16, max(1, size // 512))}

"""compressed-tensors, as llm-compressor writes it: 8-bit floats, 8-bit integers, and packed integers of 4 or 8 bits.

A layer may have scales for the tensor, for each output (channel), for groups of inputs, or for blocks. Which it is
follows from the number of scales and the sizes in the configuration, without looking for the layer's group by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from job.engine.model.checkpoints.format import Format, Parts, Settings, Unreadable
from job.engine.model.checkpoints.packing import spread, unpacked

KNOWN = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "dense")

PARTS = tuple(f".weight{ending}" for ending in ("", "_packed", "_scale", "_zero_point", "_shape", "_g_idx"))

WHOLE = 1 << 62


def compressed_tensors(settings: Settings) -> Format:
    """Return the format ``compressed-tensors``."""
    groups = [dict(group) for group in (settings.get("config_groups") or {}).values()]
    for kind in (settings.get("format") or "dense", *(group.get("format") or "dense" for group in groups)):
        if kind not in KNOWN:
            raise Unreadable(f"the layout {kind!r}, where {', '.join(map(repr, KNOWN[:4]))} are known")
    sparsity = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise Unreadable(f"sparse weights ({sparsity!r})")
    weights = [dict(group.get("weights") or {}) for group in groups]
    widths = sorted({int(of["num_bits"]) for of in weights if of.get("num_bits")})
    if unknown := [width for width in widths if width not in (4, 8)]:
        raise Unreadable(f"{unknown[0]} bits, where 4 and 8 are known")
    blocks = [block for of in weights for block in _blocks(of)] + [(1, WHOLE)]

    def dense(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        numbers, zeros, scales = _numbers(parts, widths)
        if (order := parts.get(".weight_g_idx")) is not None and bool((order >= 0).all()):
            scales, zeros = scales[:, order.long()], zeros if zeros is None else zeros[:, order.long()]
            found = [(1, 1)]
        else:
            found = blocks
        factors = _only(scales, numbers.shape, found)
        offsets = None if zeros is None else _only(zeros, numbers.shape, found)
        return ((numbers if offsets is None else numbers - offsets) * factors).to(dtype)

    return Format(
        phrase="compressed-tensors",
        num_bits=max(widths, default=8),
        markers=(".weight_scale",),
        parts=PARTS,
        becomes=".weight",
        dense=dense,
    )


def _blocks(weights: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the rows and columns of what shares a scale, if a scheme names a size."""
    found = []
    if weights.get("block_structure"):
        structure = weights["block_structure"]
        rows, columns = structure.split("x") if isinstance(structure, str) else structure
        found.append((int(rows), int(columns)))
    if (weights.get("group_size") or 0) > 0:
        found.append((1, int(weights["group_size"])))
    return found


def _numbers(parts: Parts, widths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return the numbers of a layer as ``[R, C] float32``, its zero points in the shape of its scales, and these."""
    scales, zeros = parts[".weight_scale"], parts.get(".weight_zero_point")
    if ".weight_packed" not in parts:
        if ".weight" not in parts:
            raise Unreadable("it has scales, but no weights")
        return parts[".weight"].float(), None if zeros is None else zeros.float(), scales
    packed, shape = parts[".weight_packed"], parts.get(".weight_shape")
    if packed.dtype != torch.int32 or shape is None:
        raise Unreadable(f"packed weights are {packed.dtype}, or there is no weight_shape")
    num_rows, num_columns = (int(size) for size in shape)
    width = next((width for width in widths if -(-num_columns * width // 32) == packed.shape[1]), None)
    if width is None:
        raise Unreadable(f"{packed.shape[1]} words for {num_columns} weights of {widths} bits")
    offset = 2 ** (width - 1)
    numbers = unpacked(packed, width)[:, :num_columns].float() - offset
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = unpacked(zeros, width, dim=0)[:num_rows].float() - offset
    return numbers, None if zeros is None else zeros.float(), scales


def _only(scales: torch.Tensor, shape: Sequence[int], blocks: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Spread scales over weights by the only size that their number allows."""
    within = dict.fromkeys((min(rows, shape[0]), min(columns, shape[1])) for rows, columns in blocks)
    fitting = [factors for block in within if (factors := spread(scales, shape, block)) is not None]
    if not fitting or (len(fitting) > 1 and scales.numel() > 1):
        raise Unreadable(f"{tuple(shape)} weights have {tuple(scales.shape)} scales for blocks of {list(blocks)}")
    return fitting[0]

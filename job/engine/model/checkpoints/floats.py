"""FP8 with scales for blocks or whole tensors (DeepSeek, Qwen), and MXFP4 (gpt-oss).

Products of such numbers and their scales are computed in float32 and rounded once.
"""

import torch

from job.engine.model.checkpoints.format import Format, Parts, Settings, Unreadable
from job.engine.model.checkpoints.packing import E2M1, spread, unpacked

WHOLE = (1 << 62, 1 << 62)
"""A block that holds any matrix."""


def fp8(settings: Settings) -> Format:
    """Return the format ``fp8`` or ``mxfp8``.

    ``weight_scale_inv`` is what a block of weights is multiplied by. AutoFP8 calls it ``weight_scale``.
    """
    is_mx = settings.get("quant_method") == "mxfp8"
    rows, columns = settings.get("weight_block_size") or ((1, 32) if is_mx else WHOLE)
    if settings.get("expert_dtype", "fp8") != "fp8":
        raise Unreadable(f"experts in {settings['expert_dtype']}, where fp8 is known")

    def dense(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        weights = parts[""]
        if weights.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise Unreadable(f"it is {weights.dtype}, not 8-bit floats")
        scales = parts["_scale_inv"] if "_scale_inv" in parts else parts["_scale"]
        if scales.dtype == torch.uint8:  # exponents (E8M0)
            scales = (scales.float() - 127).exp2()
        made = _scaled(weights, scales, (rows, columns))
        if made is None:
            raise Unreadable(
                f"{tuple(weights.shape)} weights have {tuple(scales.shape)} scales for blocks of {rows} x {columns}"
            )
        return made.to(dtype)

    return Format(
        phrase="MXFP8" if is_mx else "FP8",
        num_bits=8,
        markers=("_scale_inv", "_scale"),
        parts=("", "_scale_inv", "_scale"),
        becomes="",
        dense=dense,
    )


def _scaled(weights: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor | None:
    """Return weights times the scales of their blocks, float32; None if this is not how many scales there are."""
    made, size = weights.float(), block[1]
    if scales.dim() == weights.dim() and scales.shape[-1] * size == weights.shape[-1]:  # spread over the rows alone
        factors = spread(scales, (*weights.shape[:-1], scales.shape[-1]), (block[0], 1))
        if factors is not None:
            made.view(*weights.shape[:-1], -1, size).mul_(factors[..., None])
    else:
        factors = spread(scales, weights.shape, block)
        if factors is not None:
            made.mul_(factors)
    return None if factors is None else made


def mxfp4(settings: Settings) -> Format:
    """Return the format ``mxfp4``: 32 weights in 16 bytes, with an exponent; the experts of gpt-oss, transposed."""

    def dense(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        blocks, exponents = parts["_blocks"], parts["_scales"]
        num_experts, num_rows, num_groups, _ = blocks.shape
        values = torch.tensor(E2M1)
        made = torch.empty(num_experts, num_groups * 32, num_rows, dtype=dtype)
        for idx in range(num_experts):  # one after the other: all at once would be several times the layer
            factors = (exponents[idx].float() - 127).exp2()[..., None]
            numbers = values[unpacked(blocks[idx], 4).long()] * factors
            made[idx] = numbers.reshape(num_rows, -1).T.to(dtype)
        return made

    return Format(
        phrase="MXFP4",
        num_bits=4,
        markers=("_blocks",),
        parts=("_blocks", "_scales"),
        becomes="",
        dense=dense,
    )

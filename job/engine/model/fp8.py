"""Numbers in fp8 (e4m3), and products of them on the devices that multiply them.

Letters: M tokens, K inputs, N outputs.
"""

import functools

import torch

from job.errors import UsageError, first_line

FP8, LARGEST = torch.float8_e4m3fn, torch.finfo(torch.float8_e4m3fn).max
MULTIPLE = 16
"""Of which both sizes of a weight must be, for the product. Others are filled up with zeros."""

MIN_CAPABILITY = (8, 9)
"""Of a GPU that multiplies in fp8."""


def scaled_product(
    values: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Multiply [M, K] and [N, K] in e4m3 to [M, N] in a dtype, by their scales [M, 1] and [N, 1]."""
    return torch._scaled_mm(
        values, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=dtype, use_fast_accum=False
    )


@functools.cache
def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which a device gives products in fp8 for a run in ``dtype``: that, or bfloat16.

    Found out by a small product: some versions of torch give rows with scales of their own in bfloat16 alone on Ada and
    Blackwell ("only bf16 high precision output types are supported"), some in float16, too, and cuBLAS in any on
    Hopper.

    Raises:
        RuntimeError: it gives neither.
    """
    values, scale = to_fp8(torch.ones(MULTIPLE, MULTIPLE, device=device))
    try:
        scaled_product(values, values, scale, scale, dtype)
    except (RuntimeError, ValueError):
        scaled_product(values, values, scale, scale, torch.bfloat16)
        return torch.bfloat16
    return dtype


def to_fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [..., C] values in e4m3, and one scale [..., 1] float32 for each row by which they are to be multiplied.

    A row of zeros stays one. A row with a number that is not finite has a scale that is not.
    """
    # No larger result than 448 times a rounding, which the cast rounds to 448: it has no need to be clamped.
    largest = torch.linalg.vector_norm(values, torch.inf, -1, keepdim=True).float()
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (values / scale).to(FP8), scale


def from_fp8(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Undo ``to_fp8``, but for what was rounded."""
    return (values.float() * scale).to(dtype)


def check_device(scheme: str, device: torch.device) -> None:
    """Check that a device can compute in a scheme: a GPU's product is tried.

    Raises:
        UsageError: it cannot.
    """
    if scheme == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        raise UsageError(
            f"--quantize fp8 needs a GPU of compute capability {'.'.join(map(str, MIN_CAPABILITY))} or more (Ada, "
            f"Hopper, Blackwell); {torch.cuda.get_device_name(device)} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}. Use --quantize int8, or leave it out."
        )
    if scheme == "fp8" and device.type == "cuda":
        try:
            product_dtype(torch.bfloat16, device)
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"--quantize fp8: this GPU's product in fp8 failed: {first_line(error)}. Use --quantize int8, or leave "
                "it out."
            ) from None

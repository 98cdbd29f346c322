"""The two ceilings of this card, as it is now: bytes per second of a copy, operations per second of a product."""

import torch
from step_model import GAP_SECS, H100, LAUNCH_SECS

from .device import DEVICE, ON_CUDA, chain_ms, event_ms
from .figures import save


def main(*, copy_bytes: int, width: int, launches: int) -> None:
    """Measure them.

    Args:
        copy_bytes: of the tensor that is copied.
        width: of the square matrices.
        launches: kernels in a recorded chain, for the gap between two of them.
    """
    save("copy", {"copy_TB_per_s": H100.bandwidth / 1e12}, copy_TB_per_s=_copy_rate(copy_bytes) / 1e12)
    for dtype in (torch.bfloat16, torch.float16):
        left, right = (torch.randn(width, width, device=DEVICE).to(dtype) for _ in range(2))
        ms = chain_ms([lambda a=left, b=right: a @ b] * 3, 10)
        rate = 2 * width**3 / ms / 1e9
        name = f"{str(dtype).removeprefix('torch.')}_TFLOP_per_s"
        save(f"product of {width} x {width}", {name: H100.rate / 1e12}, **{name: rate})
    small = torch.zeros(1024, device=DEVICE)
    recorded = chain_ms([lambda: small.add_(1)] * launches, 10)
    result = {"recorded_us": recorded * 1e3}
    if ON_CUDA:
        result["launched_us"] = event_ms(lambda: [small.add_(1) for _ in range(launches)], 10) / launches * 1e3
    save("a small kernel", {"recorded_us": GAP_SECS * 1e6, "launched_us": LAUNCH_SECS * 1e6}, **result)


def _copy_rate(num_bytes: int) -> float:
    """Return bytes per second, read and written."""
    source = torch.randn(num_bytes // 2, device=DEVICE).to(torch.float16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (chain_ms([lambda: target.copy_(source)]) / 1e3)

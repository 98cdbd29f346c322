"""GPUs by name: what their data sheets say. Imports nothing heavy: the command line lists the names."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    memory_gb: int
    """As it is sold, in 10**9 bytes. A card has some percent more, which the driver and CUDA's context take."""
    bandwidth_gb_per_sec: int
    """Of its memory, in 10**9 bytes."""
    teraflops: int
    """10**12 dense operations per second of the tensor cores in 16 bits."""


GPUS: Mapping[str, Gpu] = {
    "t4": Gpu(16, 320, 65),
    "v100-16": Gpu(16, 900, 125),
    "v100-32": Gpu(32, 900, 125),
    "a10": Gpu(24, 600, 125),
    "l4": Gpu(24, 300, 121),
    "rtx3090": Gpu(24, 936, 71),
    "rtx4090": Gpu(24, 1008, 165),
    "a40": Gpu(48, 696, 150),
    "l40s": Gpu(48, 864, 362),
    "a100-40": Gpu(40, 1555, 312),
    "a100-80": Gpu(80, 2039, 312),
    "h100": Gpu(80, 3350, 989),
    "h200": Gpu(141, 4800, 989),
    "b200": Gpu(180, 8000, 2250),
}

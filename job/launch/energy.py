"""The energy that a GPU takes, from NVML (NVIDIA's management library, which comes with the driver).

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules since the driver was loaded (Volta and later; a slice of a
card that is divided by MIG has no count of its own).
"""

import ctypes
from typing import Any

LIBRARY = "libnvidia-ml.so.1"

JOULES = 1e-3
"""Of the unit that NVML counts in."""


class EnergyMeter:
    """Measures one GPU from when it is made."""

    def __init__(self, uuid: str, library: Any = None) -> None:
        """Begin to measure.

        Args:
            uuid: of the GPU, in the form of NVML: ``GPU-...``.
            library: stands for NVML in tests.
        """
        self._handle = ctypes.c_void_p()
        self._library = _load() if library is None else library
        self._before: int | None = None
        if self._library is not None and self._is_found(uuid):
            self._before = self._count()

    def _is_found(self, uuid: str) -> bool:
        of_uuid = self._library.nvmlDeviceGetHandleByUUID
        return bool(self._library.nvmlInit_v2() == 0 == of_uuid(uuid.encode(), ctypes.byref(self._handle)))

    def _count(self) -> int | None:
        count = ctypes.c_ulonglong()
        found = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(count))
        return count.value if found == 0 else None

    @property
    def joules(self) -> float | None:
        """What it has taken since; None if it does not count that."""
        if self._before is None or (now := self._count()) is None or now < self._before:
            return None
        return (now - self._before) * JOULES


def _load() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None

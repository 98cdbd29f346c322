"""Copies between the host and a device, for which neither waits.

A copy from or to ordinary memory makes the host wait for everything that the device has still to do. These use pinned
memory. PyTorch gives a pinned block to somebody else only when the copies from it are done, so there is no ring of
buffers to look after. On a CPU, host and device are the same, and nothing is pinned.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16
"""Each array begins at a multiple of this many bytes: Triton compiles a kernel anew for a pointer that does not."""


class Upload:
    """Sends arrays to a device: all arrays of a call in one copy."""

    def __init__(self, device: torch.device) -> None:
        """Send to this device, in the order of its current stream."""
        self._device = device

    def __call__(self, *arrays: npt.NDArray[Any], into: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return tensors of the arrays' shapes and dtypes, which are parts of one buffer on the device.

        Args:
            into: [N] uint8 on the device, to write to; N is ``num_bytes`` of the arrays or more. By default, a new one.
        """
        sizes = [_aligned(array.nbytes) for array in arrays]
        host, numbers = _host_buffer(sum(sizes), is_pinned=self._device.type != "cpu")
        begin = 0
        for array, size in zip(arrays, sizes, strict=True):
            numbers[begin : begin + array.nbytes].view(array.dtype)[:] = array.ravel()
            begin += size
        if into is None:
            device = host.to(self._device, non_blocking=True)
        else:
            device = into[: len(host)].copy_(host, non_blocking=True)
        parts = torch.split(device, sizes)
        return [_part(part, array) for part, array in zip(parts, arrays, strict=True)]


Sent = Callable[[], torch.Tensor]
"""Returns a tensor on the device; the first call sends it."""


class Parcel:
    """Collects arrays one by one, and sends all of them in one copy when the first is needed on the device."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self.device = device
        self._arrays: list[npt.NDArray[Any]] = []
        self._tensors: list[torch.Tensor] = []

    def add(self, array: npt.NDArray[Any]) -> Sent:
        """Add an array; see ``Sent``. Nothing can be added after the first was needed."""
        assert not self._tensors, "the parcel is on its way"
        idx = len(self._arrays)
        self._arrays.append(array)
        return lambda: self._send()[idx]

    def _send(self) -> list[torch.Tensor]:
        if not self._tensors:
            self._tensors = Upload(self.device)(*self._arrays)
        return self._tensors


def may_read(device: torch.device) -> bool:
    """Return whether the host may look at a tensor there without waiting for the work in front of it."""
    return device.type == "cpu"


def num_bytes(*arrays: npt.NDArray[Any]) -> int:
    """Return how many bytes an upload of arrays takes on the device."""
    return sum(_aligned(array.nbytes) for array in arrays)


class Download:
    """A tensor on its way to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """Start the copy, after what the device's current stream has still to do."""
        self._host = tensor.to("cpu", non_blocking=True)  # which pins the memory
        self._copied = None
        if tensor.device.type != "cpu":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def result(self) -> npt.NDArray[Any]:
        """Wait for the copy, and for nothing that the device was given after it."""
        if self._copied is not None:
            self._copied.synchronize()
        array: npt.NDArray[Any] = self._host.numpy()
        return array


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _host_buffer(size: int, *, is_pinned: bool) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """Return [size] uint8, and an array that is the same memory."""
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned)
    return buffer, buffer.numpy()


def _part(part: torch.Tensor, array: npt.NDArray[Any]) -> torch.Tensor:
    """Return the beginning of a part [N] uint8 as a tensor like the array."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    return part[: array.nbytes].view(dtype).view(array.shape)

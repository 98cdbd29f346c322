"""Triton on this machine: whether it can compile kernels here, and where it keeps what it has compiled."""

import os
import subprocess
import tempfile
from pathlib import Path

import torch

from job.errors import first_line

MIN_CAPABILITY = (8, 0)
"""Triton multiplies on no older card's tensor cores (https://github.com/triton-lang/triton/pull/5066)."""


def problem(device: torch.device) -> str | None:
    """Return why Triton's kernels cannot run on a device, or None. Finds a place for what it will compile."""
    try:
        from triton import knobs
    except ImportError as error:
        return f"Triton cannot be imported: {first_line(error)}"
    if device.type != "cuda":
        return None if knobs.runtime.interpret else "Triton's kernels need a GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (MIN_CAPABILITY, capability))
        return f"Triton needs a GPU of compute capability {needed} or higher, and this one has {found}"
    return _cache_problem(Path(knobs.cache.dir))


def explain(error: Exception) -> str:
    """Return why a kernel could not be launched. Triton compiles each launcher in C, with the headers of Python."""
    if isinstance(error, subprocess.CalledProcessError) or "C compiler" in str(error):
        return "Triton needs a C compiler and python3-dev"
    return f"{type(error).__name__}: {first_line(error)}"


def _cache_problem(directory: Path) -> str | None:
    """Let Triton use a temporary directory if it cannot write to its cache: it then compiles again at each start."""
    try:
        _try_to_write(directory)
    except OSError as error:
        try:
            os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="triton-")  # Triton reads it at each use
        except OSError:
            return f"Triton cannot write to its cache: {first_line(error)}"
    return None


def _try_to_write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"\0")

"""Which machine this is: versions, the card, its free memory, the driver, and the compilers that kernels need."""

import importlib.metadata
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

from .device import ON_CUDA
from .figures import save

PACKAGES = (
    *("torch", "triton", "transformers", "deepspeed", "datasets", "pyarrow", "fsspec", "huggingface_hub", "numpy"),
    *("click", "rich", "jinja2", "llguidance", "psutil", "pytest", "pytest-xdist", "safetensors", "tokenizers"),
)


def main() -> None:
    """Save all of it."""
    save("python", version=platform.python_version(), kernel=platform.release(), cores=torch.get_num_threads())
    save("packages", **{name: _version(name) for name in PACKAGES})
    save(
        "compilers",
        gcc=_first_line("gcc", "--version"),
        nvcc=_first_line("nvcc", "--version", line=-1),
        python_h=(Path(sysconfig.get_paths()["include"]) / "Python.h").exists(),
    )
    if ON_CUDA:
        card = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        save(
            "card",
            name=card.name,
            capability=f"{card.major}.{card.minor}",
            multiprocessors=card.multi_processor_count,
            cache_MB=card.L2_cache_size >> 20,
            free_GiB=free / 2**30,
            total_GiB=total / 2**30,
            driver=_first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            cuda=torch.version.cuda,
            nccl=".".join(map(str, torch.cuda.nccl.version())),
        )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _first_line(*command: str, line: int = 0) -> str:
    if shutil.which(command[0]) is None:
        return "missing"
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout.splitlines() or ["no output"])[line][:80]

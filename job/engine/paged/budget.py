"""How large the engine may be: rows, tokens per step, and pages of KV cache; the same on all ranks of a replica."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from job.config import EngineConfig
from job.engine.model.loading import LoadedModel
from job.engine.paged.attention.cache import LayerShape
from job.engine.static.limits import LOGITS_COPIES
from job.errors import JobError
from job.launch.replica import Replica

CPU_MEMORY_SHARE = 0.4
"""Share of the memory free after loading, divided among the processes of a host. It is touched only when it is used."""

CUDA_MEMORY_SHARE = 0.85
"""Share of the device's memory left after loading and after what choosing tokens needs; the rest is for activations."""

CPU_ROWS, CPU_TOKENS = 256, 2048
CUDA_ROWS, CUDA_TOKENS = 512, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of the engine."""

    max_rows: int
    max_tokens: int
    num_pages: int


def decide_budget(
    model: LoadedModel,
    shapes: Mapping[int, LayerShape],
    config: EngineConfig,
    replica: Replica,
    page_tokens: int,
) -> Budget:
    """Return the user's limits, or defaults for the device. All ranks of a replica must call this together.

    Raises:
        JobError: there is not enough memory for a single page.
    """
    max_rows, max_tokens = row_limits(config, on_cuda=replica.device.type == "cuda")
    num_bytes = config.kv_cache_memory
    if num_bytes is None:
        num_bytes = _free_share(replica, logits_bytes(max_rows, model.module.config.get_text_config().vocab_size))
    page_bytes = page_tokens * sum(shape.num_bytes for shape in shapes.values())
    # Ranks may have different amounts of free memory, and with uneven heads, pages of different sizes.
    num_pages, fewest_bytes, page_bytes = min(replica.gather((num_bytes // page_bytes, num_bytes, page_bytes)))
    if num_pages < 1:
        raise JobError(
            f"Only {_size(fewest_bytes)} are left for the KV cache, but a page of {page_tokens} tokens takes "
            f"{_size(page_bytes)}. Use a larger --kv-cache-memory or --tensor-parallel-size."
        )
    return Budget(max_rows=max_rows, max_tokens=max_tokens, num_pages=num_pages)


def _size(num_bytes: int) -> str:
    """Return a size in the largest unit in which it is not a fraction.

    >>> _size(20), _size(2**14), _size(3 * 2**19)
    ('20 bytes', '16.0 KiB', '1.5 MiB')
    """
    for unit, exponent in (("MiB", 20), ("KiB", 10)):
        if num_bytes >= 2**exponent:
            return f"{num_bytes / 2**exponent:,.1f} {unit}"
    return f"{num_bytes:,} bytes"


def row_limits(config: EngineConfig, *, on_cuda: bool) -> tuple[int, int]:
    """Return the most rows, and the most tokens of a step."""
    max_rows = config.max_batch_rows or (CUDA_ROWS if on_cuda else CPU_ROWS)
    return max_rows, max(max_rows, config.max_batch_tokens or (CUDA_TOKENS if on_cuda else CPU_TOKENS))


def logits_bytes(max_rows: int, vocab_size: int) -> int:
    """Return the memory for the logits while tokens are chosen."""
    return max_rows * vocab_size * 4 * LOGITS_COPIES


def cuda_cache_bytes(free_bytes: int, for_logits: int) -> int:
    """Return the memory for the KV cache, of what is free after loading."""
    return max(0, int((free_bytes - for_logits) * CUDA_MEMORY_SHARE))


def cpu_cache_bytes(free_bytes: int, num_processes: int) -> int:
    """Return the memory for the KV cache of each process of a host, of what is free after loading."""
    return int(free_bytes * CPU_MEMORY_SHARE) // num_processes


def _free_share(replica: Replica, for_logits: int) -> int:
    if replica.device.type == "cuda":
        return cuda_cache_bytes(torch.cuda.mem_get_info(replica.device)[0], for_logits)
    return cpu_cache_bytes(free_host_bytes(), replica.info.local_world_size)


def free_host_bytes() -> int:
    """Return how much memory this process may still use, on its machine and in its control groups."""
    return min([int(psutil.virtual_memory().available), *_cgroup_bytes()])


def _cgroup_bytes() -> list[int]:
    """Return how much memory each control group (version 2) of this process has left."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().splitlines()[-1].split("::", 1)[-1]
        group = Path("/sys/fs/cgroup") / own.lstrip("/")
    except OSError:
        return []
    left = []
    for directory in (group, *group.parents):
        try:
            limit, used = (
                (directory / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current")
            )
            left.append(max(0, int(limit) - int(used)))
        except (OSError, ValueError):  # no such file in the root, and "max" means no limit
            continue
    return left

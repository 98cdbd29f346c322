"""How large the engine may be: rows, tokens per step, and pages of KV cache; the same on all ranks of a replica."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from job.config import EngineConfig
from job.engine.model.loading import LoadedModel
from job.engine.paged.attention.backends import Backend
from job.engine.paged.attention.cache import LayerShape
from job.engine.paged.largest_step import DeviceMemory, LargestStep, find_largest_step
from job.engine.static.limits import LOGITS_COPIES
from job.errors import JobError
from job.launch.replica import Replica

CPU_MEMORY_SHARE = 0.4
"""Share of the memory free after loading, divided among the processes of a host. It is touched only when it is used."""

CUDA_RESERVE = 2**29
"""What a GPU's cache leaves free on top of the largest step: up to 96 recorded steps at about 2 MiB for their launches,
workspaces of the matrix products for two streams (32 MiB each on Hopper), kernels that are loaded when they are first
launched, and the partial sums of split attention (8 MiB for each split of 512 rows of 32 heads of 128). Estimated."""

WINDOWS_SHARE = 0.85
"""Share of what is left that the cache gets if attention copies keys and values out of it, a layer at a time."""

CPU_ROWS, CPU_TOKENS = 256, 2048
TABLE_ITEM_BYTES = 4
"""Of a page's number in the block tables."""

CUDA_ROWS, CUDA_TOKENS = 512, 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of the engine."""

    max_rows: int
    max_tokens: int
    num_pages: int
    smaller_steps: str | None = None
    """Why steps are smaller than they should be, if they are."""


def decide_budget(
    model: LoadedModel,
    shapes: Mapping[int, LayerShape],
    config: EngineConfig,
    replica: Replica,
    backend: Backend,
    memory: DeviceMemory | None,
) -> Budget:
    """Return the user's limits, or defaults for the device. All ranks of a replica must call this together.

    Args:
        memory: the device's, if it is one on which the largest step is run; None for a CPU.

    Raises:
        JobError: there is not enough memory for a single page, for a step, or for the cache that the user wants.
    """
    max_rows, max_tokens = row_limits(config, on_cuda=memory is not None)
    smaller_steps = None
    if memory is None:
        free_bytes, num_processes = free_host_bytes(), replica.info.local_world_size
        num_bytes, most_bytes = cpu_cache_bytes(free_bytes, num_processes), free_bytes // num_processes
    else:
        step = find_largest_step(model.module, replica, memory, max_rows=max_rows, max_tokens=max_tokens)
        if step.max_tokens < max_tokens:
            smaller_steps = f"a step of {max_tokens:,} tokens does not fit into memory beside the weights"
        max_rows, max_tokens = step.max_rows, step.max_tokens
        records = backend.steps is not None and config.records_steps(is_sharded=replica.has_followers)
        num_bytes = most_bytes = _beside(step, memory.free_bytes(), backend, records=records)
    num_bytes = _checked(config.kv_cache_memory, most_bytes, replica) or num_bytes
    page_bytes = backend.page_tokens * sum(shape.num_bytes for shape in shapes.values())
    if backend.steps is not None:
        page_bytes += TABLE_ITEM_BYTES * (max_rows + 1)  # a column of the block tables on the device
    # Ranks may have different amounts of free memory, and with uneven heads, pages of different sizes.
    num_pages, fewest_bytes, page_bytes = min(replica.gather((num_bytes // page_bytes, num_bytes, page_bytes)))
    if num_pages < 1:
        raise JobError(
            f"Only {_size(fewest_bytes)} are left for the KV cache, but a page of {backend.page_tokens} tokens takes "
            f"{_size(page_bytes)}. Use a larger --kv-cache-memory or --tensor-parallel-size."
        )
    return Budget(max_rows=max_rows, max_tokens=max_tokens, num_pages=num_pages, smaller_steps=smaller_steps)


def _beside(step: LargestStep, free_bytes: int, backend: Backend, *, records: bool) -> int:
    left = max(0, cuda_cache_bytes(free_bytes, step.forward_bytes, step.choice_bytes, records=records))
    return int(left * WINDOWS_SHARE) if backend.copies_windows else left


def _checked(wanted: int | None, most_bytes: int, replica: Replica) -> int | None:
    """Return the size of the cache that the user wants.

    Raises:
        JobError: one of the ranks has no room for it.
    """
    most_bytes = min(replica.gather(most_bytes))
    if wanted is None or wanted <= most_bytes:
        return wanted
    on_cuda = replica.device.type == "cuda"
    raise JobError(
        f"--kv-cache-memory is {_size(wanted)}, but {_size(most_bytes)} are left for each process "
        f"{'after the weights and the largest step' if on_cuda else 'on this machine'}. "
        f"Use {most_bytes >> 20}MiB or less, or leave it out."
    )


def _size(num_bytes: int) -> str:
    """Return a size in the largest unit in which it is not a fraction.

    >>> _size(20), _size(2**14), _size(3 * 2**19), _size(2**34)
    ('20 bytes', '16.0 KiB', '1.5 MiB', '16.0 GiB')
    """
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
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


def cuda_cache_bytes(free_bytes: int, forward_bytes: int, choice_bytes: int, *, records: bool) -> int:
    """Return the memory for the KV cache, of what is free after loading; below 0 if the rest alone does not fit.

    Args:
        forward_bytes: what the largest step takes while the model runs. Recorded steps take as much again: they have
            memory of their own.
        choice_bytes: what it takes while tokens are chosen.

    >>> cuda_cache_bytes(2**34, 2**30, 2**31, records=True) / 2**30
    12.5
    """
    recorded_bytes = forward_bytes if records else 0
    return free_bytes - max(forward_bytes, choice_bytes) - recorded_bytes - CUDA_RESERVE


def cpu_cache_bytes(free_bytes: int, num_processes: int) -> int:
    """Return the memory for the KV cache of each process of a host, of what is free after loading."""
    return int(free_bytes * CPU_MEMORY_SHARE) // num_processes


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

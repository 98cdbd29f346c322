"""How much memory the engine takes for granted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from job.config import EngineConfig
from job.engine.paged.budget import decide_budget, free_host_bytes
from job.errors import JobError


def test_free_memory_is_known_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/meminfo was read unguarded: on macOS the default engine ended in a traceback after loading the model."""
    read_text = Path.read_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.parts[1] == "proc":
            raise FileNotFoundError(path)
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert 0 < free_host_bytes() <= psutil.virtual_memory().total


def test_a_control_group_bounds_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container, or a Slurm job with --mem, has less than the machine."""
    read_text = Path.read_text
    files = {"/proc/self/cgroup": "0::/job\n"}
    files |= {"/sys/fs/cgroup/job/memory.max": "5000\n", "/sys/fs/cgroup/job/memory.current": "3000\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, **kw: files.get(str(path)) or read_text(path, **kw))
    assert free_host_bytes() == 2000


def test_a_cache_too_small_for_a_page_names_the_memory_of_the_process_that_has_the_least() -> None:
    """A regression: each process printed its own free memory, which may be enough for many pages."""
    model: Any = SimpleNamespace(module=None)
    replica: Any = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda own: [own, (0, 2**19, 2**20), (7, 7 * 2**20, 2**20)]
    )
    shapes: Any = {0: SimpleNamespace(num_bytes=2**14)}
    with pytest.raises(
        JobError, match=r"Only 512\.0 KiB are left for the KV cache, but a page of 32 tokens takes 1\.0"
    ):
        decide_budget(model, shapes, EngineConfig(kv_cache_memory=2**25), replica, 32)

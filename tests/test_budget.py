"""How much memory the engine takes for granted."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from job.engine.paged.budget import free_host_bytes


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

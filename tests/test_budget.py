"""How much memory the engine takes for granted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from job.config import EngineConfig
from job.engine.paged import budget as budget_module
from job.engine.paged.attention.backends import TORCH
from job.engine.paged.budget import CUDA_RESERVE, Budget, decide_budget, free_host_bytes
from job.engine.paged.largest_step import LargestStep, find_largest_step, largest_step
from job.engine.paged.schedule.step import most_wanted
from job.errors import JobError
from tests.serving import Served, serve

GIB = 2**30
BYTES = {"forward_bytes": GIB, "choice_bytes": 0}


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

    def gather(own: Any) -> list[Any]:
        return [own, (0, 2**19, 2**20), (7, 7 * 2**20, 2**20)] if isinstance(own, tuple) else [own]

    replica: Any = SimpleNamespace(device=torch.device("cpu"), gather=gather, info=SimpleNamespace(local_world_size=1))
    shapes: Any = {0: SimpleNamespace(num_bytes=2**14)}
    with pytest.raises(
        JobError, match=r"Only 512\.0 KiB are left for the KV cache, but a page of 32 tokens takes 1\.0"
    ):
        decide_budget(model, shapes, EngineConfig(kv_cache_memory=2**25), replica, TORCH, None)


class FakeMemory:
    """Implements ``DeviceMemory`` with numbers of a test's choice."""

    def __init__(self, free: int, *peaks: int) -> None:
        self._free, self._peaks = free, list(peaks)

    def free_bytes(self) -> int:
        return self._free

    def begin(self) -> None:
        pass

    def peak_bytes(self) -> int:
        return self._peaks.pop(0) if self._peaks else 0


@pytest.fixture(scope="module")
def served(tiny_model: Callable[..., Path]) -> Served:
    return serve(tiny_model())


def decide(served: Served, memory: FakeMemory, **config: Any) -> Budget:
    backend = replace(TORCH, copies_windows=False)
    return decide_budget(served.model, served.shapes, EngineConfig(**config), served.replica, backend, memory)


def page_bytes(served: Served) -> int:
    return TORCH.page_tokens * sum(shape.num_bytes for shape in served.shapes.values())


def test_the_cache_gets_what_the_weights_and_the_largest_step_leave(served: Served) -> None:
    """What the step takes is measured; choosing tokens and scoring texts count with their logits."""
    found = decide(served, FakeMemory(20 * GIB, 5 * GIB, GIB), max_batch_rows=8, max_batch_tokens=64)
    assert (found.max_rows, found.max_tokens, found.smaller_steps) == (8, 64, None)
    assert found.num_pages == (15 * GIB - CUDA_RESERVE) // page_bytes(served)
    found = decide(served, FakeMemory(20 * GIB, GIB, 5 * GIB), max_batch_rows=8, max_batch_tokens=64)
    logits_bytes = 8 * 260 * 4
    assert found.num_pages == (15 * GIB - logits_bytes - CUDA_RESERVE) // page_bytes(served)
    found = decide(served, FakeMemory(20 * GIB, GIB, GIB, 5 * GIB), max_batch_rows=8, max_batch_tokens=64)
    assert found.num_pages == (15 * GIB - 8 * logits_bytes - CUDA_RESERVE) // page_bytes(served)


def test_the_largest_step_has_as_many_tokens_and_logits_as_any(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = served.model.module.forward

    def watched(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(input_ids=input_ids, **kwargs)
        shapes.append((*input_ids.shape, *output.logits.shape[:2]))
        return output

    monkeypatch.setattr(served.model.module, "forward", watched)
    decide(served, FakeMemory(GIB, 0, 0), max_batch_rows=7, max_batch_tokens=64)
    assert shapes == [(1, 64, 1, 64)], "if texts are scored, more than one of a row are wanted"
    assert largest_step(7, 64).sequences[:, 2].tolist() == [9] * 6 + [10]
    assert largest_step(512, 8192).sequences[:, 3].sum() == most_wanted(512) == 2048


def test_steps_that_do_not_fit_are_halved(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory for the largest step ended the run, or halved steps one by one while it ran."""
    forward = served.model.module.forward

    def limited(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.shape[1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(served.model.module, "forward", limited)
    limit = 40
    found = decide(served, FakeMemory(20 * GIB, 0, 0), max_batch_rows=48, max_batch_tokens=128)
    assert (found.max_rows, found.max_tokens) == (32, 32)
    assert found.smaller_steps == "a step of 128 tokens does not fit into memory beside the weights"
    limit = 4
    with pytest.raises(JobError, match=r"too short even for steps of 16 tokens\. Use a larger --tensor-parallel-size"):
        find_largest_step(served.model.module, served.replica, FakeMemory(GIB), max_rows=8, max_tokens=64)


def test_a_cache_larger_than_what_is_free_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it was allocated, and then every step ran out of memory."""
    told = (
        r"--kv-cache-memory is 9\.0 GiB, but 7\.5 GiB are left for each process after the weights and the largest "
        r"step\. Use 7680MiB or less, or leave it out\."
    )
    replica: Any = SimpleNamespace(
        **{name: getattr(served.replica, name) for name in ("gather", "gather_status", "info")},
        device=torch.device("cuda"),
    )
    monkeypatch.setattr(budget_module, "find_largest_step", lambda *args, **kwargs: LargestStep(**kwargs, **BYTES))
    arguments = (served.model, served.shapes, EngineConfig(kv_cache_memory=9 * GIB), replica)
    with pytest.raises(JobError, match=told):
        decide_budget(*arguments, replace(TORCH, copies_windows=False), FakeMemory(9 * GIB))
    fits = decide(served, FakeMemory(9 * GIB), kv_cache_memory=7 * GIB)
    assert fits.num_pages == 7 * GIB // page_bytes(served)
    monkeypatch.setattr(budget_module, "free_host_bytes", lambda: GIB)
    with pytest.raises(JobError, match=r"is 2\.0 GiB, but 1\.0 GiB are left for each process on this machine"):
        decide_budget(served.model, served.shapes, EngineConfig(kv_cache_memory=2 * GIB), served.replica, TORCH, None)

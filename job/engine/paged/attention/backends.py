"""Which attention serves a model on a device: a kernel where one can be trusted, plain operations elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from job.engine.paged.attention import plain
from job.engine.paged.attention.cache import KVCache, LayerShape
from job.engine.paged.attention.interface import Attend
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.attention.trial import trial_problem
from job.engine.paged.cpu import attention as cpu_attention
from job.engine.paged.cuda import attention as cuda_attention
from job.engine.paged.cuda import compiling
from job.engine.paged.schedule.step import Step
from job.errors import JobError, first_line
from job.launch.replica import Replica


class Steps(Protocol):
    """Runs the steps of a model in a device's own way, and can record them."""

    def record(self, num_params: int, *, is_sharded: bool) -> str | None:
        """Record steps from now on and replay them, so that the host need not launch each kernel.

        Args:
            num_params: of the rank that has most: all ranks must record the same steps.
            is_sharded: whether there are other ranks, so that a recording that fails here alone ends the step.

        Returns:
            Why this model's steps cannot be recorded (they are then launched kernel by kernel), or None.
        """

    def launch_all(self) -> None:
        """Record no more."""

    def run(self, step: Step, tables: BlockTables, chosen: torch.Tensor | None) -> torch.Tensor:
        """Compute a step whose new pages are in the tables; see ``Executor.run``.

        The next step may overwrite the logits.
        """


class MakeSteps(Protocol):
    """Makes ``Steps``."""

    def __call__(self, module: Any, cache: KVCache, device: torch.device, *, num_slots: int) -> Steps:
        """Run the steps of a module over an empty cache, for this many sequences at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """An attention, and the form of the cache that it reads."""

    problem: Callable[[Mapping[int, LayerShape], torch.device], str | None] = lambda shapes, device: None
    """Returns why it cannot serve a model's layers on a device, or None."""
    explain: Callable[[Exception], str] = lambda error: f"{type(error).__name__}: {first_line(error)}"
    """Says what an exception in its trial means."""
    trial_tokens: int = 312
    """Length of a sequence in its trial: enough for every way in which it treats long ones."""

    page_tokens: int
    reads_hidden: bool
    """Whether it multiplies hidden values by zero instead of skipping them, so that a NaN among them does harm."""
    copies_windows: bool = False
    """Whether it copies the keys and values of a step's sequences out of the cache, which takes memory of its own."""
    attend: Callable[[KVCache, Layout, torch.device], Attend]
    """Makes the attention of one step."""
    steps: MakeSteps | None = None
    """Makes what runs steps with this attention. None: the executor runs them, and none is recorded."""

    def allocate(self, shapes: Mapping[int, LayerShape], num_pages: int, device: torch.device) -> KVCache:
        """Allocate a cache of ``num_pages`` pages."""
        return KVCache(shapes, num_pages=num_pages, page_tokens=self.page_tokens, device=device)


TORCH = Backend(
    page_tokens=plain.PAGE_TOKENS,
    reads_hidden=True,
    copies_windows=True,
    attend=plain.TorchAttention,
)
COMPILED = Backend(
    problem=cpu_attention.problem,
    page_tokens=cpu_attention.PAGE_TOKENS,
    reads_hidden=False,
    attend=cpu_attention.CompiledAttention,
)


def _device_steps(module: Any, cache: KVCache, device: torch.device, *, num_slots: int) -> Steps:
    """Make ``DeviceSteps``. Imported here, since it needs Triton."""
    from job.engine.paged.cuda.steps import DeviceSteps

    return DeviceSteps(module, cache, device, num_slots=num_slots)


TRITON = Backend(
    problem=cuda_attention.problem,
    explain=compiling.explain,
    trial_tokens=cuda_attention.TRIAL_TOKENS,
    page_tokens=cuda_attention.PAGE_TOKENS,
    reads_hidden=False,
    attend=cuda_attention.TritonAttention.for_step,
    steps=_device_steps,
)

BACKENDS = {"triton": TRITON, "cpp": COMPILED, "plain": TORCH}
"""By the names that users know."""

KERNELS = {"cuda": TRITON, "cpu": COMPILED}
"""The backend that is tried first on each type of device; plain operations serve what it cannot."""


def allocate(backend: Backend, shapes: Mapping[int, LayerShape], num_pages: int, replica: Replica) -> KVCache:
    """Allocate a cache on every rank. All ranks of a replica must call this together.

    Raises:
        JobError: there is too little memory, here or on another rank.
    """
    cache, failure = None, None
    try:
        cache = backend.allocate(shapes, num_pages, replica.device)
    except RuntimeError as error:
        failure = first_line(error)
    failures = [text for text in replica.gather_status(failure) if text is not None]
    if cache is None or failures:
        num_bytes = num_pages * backend.page_tokens * sum(shape.num_bytes for shape in shapes.values())
        raise JobError(
            f"The KV cache of {num_bytes / 2**30:,.1f} GiB cannot be allocated: {failures[0]}. "
            "Use a smaller --kv-cache-memory."
        )
    return cache


def choose_backend(
    shapes: Mapping[int, LayerShape], replica: Replica, name: str = "auto"
) -> tuple[Backend, str | None]:
    """Return the backend for a replica, and why it is not a kernel, or None. All ranks must call this together.

    Args:
        name: of the backend that the user wants, or auto.

    Raises:
        JobError: the backend that the user wants cannot serve this model here.
    """
    backend = KERNELS[replica.device.type] if name == "auto" else BACKENDS[name]
    if backend is TORCH:
        return TORCH, None
    problem = backend.problem(shapes, replica.device)
    if problem is None:
        problem = trial_problem(backend, shapes, replica.device)
    problems = [text for text in replica.gather_status(problem) if text is not None]
    if problems and name != "auto":
        *others, last = (other for other in ("auto", *BACKENDS) if other != name)
        raise JobError(
            f"--attention-backend {name} cannot serve this model here: {problems[0]}. "
            f"Use {', '.join(others)} or {last}."
        )
    return (TORCH, problems[0]) if problems else (backend, None)

"""Which attention serves a model on a device: a kernel where one can be trusted, plain operations elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from job.engine.paged.attention import plain
from job.engine.paged.attention.cache import KVCache, LayerShape, to_stored
from job.engine.paged.attention.interface import Attend, AttentionArgs
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.cpu import attention as cpu_attention
from job.engine.paged.cuda import attention as cuda_attention
from job.engine.paged.schedule.step import Step, rows
from job.errors import JobError, first_line
from job.launch.replica import Replica

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.02}
"""Largest allowed difference between a kernel and plain operations in float32, for values of size 1."""

TRIAL_TOKENS = 312
TRIAL_STEPS = (((0, 0, 300), (1, 0, 40)), ((0, 300, 1), (1, 40, 270)), ((0, 301, 1), (1, 310, 1)))
"""The steps that a kernel is tried on: (slot, tokens before, tokens now) for each sequence of a step."""


class Steps(Protocol):
    """Runs the steps of a model in a device's own way, and can record them."""

    def record(self) -> str | None:
        """Record steps from now on and replay them, so that the host need not launch each kernel.

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

    problem: Callable[[Mapping[int, LayerShape]], str | None] = lambda shapes: None
    """Returns why it cannot serve a model's layers, or None."""

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
    page_tokens=cuda_attention.PAGE_TOKENS,
    reads_hidden=False,
    attend=cuda_attention.TritonAttention.for_step,
    steps=_device_steps,
)

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


def choose_backend(shapes: Mapping[int, LayerShape], replica: Replica) -> tuple[Backend, str | None]:
    """Return the backend for a replica, and why it is not a kernel, or None. All ranks must call this together."""
    backend = KERNELS[replica.device.type]
    problem = backend.problem(shapes)
    if problem is None:
        problem = _trial_problem(backend, shapes, replica.device)
    problems = [text for text in replica.gather_status(problem) if text is not None]
    return (TORCH, problems[0]) if problems else (backend, None)


def _trial_problem(backend: Backend, shapes: Mapping[int, LayerShape], device: torch.device) -> str | None:
    """Return why a kernel cannot be trusted on this device, or None: some for paged caches have given wrong results."""
    for shape in set(shapes.values()):
        try:
            error = _largest_error(backend, shape, device)
        except Exception as failure:  # no such kernel on this device, ...: plain operations remain
            return f"{type(failure).__name__}: {first_line(failure)}"
        if not error <= TOLERANCES[shape.dtype]:
            return f"its results are off by {error:.3f}"
    return None


def _largest_error(backend: Backend, shape: LayerShape, device: torch.device) -> float:
    """Return the largest difference from plain operations, with and without a window."""
    scale = shape.key_size**-0.5
    return max(_error_with(AttentionArgs(scale, window), backend, shape, device) for window in (None, 50))


def _error_with(args: AttentionArgs, backend: Backend, shape: LayerShape, device: torch.device) -> float:
    """Attend to chunks, to a single token together with a chunk, and to single tokens alone: kernels often treat these
    cases differently.
    """
    generator = torch.Generator(device).manual_seed(0)

    def numbers(num_tokens: int, num_heads: int, size: int) -> torch.Tensor:
        return torch.randn(num_tokens, num_heads, size, generator=generator, device=device, dtype=shape.dtype)

    pages_each = -(-TRIAL_TOKENS // backend.page_tokens)
    cache, tables = backend.allocate({0: shape}, 2 * pages_each, device), BlockTables(2)
    new_pages = [(slot, idx, 2 * idx + 1 - slot) for slot in range(2) for idx in range(pages_each)]
    tables.add(rows(new_pages, 3))
    cache.clear(rows([page[2:] for page in new_pages], 1))
    keys: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    values: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    error = 0.0
    for spans in TRIAL_STEPS:
        num_tokens = sum(count for _, _, count in spans)
        step = Step(token_ids=np.zeros(num_tokens, np.int32), sequences=rows([(*span, 1) for span in spans], 4))
        layout = Layout(step, tables, backend.page_tokens)
        query = numbers(num_tokens, shape.num_heads * shape.group, shape.key_size)
        key, value = (numbers(num_tokens, shape.num_heads, size) for size in (shape.key_size, shape.value_size))
        found = backend.attend(cache, layout, device)(0, query, key, value, args)
        for (slot, before, count), begin in zip(spans, layout.offsets, strict=False):
            part = slice(begin, begin + count)
            for kept, new in ((keys, key), (values, value)):  # what pages round is no error of the kernel's
                kept[slot].append(to_stored(new[part], shape.cache_dtype).to(shape.dtype))
            expected = _plain(query[part], torch.cat(keys[slot]), torch.cat(values[slot]), before, args)
            error = max(error, float((found[part].float() - expected).abs().max()))
    return error


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_before: int, args: AttentionArgs
) -> torch.Tensor:
    """Attend in float32: [q, H * G, D] to [k, H, .]; the first query is at position ``num_before``."""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.float().repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * args.scale
    keys = torch.arange(len(key), device=query.device)
    own = num_before + torch.arange(len(query), device=query.device)[:, None]
    is_hidden = keys > own if args.window is None else (keys > own) | (keys <= own - args.window)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill_(is_hidden, -torch.inf).softmax(dim=-1), value)

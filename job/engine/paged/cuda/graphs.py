"""CUDA graphs for decode: a step of one token per row is recorded once per batch size, and replayed from then on.

A decode step launches hundreds of small kernels, which takes the host longer than the device needs to run them. Rows
are padded to one of a few sizes; padding uses a spare page that no sequence owns. This has not run on a GPU yet.

Letters: B rows of a recorded size, W pages per row.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from job.engine.paged.attention.cache import KVCache
from job.engine.paged.attention.interface import Attend, attending
from job.engine.paged.attention.layout import Layout
from job.errors import first_line

SIZES = (1, 2, 4, 8, 16, 32, 64, *range(96, 1025, 32))
"""The numbers of rows that steps are recorded for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTensors:
    """What a recorded step reads: refilled with the numbers of the next step before each replay, never replaced."""

    token_ids: torch.Tensor  # [B] int64
    positions: torch.Tensor  # [B] int64
    pages: torch.Tensor  # [B] int64: where each token's keys and values go,
    places: torch.Tensor  # [B] int64: and the place in the page
    num_keys: torch.Tensor  # [B] int32: tokens of each sequence, this step's included
    tables: torch.Tensor  # [B, W] int32: the pages of each sequence
    starts: torch.Tensor  # [B + 1] int32: one token for each row


AttendRecorded = Callable[[KVCache, RecordedTensors], Attend]
"""Makes the attention of a step that reads these tensors. A backend whose steps can be recorded provides it."""


class DecodeGraphs:
    """Implements ``Recorder`` for decode steps, on one process."""

    def __init__(
        self, module: Any, cache: KVCache, device: torch.device, *, max_rows: int, attend: AttendRecorded
    ) -> None:
        """Prepare to record; each size is recorded when it is first needed."""
        self._module, self._cache, self._device, self._max_rows = module, cache, device, min(max_rows, SIZES[-1])
        self._attend = attend
        self._recorded: dict[tuple[int, int], RecordedStep] = {}
        self._memory: Any = torch.cuda.graph_pool_handle()
        self._warm_up_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._logits: torch.Tensor | None = None

    def problem(self) -> str | None:
        """Return why the model's steps cannot be recorded, such as a copy to the host in the middle; None if they can.

        Tries the smallest step, with padding only. If the device is broken for good, the next step fails, too.
        """
        stream = torch.cuda.current_stream()
        try:
            self._record(SIZES[0], 1)
        except Exception as error:  # whatever the model does that cannot be recorded
            torch.cuda.set_stream(stream)  # torch 2.11 leaves its own stream current
            return first_line(error)
        return None

    @staticmethod
    def may_replay(layout: Layout) -> bool:
        """See ``Recorder``: one token per row, not too many rows, and no copies of pages, which are not recorded."""
        is_decode = len(layout.token_ids) == len(layout.counts) == len(layout.wanted_tokens) <= SIZES[-1]
        return bool(is_decode and not len(layout.copies))

    def run(self, layout: Layout) -> torch.Tensor:
        """See ``Recorder``."""
        size = SIZES[bisect_left(SIZES, len(layout.counts))]
        width = 1 << (-(-int(layout.ends.max()) // self._cache.page_tokens) - 1).bit_length()
        recorded = self._recorded.get((size, width)) or self._record(size, width)
        recorded.fill(layout)
        return recorded.replay()[: len(layout.counts)]

    def _record(self, size: int, width: int) -> "RecordedStep":
        """Record a step of padding only: the numbers do not change which kernels are launched."""
        recorded = RecordedStep(self._cache, size, width, self._device, self._attend)
        warm = recorded.warm_up(self._module, self._warm_up_stream)
        if self._logits is None:
            largest = SIZES[bisect_left(SIZES, self._max_rows)]
            self._logits = torch.empty(largest, warm.shape[1], dtype=warm.dtype, device=self._device)
        recorded.record(self._module, self._memory, self._logits[:size])
        self._recorded[size, width] = recorded
        return recorded


class RecordedStep:
    """The tensors that a recorded step reads, and its graph."""

    def __init__(self, cache: KVCache, size: int, width: int, device: torch.device, attend: AttendRecorded) -> None:
        """Allocate what the step reads; all rows are padding."""
        self._cache, self._device = cache, device
        zeros = torch.zeros(size, dtype=torch.int64, device=device)
        self.tensors = RecordedTensors(
            token_ids=zeros,
            positions=zeros.clone(),
            pages=torch.full_like(zeros, cache.spare_page),
            places=zeros.clone(),
            num_keys=torch.ones(size, dtype=torch.int32, device=device),
            tables=torch.full((size, width), cache.spare_page, dtype=torch.int32, device=device),
            starts=torch.arange(size + 1, dtype=torch.int32, device=device),
        )
        self._rows = torch.arange(size, device=device)
        self._attend = attend

    def fill(self, layout: Layout) -> None:
        """Write a step into the tensors; everything after its rows becomes padding."""
        own, num_rows, width = self.tensors, len(layout.counts), self.tensors.tables.shape[1]
        for tensor, array, padding in (
            (own.token_ids, layout.token_ids, 0),
            (own.positions, layout.positions, 0),
            (own.places, layout.token_places, 0),
            (own.pages, layout.token_pages, self._cache.spare_page),
            (own.num_keys, layout.ends, 1),
        ):
            tensor.fill_(padding)
            tensor[:num_rows] = torch.from_numpy(array).to(self._device)
        tables = torch.from_numpy(layout.pages[:, :width]).to(self._device)
        own.tables.fill_(self._cache.spare_page)
        own.tables[:num_rows, : tables.shape[1]] = tables

    def warm_up(self, module: Any, stream: Any) -> torch.Tensor:
        """Run the step once on a separate stream, as recording requires, and return its logits [B, V]."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            logits = self._run(module)
        torch.cuda.current_stream().wait_stream(stream)
        return logits

    def record(self, module: Any, memory: Any, logits: torch.Tensor) -> None:
        """Record the step.

        Args:
            memory: a pool that all recorded steps share, since they run one after the other.
            logits: [B, V]: where the step leaves its logits. One tensor for each step would take gigabytes.
        """
        self._graph, self._logits = torch.cuda.CUDAGraph(), logits
        with torch.cuda.graph(self._graph, pool=memory):
            logits.copy_(self._run(module))

    def replay(self) -> torch.Tensor:
        """Run what was recorded: [B, V]."""
        self._graph.replay()
        return self._logits

    def _run(self, module: Any) -> torch.Tensor:
        # Made inside the recording: what it derives from the tensors, such as where keys go, must be recomputed in
        # every replay. One made during the warm-up would always use the places of the warm-up.
        attend = self._attend(self._cache, self.tensors)
        with torch.inference_mode(), attending(attend):
            output = module(
                input_ids=self.tensors.token_ids[None],
                position_ids=self.tensors.positions[None],
                use_cache=False,
                logits_to_keep=self._rows,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

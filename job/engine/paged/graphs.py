"""CUDA graphs for decode: a step of one token per row is recorded once per batch size and replayed after that.

A decode step launches hundreds of small kernels, which takes the host longer than the device needs to run them. Rows
are padded to one of a few sizes; padding reads and writes a page that belongs to nobody. Not run on a GPU yet.

Letters: B rows of a recorded size, W pages per row.
"""

from bisect import bisect_left
from typing import Any

import torch

from job.engine.paged.attention import attending
from job.engine.paged.cache import KVCache, Placement
from job.engine.paged.layout import Layout
from job.engine.paged.varlen_attention import VarlenAttention

SIZES = (1, 2, 4, 8, 16, 32, 64, *range(96, 1025, 32))
"""Rows of the recorded steps."""


class DecodeGraphs:
    """Runs decode steps of a model on one process. Larger ones than the largest size are not for it."""

    def __init__(self, module: Any, cache: KVCache, device: torch.device) -> None:
        """Record nothing yet: each size is recorded when it is first needed."""
        self._module, self._cache, self._device = module, cache, device
        self._recorded: dict[tuple[int, int], RecordedStep] = {}
        self._memory: Any = torch.cuda.graph_pool_handle()

    def fits(self, layout: Layout) -> bool:
        """Whether the step is one token for each of not too many rows."""
        return bool(len(layout.token_ids) == len(layout.counts) == len(layout.wanted_tokens) <= SIZES[-1])

    def run(self, layout: Layout) -> torch.Tensor:
        """Compute a step that fits and whose fresh pages are clear.

        Returns:
            [N, V]: logits; overwritten by the next step of the same size.
        """
        size = SIZES[bisect_left(SIZES, len(layout.counts))]
        width = 1 << (-(-int(layout.ends.max()) // self._cache.page_tokens) - 1).bit_length()
        if (size, width) not in self._recorded:
            recorded = RecordedStep(self._cache, size, width, self._device)
            recorded.fill(layout)
            recorded.record(self._module, self._memory)
            self._recorded[size, width] = recorded
        recorded = self._recorded[size, width]
        recorded.fill(layout)
        return recorded.replay()[: len(layout.counts)]


class RecordedStep:
    """The tensors that a recorded step reads, and its graph."""

    def __init__(self, cache: KVCache, size: int, width: int, device: torch.device) -> None:
        """Allocate what the step reads; all rows are padding."""
        self._cache, self._device = cache, device
        self._token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self._positions, self._places = torch.zeros_like(self._token_ids), torch.zeros_like(self._token_ids)
        self._pages = torch.full_like(self._token_ids, cache.spare_page)
        self._rows = torch.arange(size, device=device)
        self._tables = torch.full((size, width), cache.spare_page, dtype=torch.int32, device=device)
        self._num_keys = torch.ones(size, dtype=torch.int32, device=device)
        self._starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._max_keys = width * cache.page_tokens

    def fill(self, layout: Layout) -> None:
        """Write a step into the tensors; what is behind its rows becomes padding."""
        num_rows, width = len(layout.counts), self._tables.shape[1]
        host = (layout.token_ids, layout.positions, layout.token_places, layout.token_pages, layout.ends)
        own = (self._token_ids, self._positions, self._places, self._pages, self._num_keys)
        for tensor, array, padding in zip(own, host, (0, 0, 0, self._cache.spare_page, 1), strict=True):
            tensor.fill_(padding)
            tensor[:num_rows] = torch.from_numpy(array).to(self._device)
        tables = torch.from_numpy(layout.pages[:, :width]).to(self._device)
        self._tables.fill_(self._cache.spare_page)
        self._tables[:num_rows, : tables.shape[1]] = tables

    def record(self, module: Any, memory: Any) -> None:
        """Run the step once to warm up, as graphs need, and once more to record it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(module)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory):
            self._logits = self._run(module)

    def replay(self) -> torch.Tensor:
        """Run what was recorded: [B, V]."""
        self._graph.replay()
        return self._logits

    def _run(self, module: Any) -> torch.Tensor:
        placement = Placement(self._cache, self._pages, self._places)
        attend = VarlenAttention(
            self._cache,
            placement,
            self._tables,
            self._starts,
            self._num_keys,
            max_queries=1,
            max_keys=self._max_keys,
        )
        with torch.inference_mode(), attending(attend):
            output = module(
                input_ids=self._token_ids[None],
                position_ids=self._positions[None],
                use_cache=False,
                logits_to_keep=self._rows,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

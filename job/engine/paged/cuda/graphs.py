"""CUDA graphs: work is recorded once and replayed, so that the host need not launch each of its kernels.

A decode step launches hundreds of small kernels, which takes the host longer than the device needs to run them. This
has not run on a GPU yet.

With tensor parallelism, a recorded step contains NCCL's all-reduces: AutoTP's ``LinearAllreduce`` calls
``torch.distributed.all_reduce``, which can be recorded once the communicator exists. All ranks record the same steps in
the same order, since what is recorded follows from the steps that all of them get.
"""

import contextlib
from collections.abc import Callable

import torch

Work = Callable[[], None]


class Graphs:
    """Records work that reads and writes fixed addresses. All graphs share one pool: they run one after the other."""

    def __init__(self) -> None:
        """Prepare to record on a stream of its own."""
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, work: Work) -> Work:
        """Run work once, so that every kernel is compiled and every library ready, record it, and return its replay.

        Raises:
            Exception: whatever the work does that cannot be recorded, such as a copy to the host in the middle.
        """
        current = torch.cuda.current_stream()
        try:
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream):
                    work()
            finally:  # memory that the work still reads is not given away, even if it has failed half-way
                current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
                work()
        except Exception:
            self._end_recording()
            raise
        finally:
            torch.cuda.set_stream(current)  # after a failure, torch 2.11 leaves its own stream current
        replay: Work = graph.replay
        return replay

    def _end_recording(self) -> None:
        """Let the allocator forget a recording that failed, if torch has not: ``CUDAGraph::capture_end`` does not where
        the work has waited for the device. Else it would free no cached memory any more when memory is short, and
        record nothing else into this pool.
        """
        with contextlib.suppress(Exception):  # torch has
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._memory)
        self._memory = torch.cuda.graph_pool_handle()

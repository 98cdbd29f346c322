"""The device, and time on it."""

import os
import time
from collections.abc import Callable, Sequence

import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import tests.interpreting  # noqa: F401  it patches the interpreter

ON_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CUDA else "cpu")
HALF = torch.float16 if ON_CUDA else torch.float32
"""What models are measured in: the job's default on a GPU. On a CPU they are only rehearsed, and exact."""


def wait() -> None:
    """Wait until the device has done everything."""
    if ON_CUDA:
        torch.cuda.synchronize()


def chain_ms(runs: Sequence[Callable[[], object]], repeats: int = 10) -> float:
    """Return the ms of one of several runs: the median over replays of a recorded chain of all of them.

    A chain over several sets of inputs finds none of them in the device's cache; recorded, it waits for no launch.
    """
    if not ON_CUDA:
        return min(_secs(run) for run in runs) * 1e3
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return event_ms(graph.replay, repeats) / len(runs)


def event_ms(run: Callable[[], object], repeats: int) -> float:
    """Return the median ms between the events around a call."""
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def _secs(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin

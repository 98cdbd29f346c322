"""What a failed step means: told by classes and by where it was raised, never by words that a row may contain."""

from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from job.engine.failures import OUT_OF_MEMORY, describe_failure
from job.errors import JobError
from tests.conftest import finish, start_processes


def caught(raises: Callable[[], Any]) -> Exception:
    try:
        raises()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def raised(error: Exception) -> Exception:
    """Return an error with a traceback that leads here."""

    def fail() -> None:
        raise error

    return caught(fail)


def raised_in(module: str, error: Exception) -> Exception:
    """Return an error with a traceback that leads into a module."""

    def fail(error: Exception) -> None:
        raise error

    elsewhere = FunctionType(fail.__code__, {"__name__": module, "__builtins__": __builtins__})
    return caught(lambda: elsewhere(error))


ROWS = (
    "Connection to the igloo timed out",
    "NCCL: gloomy weather, Timed out",
    "text 'CUDA error: ' in a row",
    "not enough memory for the can't allocate memory test: out of memory",
    "CUDA error: quoted",
    "CUDA out of memory",
)


@pytest.mark.parametrize("text", ROWS)
@pytest.mark.parametrize("kind", [ValueError, KeyError, IndexError])
def test_words_of_a_row_are_not_a_failure_of_the_machine(kind: type[Exception], text: str) -> None:
    """A regression: an error that quoted a row's text with "igloo" ended the replica, at the same row at every
    restart.
    """
    error = raised(kind(text))
    assert describe_failure(error) == f"{kind.__name__}: {error!s}"


@pytest.mark.parametrize("text", ROWS[:4])
def test_nor_are_they_in_a_runtime_error_of_the_models_code(text: str) -> None:
    assert describe_failure(raised(RuntimeError(text))) == f"RuntimeError: {text}"


@pytest.mark.parametrize(
    "error",
    [
        caught(lambda: torch.empty(2**50)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:30],
)
def test_memory_that_ran_out_is_told_as_such(error: Exception) -> None:
    """The first one is what torch's allocator really raises."""
    assert describe_failure(raised(error)) == OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_broken_device_ends_the_run(error: Exception) -> None:
    with pytest.raises(JobError, match="The device failed"):
        describe_failure(raised(error))


@pytest.mark.parametrize(
    "error",
    [
        raised(dist.DistBackendError("NCCL communicator was aborted")),
        raised_in("torch.distributed.distributed_c10d", RuntimeError("[pair.cc:547] Connection closed by peer")),
        raised_in("torch.distributed", RuntimeError("whatever it says")),
    ],
    ids=str,
)
def test_a_collective_that_fails_ends_the_run(error: Exception) -> None:
    """gloo raises plain RuntimeErrors; so it counts that a function of torch.distributed raised it."""
    with pytest.raises(JobError, match="The connection to another process of this replica broke"):
        describe_failure(error)


def test_other_errors_from_there_are_not_failures_of_a_connection() -> None:
    """A wrong argument is the fault of who gave it; and a module may have a like name."""
    assert describe_failure(raised_in("torch.distributed.distributed_c10d", ValueError("odd"))) == "ValueError: odd"
    assert describe_failure(raised_in("torch.distributedly", RuntimeError("odd"))) == "RuntimeError: odd"


def test_what_gloo_really_raises_is_told_as_a_broken_connection(tmp_path: Path) -> None:
    """The other process dies while this one waits for it."""
    code = f"""
import os, sys, torch, torch.distributed as dist
from job.engine.failures import describe_failure
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{tmp_path / "meeting"}", rank=rank, world_size=2)
if rank == 1:
    os._exit(0)
try:
    dist.all_reduce(torch.zeros(3))
except Exception as error:
    try:
        describe_failure(error)
    except Exception as told:
        print(type(error).__name__, type(told).__name__, told, flush=True)
os._exit(0)
"""
    leader, follower = (start_processes(["-c", code, rank])[0] for rank in range(2))
    result, _ = finish([leader, follower])
    assert result.stdout.startswith("RuntimeError JobError The connection to another process of this replica broke: ")

"""Which attention serves: what is wrong with a kernel or a machine is one line, and the next best backend is used."""

import builtins
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import ATTENTION_BACKENDS
from job.engine.paged.attention import backends
from job.engine.paged.attention.backends import BACKENDS, COMPILED, KERNELS, TORCH, TRITON, choose_backend
from job.engine.paged.attention.cache import LayerShape
from job.engine.paged.attention.trial import largest_error
from job.engine.paged.cuda import compiling
from job.engine.paged.cuda.attention import TRIAL_TOKENS, TritonAttention
from job.engine.paged.cuda.launches import SPLIT_TOKENS
from job.errors import JobError
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from tests import plain_launches
from tests.interpreting import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU is pretended here")

SHAPES = {0: LayerShape(1, 16, 16, torch.float32, group=2)}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def replica() -> Replica:
    """A process by itself."""
    return Replica(read_process_info({}, 1))


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Triton keeps what it compiles, on a card that is new enough."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return tmp_path / "cache"


def test_users_know_the_backends_by_the_same_names() -> None:
    assert ("auto", *BACKENDS) == ATTENTION_BACKENDS


def test_the_one_that_is_named_serves(replica: Replica) -> None:
    assert choose_backend(SHAPES, replica, "plain") == (TORCH, None)
    assert choose_backend(SHAPES, replica, "cpp") == (COMPILED, None)


def test_one_that_is_named_and_cannot_serve_is_an_error(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    with pytest.raises(JobError) as failure:
        choose_backend(SHAPES, replica, "triton")
    told = "--attention-backend triton cannot serve this model here: Triton's kernels need a GPU. "
    told += "Use auto, cpp or plain."
    assert str(failure.value) == told
    assert COMPILED.problem(SHAPES, CUDA) == "the kernel for CPUs cannot serve cuda"


CAPPED = LayerShape(1, 16, 16, torch.float32, group=2, has_softcap=True, has_sinks=True)


def test_the_kernel_passes_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself takes minutes in the interpreter: with JOB_TEST_CASES=300."""
    if "JOB_TEST_CASES" not in os.environ:
        plain_launches.replace(monkeypatch)
    assert TRIAL_TOKENS > SPLIT_TOKENS
    assert largest_error(TRITON, CAPPED, CPU) < 1e-5


def test_a_kernel_that_is_wrong_beyond_a_split_alone_fails_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_launches.replace(monkeypatch)
    attend = TritonAttention._attend

    def spoilt(self: Any, output: torch.Tensor, *args: Any) -> None:
        attend(self, output, *args)
        if args[-1] > 1:  # splits
            output += 1

    monkeypatch.setattr(TritonAttention, "_attend", spoilt)
    assert largest_error(TRITON, CAPPED, CPU) > 0.9


def test_triton_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def fail(name: str, *args: Any) -> Any:
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'")
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", fail)
    assert TRITON.problem(SHAPES, CUDA) == "Triton cannot be imported: No module named 'triton'"


def test_a_card_that_is_too_old(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRITON.problem(SHAPES, CUDA) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert TRITON.problem(SHAPES, CUDA) == (
        "Triton needs a GPU of compute capability 8.0 or higher, and this one has 7.5"
    )


def test_a_cache_that_cannot_be_written_is_replaced(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a directory that no other user can write to; if there is none either, plain operations serve."""
    cache_dir.touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert compiling.problem(CUDA) is None
    used = Path(os.environ["TRITON_CACHE_DIR"])
    assert used.parent == tmp_path and used.is_dir() and used.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache_dir))
    monkeypatch.setattr("tempfile.tempdir", str(cache_dir))
    problem = compiling.problem(CUDA)
    assert problem is not None and problem.startswith("Triton cannot write to its cache: ")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Failed to find C compiler. Please specify"), "Triton needs a C compiler and python3-dev"),
        (subprocess.CalledProcessError(1, ["gcc"]), "Triton needs a C compiler and python3-dev"),
        (ValueError("out of range\nmore"), "ValueError: out of range"),
    ],
)
def test_a_launch_that_fails_in_the_trial(
    error: Exception, reason: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setitem(KERNELS, "cpu", TRITON)
    monkeypatch.setattr(TritonAttention, "__call__", fail)
    backend, told = choose_backend(SHAPES, replica)
    assert backend is backends.TORCH and told == reason

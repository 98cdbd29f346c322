"""Which device is used, asked for or promised; on a machine without one, so torch's answers are made up here."""

from typing import Any

import pytest
import torch

from job.errors import UsageError
from job.launch.devices import PROMISES, choose_device, likely_device
from job.launch.environment import read_process_info


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with nothing promised, and restore what is exported to DeepSpeed."""
    for name in (*PROMISES, "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def let_torch_find(monkeypatch: pytest.MonkeyPatch, num_devices: int, cuda: str | None = "13.0") -> list[Any]:
    """Make torch find so many GPUs. Returns the devices that are chosen."""
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.version, "cuda", cuda)

    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    return chosen


ALONE = read_process_info({}, 1)
PROMISED = (
    {"SLURM_GPUS_ON_NODE": "8"},
    {"SLURM_STEP_GPUS": "0"},
    {"SLURM_GPUS_PER_NODE": "a100:8"},
    {"SLURM_GPUS": "16"},
    {"SLURM_GPUS_PER_TASK": "1"},
    {"CUDA_VISIBLE_DEVICES": "0"},
    {"CUDA_VISIBLE_DEVICES": "MIG-c7384736-a75d-5afc-978f-d2f1294409fd"},
)


@pytest.mark.parametrize("env", PROMISED, ids=str)
def test_gpus_that_were_promised_but_are_not_there_are_refused(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with a broken driver spent its whole allocation on the CPU; unless the CPU was asked for."""
    let_torch_find(monkeypatch, 0)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    [(name, value)] = env.items()
    message = rf"^{name} is {value}, but torch finds no GPU: Found no NVIDIA driver .*nvidia-smi.* or use --device cpu"
    with pytest.raises(UsageError, match=message):
        choose_device(ALONE)
    assert choose_device(ALONE, "cpu") == torch.device("cpu")


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the commonest reason: pip took the CPU build."""
    let_torch_find(monkeypatch, 0, cuda=None)
    with pytest.raises(UsageError, match=r"^--device is cuda, but .* built without CUDA; install a build with CUDA"):
        choose_device(ALONE, "cuda")


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"CUDA_VISIBLE_DEVICES": "NoDevFiles"},
        {"SLURM_GPUS_ON_NODE": "0"},
        {"SLURM_JOB_ID": "7"},
        {"SLURM_GPUS_ON_NODE": "8", "DS_ACCELERATOR": "cpu"},
    ],
    ids=str,
)
def test_a_machine_to_which_no_gpu_was_promised_uses_its_cpu(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before; and DeepSpeed hears of it."""
    let_torch_find(monkeypatch, 0)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert choose_device(ALONE) == torch.device("cpu")
    assert likely_device() == torch.device("cpu")


def test_a_gpu_is_used_unless_the_cpu_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own; more processes than GPUs are refused."""
    chosen = let_torch_find(monkeypatch, 2)
    launch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    second = read_process_info(launch, 1)
    assert choose_device(second) == choose_device(second, "cuda") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)] * 2
    with pytest.raises(UsageError, match="3 processes on this node, but only 2 GPUs"):
        choose_device(read_process_info({**launch, "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, 1))
    assert (likely_device().type, likely_device("cpu").type) == ("cuda", "cpu")
    assert choose_device(ALONE, "cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"DS_ACCELERATOR is cpu\. Unset it"):
        choose_device(ALONE, "cuda")


def test_preview_needs_no_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a login node."""
    let_torch_find(monkeypatch, 0)
    monkeypatch.setenv("SLURM_GPUS", "8")
    assert (likely_device("cuda", is_gpu_named=True).type, likely_device().type) == ("cuda", "cpu")
    with pytest.raises(UsageError, match="such as --gpu h100"):
        likely_device("cuda")

"""Which device this process computes on: what the user asked for, what the launcher promised, and what torch finds."""

import os
from collections.abc import Mapping

import torch

from job.errors import UsageError, first_line
from job.launch.environment import ProcessInfo, export_process_info

PROMISES = (
    "SLURM_STEP_GPUS",
    "SLURM_GPUS_ON_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_GPUS",
    "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_TASK",
    "CUDA_VISIBLE_DEVICES",  # deepspeed sets it, too, for each process that it starts
)
"""Variables that a launcher, Slurm or the user sets if this process is to have a GPU."""

NO_GPUS = ("", "-1", "0:0", "none", "NoDevFiles")


def choose_device(info: ProcessInfo, wanted: str = "auto") -> torch.device:
    """Choose this process's GPU or the CPU, and pass the choice to DeepSpeed through the environment.

    Args:
        wanted: one of ``config.DEVICES``.

    Raises:
        UsageError: a GPU was asked for or promised, but torch finds none, or fewer than processes on this node.
    """
    on_cpu = _is_cpu_wanted(wanted)
    num_devices = 0 if on_cpu else torch.cuda.device_count()
    export_process_info(info, os.environ, num_devices)
    if not num_devices:
        if not on_cpu:
            _refuse_lost_gpus(wanted)
        os.environ["DS_ACCELERATOR"] = "cpu"
        if info.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // info.local_world_size))
        return torch.device("cpu")
    sees_its_own = info.launcher.hides_devices and num_devices == 1
    if info.local_world_size > num_devices and not sees_its_own:
        raise UsageError(
            f"There are {info.local_world_size} processes on this node, but only {num_devices} GPUs. Start one process "
            "per GPU, or use --device cpu."
        )
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def likely_device(wanted: str = "auto", *, is_gpu_named: bool = False) -> torch.device:
    """Return the kind of device that a run on a named GPU, or else on this machine, would use, without touching it.

    Raises:
        UsageError: a GPU is wanted, but none is named or here.
    """
    if is_gpu_named:
        return torch.device("cuda")
    found = not _is_cpu_wanted(wanted) and torch.cuda.device_count() > 0
    if wanted == "cuda" and not found:
        raise UsageError("--device is cuda, but torch finds no GPU here. Name the GPU of the run, such as --gpu h100.")
    return torch.device("cuda" if found else "cpu")


def promise_of(env: Mapping[str, str]) -> str | None:
    """Return the variable that promises a GPU, with its value. None if there is none.

    >>> promise_of({"SLURM_GPUS_ON_NODE": "8"}), promise_of({"CUDA_VISIBLE_DEVICES": ""})
    ('SLURM_GPUS_ON_NODE is 8', None)
    """
    for name in PROMISES:
        value = env.get(name, "")
        is_count = name not in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")  # those are indices
        if value not in NO_GPUS and not (is_count and value == "0"):
            return f"{name} is {value}"
    return None


def _is_cpu_wanted(wanted: str) -> bool:
    accelerator = os.environ.get("DS_ACCELERATOR")
    if wanted == "cuda" and accelerator == "cpu":
        raise UsageError("--device is cuda, but DS_ACCELERATOR is cpu. Unset it, or use --device cpu.")
    return wanted == "cpu" or accelerator == "cpu"


def _refuse_lost_gpus(wanted: str) -> None:
    """Refuse to use the CPU if a GPU was asked for or promised: it would take the time of the whole allocation.

    Raises:
        UsageError: one was.
    """
    promise = "--device is cuda" if wanted == "cuda" else promise_of(os.environ)
    if promise is not None:
        raise UsageError(
            f"{promise}, but torch finds no GPU: {_why_no_cuda()}. Fix that, or use --device cpu to compute on the CPU."
        )


def _why_no_cuda() -> str:
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return f"this torch ({torch.__version__}) was built without CUDA; install a build with CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"{first_line(error).rstrip('.')}; does nvidia-smi list the GPUs on this node?"
    return "the driver lists none; does nvidia-smi list them on this node?"

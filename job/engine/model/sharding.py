"""Cuts a model over the processes of a replica. The only place that calls ``deepspeed.init_inference``.

Both ``mpu`` and ``tp_group`` are needed: with only one, DeepSpeed 0.19.8 shards over the wrong processes or not at all.
Kernel injection is never used: it gives wrong tokens or crashes with current transformers. ``keep_module_on_host``
makes AutoTP cut without copying: a slice is a view of the mapped file.
"""

from typing import Any

import torch

from job.engine.model.deepspeed_setup import import_deepspeed, quiet_stdout
from job.engine.model.repairs import policy_of
from job.launch.replica import Replica


def computable_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes that DeepSpeed can shard in: those that the device computes in. Most CPUs lack float16."""
    half = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return (torch.float32, torch.bfloat16, *([torch.float16] if half else []))


def shard(model: Any, replica: Replica, *, verbose: bool) -> Any:
    """Cut a model in place, on the host and in its own dtype, which must be one of ``computable_dtypes``.

    All processes of the launch must call this at the same time.
    """
    deepspeed = import_deepspeed(verbose=verbose)
    options: dict[str, Any] = {"keep_module_on_host": True, "replace_with_kernel_inject": False}
    if replica.has_followers:
        size = replica.info.tensor_parallel_size
        options["tensor_parallel"] = {"tp_size": size, "tp_group": replica.tensor_group, "mpu": _Mpu(replica)}
        options |= {"injection_policy": policy} if (policy := policy_of(model)) else {}
    with quiet_stdout(verbose=verbose):  # AutoTP prints what it found, on every rank
        if replica.has_followers:
            deepspeed.init_distributed(dist_backend=replica.backend, verbose=False)  # finds the groups that torch made
        return deepspeed.init_inference(model, dtype=model.dtype, **options).module


class _Mpu:
    """The model-parallel unit that DeepSpeed asks for its group (a Megatron-LM interface)."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def get_model_parallel_group(self) -> Any:
        return self._replica.tensor_group

    def get_model_parallel_rank(self) -> int:
        return self._replica.info.tensor_parallel_rank

    def get_model_parallel_world_size(self) -> int:
        return self._replica.info.tensor_parallel_size

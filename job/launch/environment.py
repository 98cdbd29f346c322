"""Which process this is, read once from the launcher's environment. Knows no torch.

Four launchers, one answer:

| launcher            | how it is recognised                  | what it sets                                        |
|---------------------|---------------------------------------|-----------------------------------------------------|
| deepspeed, torchrun | RANK and WORLD_SIZE                   | LOCAL_RANK, LOCAL_SIZE / LOCAL_WORLD_SIZE, MASTER_* |
| srun                | SLURM_STEP_ID and SLURM_PROCID        | SLURM_STEP_NUM_TASKS, SLURM_LOCALID, nodelist       |
| none                | neither                               | nothing: one process                                |

Inside an sbatch script, but outside srun, SLURM_PROCID is set too, so it alone proves nothing.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from job.errors import PeerFailed, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One process of a launch. Ranks r*T to r*T+T-1 are replica r; the first of them is its leader."""

    rank: int
    world_size: int
    local_rank: int
    """Position on this node."""
    local_world_size: int
    """Processes on this node; 1 if the launcher does not say."""
    tensor_parallel_size: int
    master_addr: str
    master_port: int
    launcher: str
    """``deepspeed``, ``torchrun``, ``srun`` or ``none``."""

    @property
    def replica_idx(self) -> int:
        """Which copy of the model this process holds a part of."""
        return self.rank // self.tensor_parallel_size

    @property
    def num_replicas(self) -> int:
        """Copies of the model in this launch."""
        return self.world_size // self.tensor_parallel_size

    @property
    def tensor_parallel_rank(self) -> int:
        """Which part of the model; 0 is the leader."""
        return self.rank % self.tensor_parallel_size

    @property
    def is_leader(self) -> bool:
        """Whether this process reads, schedules, samples and writes for its replica."""
        return self.tensor_parallel_rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user how the launch goes: one does."""
        return self.rank == 0


def read_process_info(env: Mapping[str, str], tensor_parallel_size: int) -> ProcessInfo:
    """Read the launcher's environment.

    Raises:
        UsageError: the world size is not a multiple of ``tensor_parallel_size``, or a variable is not a number.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        info = _from_torch(env, tensor_parallel_size)
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        info = _from_slurm(env, tensor_parallel_size)
    else:
        info = ProcessInfo(
            rank=0,
            world_size=1,
            local_rank=0,
            local_world_size=1,
            tensor_parallel_size=tensor_parallel_size,
            master_addr="127.0.0.1",
            master_port=0,
            launcher="none",
        )
    if info.world_size % tensor_parallel_size:
        below = info.world_size // tensor_parallel_size * tensor_parallel_size
        choices = [n for n in (below, below + tensor_parallel_size) if n]
        raise UsageError(
            f"WORLD_SIZE is {info.world_size}, which is not a multiple of --tensor-parallel-size "
            f"{tensor_parallel_size}. Start {' or '.join(map(str, choices))} processes."
        )
    return info


def export_process_info(info: ProcessInfo, env: MutableMapping[str, str], num_visible_devices: int) -> None:
    """Write the variables that torch and DeepSpeed read.

    DeepSpeed takes LOCAL_RANK as the device index. A task that sees only its own GPU (``--gpus-per-task=1``) must
    therefore say 0, whatever its place on the node.
    """
    device_idx = info.local_rank % num_visible_devices if num_visible_devices else info.local_rank
    env.update(
        RANK=str(info.rank),
        WORLD_SIZE=str(info.world_size),
        LOCAL_RANK=str(device_idx),
        LOCAL_SIZE=str(info.local_world_size),
        MASTER_ADDR=info.master_addr,
        MASTER_PORT=str(info.master_port),
    )


def _int(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = env.get(name, default)
    if value is None or not re.fullmatch(r"\d+", value):
        raise UsageError(f"The environment variable {name} is {value!r}, not a number. Which launcher set it?")
    return int(value)


def _from_torch(env: Mapping[str, str], tensor_parallel_size: int) -> ProcessInfo:
    return ProcessInfo(
        rank=_int(env, "RANK"),
        world_size=_int(env, "WORLD_SIZE"),
        local_rank=_int(env, "LOCAL_RANK", "0"),
        local_world_size=_int(env, "LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", "1")),
        tensor_parallel_size=tensor_parallel_size,
        master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_int(env, "MASTER_PORT", "29500"),
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in env else "deepspeed",
    )


def _from_slurm(env: Mapping[str, str], tensor_parallel_size: int) -> ProcessInfo:
    nodelist = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    return ProcessInfo(
        rank=_int(env, "SLURM_PROCID"),
        world_size=_int(env, "SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")),
        local_rank=_int(env, "SLURM_LOCALID", "0"),
        local_world_size=_slurm_tasks_here(env),
        tensor_parallel_size=tensor_parallel_size,
        master_addr=env.get("MASTER_ADDR") or first_host(nodelist) or "127.0.0.1",
        master_port=_int(env, "MASTER_PORT", str(slurm_port(env))),
        launcher="srun",
    )


def _slurm_tasks_here(env: Mapping[str, str]) -> int:
    """Return the tasks on this node: SLURM_TASKS_PER_NODE is like "2(x3),1", an entry a node when expanded."""
    tasks_per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "1")
    counts = [
        int(m["count"])
        for m in re.finditer(r"(?P<count>\d+)(\(x(?P<times>\d+)\))?", tasks_per_node)
        for _ in range(int(m["times"] or 1))
    ]
    node_idx = _int(env, "SLURM_NODEID", "0")
    return counts[node_idx] if node_idx < len(counts) else 1


def slurm_port(env: Mapping[str, str]) -> int:
    """Derive the rendezvous port from the job and the step, so that jobs and steps that share a node do not meet.

    Stays below the ephemeral range (32768 on Linux), where the kernel may have given the number away.
    """
    job_id, step_id = _int(env, "SLURM_JOB_ID", "0"), _int(env, "SLURM_STEP_ID", "0")
    return 20_000 + (job_id * 37 + step_id) % 12_000


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list.

    >>> first_host("node[03-05,9],other"), first_host("gpu-a1,gpu-a2"), first_host("r[1-2]n[3-4]")
    ('node03', 'gpu-a1', 'r1n3')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else ""


def is_first_process(env: Mapping[str, str]) -> bool:
    """Whether this is rank 0, as far as the launcher says."""
    in_slurm_step = "SLURM_STEP_ID" in env
    return env.get("RANK", env.get("SLURM_PROCID", "0") if in_slurm_step else "0") == "0"


@contextlib.contextmanager
def told_once(env: Mapping[str, str]) -> Iterator[None]:
    """Let only rank 0 tell of a mistake that every process of a launch makes alike.

    Raises:
        PeerFailed: in place of the ``UsageError``, on the others.
    """
    try:
        yield
    except UsageError as error:
        if is_first_process(env):
            raise
        raise PeerFailed(error.exit_code) from None

"""Which process this is, read once from the launcher's environment. Imports no torch, and names no launcher.

``launchers.LAUNCHERS`` lists where each launcher puts its values; one parser reads them all.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from job.errors import PeerFailed, UsageError
from job.launch.commands import options_of_run, shell_line
from job.launch.launchers import NO_LAUNCHER, Launcher, Source, launcher_of


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
    launcher: Launcher
    """The launcher that started it."""

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
        """Which part of the model this process holds; 0 is the leader."""
        return self.rank % self.tensor_parallel_size

    @property
    def is_leader(self) -> bool:
        """Whether this process reads, schedules, samples and writes for its replica."""
        return self.tensor_parallel_rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this process reports to the user. One process of a launch does."""
        return self.rank == 0


def read_process_info(
    env: Mapping[str, str], tensor_parallel_size: int, typed: Sequence[str] = ("run", "...")
) -> ProcessInfo:
    """Read the launcher's environment.

    Args:
        typed: what the user typed after ``job``, for the command that a message proposes.

    Raises:
        UsageError: the world size is not a multiple of ``tensor_parallel_size``, a variable is not a number, or
            the launcher does not say which of several nodes rank 0 is on.
    """
    launcher = launcher_of(env)
    info = ProcessInfo(
        rank=_number(env, launcher.rank, 0),
        world_size=_number(env, launcher.world_size, 1),
        local_rank=_number(env, launcher.local_rank, 0),
        local_world_size=_number(env, launcher.local_world_size, 1),
        tensor_parallel_size=tensor_parallel_size,
        master_addr=_value(env, launcher.master_addr) or "127.0.0.1",
        master_port=_number(env, launcher.master_port, 29500),
        launcher=launcher,
    )
    if info.world_size % tensor_parallel_size:
        raise UsageError(_wrong_world(info, options_of_run(typed)))
    num_here = _value(env, launcher.local_world_size)
    if num_here and int(num_here) < info.world_size and not _value(env, launcher.master_addr):
        raise UsageError(
            f"{launcher.name} does not say which node rank 0 is on. Set MASTER_ADDR to that host for all processes."
        )
    return info


def not_a_multiple(what: str, num_processes: int, tensor_parallel_size: int) -> str:
    """Say that processes cannot be divided into replicas, and which numbers can.

    >>> not_a_multiple("3 GPUs", 3, 2)
    '3 GPUs cannot be shared out with --tensor-parallel-size 2. Use 2 or 4.'
    """
    below = num_processes // tensor_parallel_size * tensor_parallel_size
    choices = " or ".join(str(n) for n in (below, below + tensor_parallel_size) if n)
    return f"{what} cannot be shared out with --tensor-parallel-size {tensor_parallel_size}. Use {choices}."


def _wrong_world(info: ProcessInfo, options: Sequence[str]) -> str:
    """Say that the processes cannot be divided into replicas, and how to start as many as are needed."""
    size = info.tensor_parallel_size
    launcher = info.launcher if info.world_size > 1 else NO_LAUNCHER
    if launcher is NO_LAUNCHER:
        problem = f"--tensor-parallel-size {size} needs {size} processes, but this is a single one."
    else:
        problem = not_a_multiple(f"The {info.world_size} processes of this launch", info.world_size, size)
    is_one_node = info.local_world_size in (1, info.world_size)
    if not is_one_node:
        return problem
    num_processes = -(-info.world_size // size) * size
    command = [word.format(n=num_processes) for word in launcher.command]
    if options[:1] == ["chain"] and command[-1] == "run":
        del command[-1]
    return f"{problem} Start them with: {shell_line([*command, *options])}"


EXPORTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
"""The variables that a run sets for torch and DeepSpeed."""


def export_process_info(info: ProcessInfo, env: MutableMapping[str, str], num_visible_devices: int) -> None:
    """Set the variables that torch and DeepSpeed read.

    DeepSpeed uses LOCAL_RANK as the device index. In a task that sees only its own GPU (``--gpus-per-task=1``), it must
    therefore be 0, whatever the task's position on the node.
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


def _value(env: Mapping[str, str], sources: tuple[Source, ...]) -> str:
    """Return the value of the first source that has one. Empty if none has."""
    values = (env.get(source, "") if isinstance(source, str) else source(env) for source in sources)
    return next(filter(None, values), "")


def _number(env: Mapping[str, str], sources: tuple[Source, ...], default: int) -> int:
    value = _value(env, sources)
    if value and not re.fullmatch(r"\d+", value):
        name = next(source for source in sources if isinstance(source, str) and env.get(source) == value)
        raise UsageError(f"The environment variable {name} is {value!r}, not a number. Check the launcher that set it.")
    return int(value or default)


def is_first_process(env: Mapping[str, str]) -> bool:
    """Whether this is rank 0, as far as the launcher says."""
    return _value(env, launcher_of(env).rank) in ("", "0")


@contextlib.contextmanager
def told_once(env: Mapping[str, str]) -> Iterator[None]:
    """Let only rank 0 report an error that every process of a launch has in the same way.

    Raises:
        PeerFailed: on the other processes, in place of the ``UsageError``.
    """
    try:
        yield
    except UsageError as error:
        if is_first_process(env):
            raise
        raise PeerFailed(error.exit_code) from None

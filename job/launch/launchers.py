"""The launchers that this project knows, as a table: how each is recognized, and where it puts its values.

To add a launcher, add an entry to ``LAUNCHERS``. Kubernetes needs none: Kubeflow's trainer sets torch's variables, and
a JobSet can set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its pod template.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from job.launch import slurm

Env = Mapping[str, str]
Source = str | Callable[[Env], str]
"""The name of a variable, or a function that derives a value that no variable has. An empty value counts as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """One launcher. Each value has its sources in order of preference; if none has it, a default is used."""

    name: str
    recognized_by: tuple[str, ...] = ()
    """Variables that are all set in its processes, and not in those of the launchers after it in the table."""
    rank: tuple[Source, ...] = ()
    world_size: tuple[Source, ...] = ()
    local_rank: tuple[Source, ...] = ()
    local_world_size: tuple[Source, ...] = ()
    master_addr: tuple[Source, ...] = ()
    master_port: tuple[Source, ...] = ()
    programs: tuple[str, ...] = ()
    """Executables that start processes and wait for them: a process must not outlive them."""
    packages: tuple[str, ...] = ()
    """Packages of such programs that are started with ``python -m``."""
    start_all: str = "Start all of them with one command of the launcher."
    """What to tell a user whose processes do not all come."""
    command: tuple[str, ...] = ("job", "launch", "--gpus", "{n}")
    """What starts ``{n}`` processes of ``job run``; its options follow."""
    port_option: str = "MASTER_PORT"
    """Where the user sets the port of the rendezvous."""
    hides_devices: bool = False
    """Whether it can show each process only its own GPU, so that one visible GPU does not mean one GPU for all."""

    def is_recognized_in(self, env: Env) -> bool:
        """Whether it started the process with this environment."""
        return all(name in env for name in self.recognized_by)


def _mpi_port(env: Env) -> str:
    """Derive the rendezvous port from the name of the MPI job, so that two jobs on one node do not collide."""
    return str(20_000 + zlib.crc32(env.get("PMIX_NAMESPACE", "").encode()) % 12_000)


NO_LAUNCHER = Launcher(name="none")

LAUNCHERS = (
    Launcher(
        name="torchrun",
        recognized_by=("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
        rank=("RANK",),
        world_size=("WORLD_SIZE",),
        local_rank=("LOCAL_RANK",),
        local_world_size=("LOCAL_WORLD_SIZE",),
        master_addr=("MASTER_ADDR",),
        master_port=("MASTER_PORT",),
        programs=("torchrun",),
        command=("torchrun", "--no-python", "--nproc-per-node", "{n}", "job", "run"),
        port_option="--master-port",
        packages=("torch.distributed",),
    ),
    Launcher(
        name="deepspeed",  # and anything else that sets torch's variables
        recognized_by=("RANK", "WORLD_SIZE"),
        start_all="Start all of them with job launch, deepspeed or torchrun.",
        port_option="--master_port of deepspeed, or MASTER_PORT",
        rank=("RANK",),
        world_size=("WORLD_SIZE",),
        local_rank=("LOCAL_RANK",),
        local_world_size=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
        master_addr=("MASTER_ADDR",),
        master_port=("MASTER_PORT",),
        programs=("deepspeed",),
        command=("deepspeed", "--no_python", "--num_gpus", "{n}", "job", "run"),
        packages=("deepspeed",),
    ),
    Launcher(
        name="mpirun",  # Open MPI. Before srun, which starts its daemons in an allocation and sets their SLURM_PROCID
        recognized_by=("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        rank=("OMPI_COMM_WORLD_RANK",),
        world_size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_world_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
        master_addr=("MASTER_ADDR",),
        master_port=("MASTER_PORT", _mpi_port),
        programs=("mpirun", "mpiexec", "prterun", "prted", "orted"),
        command=("mpirun", "-n", "{n}", "job", "run"),
    ),
    Launcher(
        name="mpiexec",  # MPICH and its relatives, by their process manager Hydra
        recognized_by=("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
        rank=("PMI_RANK",),
        world_size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID",),
        local_world_size=("MPI_LOCALNRANKS",),
        master_addr=("MASTER_ADDR",),
        master_port=("MASTER_PORT",),
        programs=("mpiexec.hydra", "hydra_pmi_proxy"),
        command=("mpiexec", "-n", "{n}", "job", "run"),
    ),
    Launcher(
        name="srun",
        # Inside an sbatch script, but outside srun, SLURM_PROCID is set too, so it alone proves nothing.
        recognized_by=("SLURM_STEP_ID", "SLURM_PROCID"),
        start_all="In a shell of srun --pty, put srun before the command.",
        rank=("SLURM_PROCID",),
        world_size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=("SLURM_LOCALID",),
        local_world_size=(slurm.tasks_here,),
        master_addr=("MASTER_ADDR", slurm.first_node),
        master_port=("MASTER_PORT", slurm.port),
        programs=("slurmstepd",),
        command=("srun", "--ntasks", "{n}", "job", "run"),
        hides_devices=True,  # --gpus-per-task=1
    ),
)
"""In the order in which they are tried: a launcher that runs inside another one's allocation comes before that one."""


def launcher_of(env: Env) -> Launcher:
    """Return the launcher that started the process with this environment."""
    return next((launcher for launcher in LAUNCHERS if launcher.is_recognized_in(env)), NO_LAUNCHER)

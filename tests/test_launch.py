"""Which process this is, as each launcher says it; and real launches of several processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import UsageError
from job.launch import slurm
from job.launch.environment import export_process_info, is_first_process, read_process_info
from tests.conftest import Result, finish, free_port, start_processes
from tests.oracle import greedy_texts
from tests.test_run import read_output, write_jsonl

ROOT = Path(__file__).parents[1]
QUESTIONS = ROOT / "scripts/demo-data/gsm8k-200.jsonl"

SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[1-2]",
}


def test_a_plain_process_is_a_world_of_its_own() -> None:
    """Inside an sbatch script without srun, too: SLURM_PROCID is set there, SLURM_STEP_ID is not."""
    for env in ({}, {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}):
        info = read_process_info(env, 1)
        assert (info.rank, info.world_size, info.launcher.name) == (0, 1, "none")
        assert info.is_leader and info.speaks


def test_torch_variables_win_over_slurm() -> None:
    """deepspeed or torchrun under srun: they know better."""
    torch_env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1234"}
    info = read_process_info({**SRUN, **torch_env, "LOCAL_SIZE": "4"}, 2)
    assert (info.rank, info.world_size, info.local_rank, info.local_world_size) == (5, 8, 1, 4)
    assert (info.master_addr, info.master_port, info.launcher.name) == ("h", 1234, "deepspeed")
    assert (info.replica_idx, info.num_replicas, info.tensor_parallel_rank, info.is_leader) == (2, 4, 1, False)
    assert read_process_info({**torch_env, "TORCHELASTIC_RUN_ID": "x"}, 1).launcher.name == "torchrun"


def test_srun_variables_are_mapped() -> None:
    """The step's values, not the job's."""
    info = read_process_info(SRUN, 2)
    assert (info.rank, info.world_size, info.local_rank, info.local_world_size) == (3, 4, 1, 2)
    assert (info.master_addr, info.launcher.name) == ("node1", "srun")
    assert (info.replica_idx, info.tensor_parallel_rank) == (1, 1)


OPEN_MPI = {  # as mpirun 5.0.11 sets them
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-node1-13514@1",
    "PMIX_RANK": "1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}  # as mpiexec 5.0.2


@pytest.mark.parametrize(("name", "env"), [("mpirun", OPEN_MPI), ("mpiexec", MPICH)])
def test_variables_of_mpi_are_mapped(name: str, env: dict[str, str]) -> None:
    """In a Slurm allocation, too, where mpirun's daemons are tasks of a step."""
    for variables in (env, {**SRUN, **env}):
        info = read_process_info(variables, 1)
        assert (info.rank, info.world_size, info.local_rank, info.local_world_size) == (1, 2, 1, 2)
        assert (info.launcher.name, info.master_addr) == (name, "127.0.0.1")
        assert not is_first_process(variables)


def test_mpi_over_several_nodes_needs_to_be_told_the_first() -> None:
    """Each node would wait for a rank 0 of its own."""
    env = {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4"}
    with pytest.raises(UsageError, match=r"mpirun does not say which node rank 0 is on. Set MASTER_ADDR"):
        read_process_info(env, 1)
    assert read_process_info({**env, "MASTER_ADDR": "node1"}, 1).master_addr == "node1"


def test_the_port_differs_between_jobs_and_steps() -> None:
    """Two jobs may share a node, and a job may have several steps at once."""
    ports = {slurm.port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}) for job in range(50) for step in (0, 1)}
    assert len(ports) == 100
    assert all(20_000 <= int(port) < 32_000 for port in ports)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node[03-05,9],other", "node03"),
        ("gpu-a1,gpu-a2", "gpu-a1"),
        ("r[1-2]n[3-4]", "r1n3"),
        ("one", "one"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    """It is the rendezvous address."""
    assert slurm.first_host(nodelist) == host


@pytest.mark.parametrize(("num_visible", "local_rank", "device"), [(0, 3, "3"), (1, 3, "0"), (4, 3, "3"), (2, 3, "1")])
def test_a_task_that_sees_one_gpu_uses_device_0(num_visible: int, local_rank: int, device: str) -> None:
    """``--gpus-per-task=1`` shows each task its own GPU under number 0; ``--gpus-per-node`` shows all to all."""
    env: dict[str, str] = {}
    info = read_process_info({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": str(local_rank)}, 1)
    export_process_info(info, env, num_visible)
    assert env["LOCAL_RANK"] == device
    assert (env["RANK"], env["WORLD_SIZE"]) == ("3", "4")


def test_a_world_that_cannot_be_divided_is_refused() -> None:
    """With the numbers that would do."""
    with pytest.raises(UsageError, match=r"The 6 processes of .* 4\. Use 4 or 8\. Start them with"):
        read_process_info({"RANK": "0", "WORLD_SIZE": "6"}, 4)
    with pytest.raises(UsageError, match="RANK is 'x', not a number"):
        read_process_info({"RANK": "x", "WORLD_SIZE": "6"}, 1)


@pytest.mark.parametrize(
    ("env", "command"),
    [
        ({}, "job launch --gpus 4"),
        ({"RANK": "0", "WORLD_SIZE": "6"}, "deepspeed --no_python --num_gpus 8 job run"),
        (
            {"RANK": "0", "WORLD_SIZE": "6", "TORCHELASTIC_RUN_ID": "x"},
            "torchrun --no-python --nproc-per-node 8 job run",
        ),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "6"}, "srun --ntasks 8 job run"),
    ],
    ids=["none", "deepspeed", "torchrun", "srun"],
)
def test_the_command_that_starts_enough_processes_is_printed(env: dict[str, str], command: str) -> None:
    """With the user's own options, ready for the shell. A user of one process knows no WORLD_SIZE."""
    typed = ["--local_rank=0", "run", "--tensor-parallel-size", "4", "--prompt-template", "{{ a }}\nb"]
    with pytest.raises(UsageError) as raised:
        read_process_info(env, 4, typed)
    expected = f"Start them with: {command} --tensor-parallel-size 4 --prompt-template $'{{{{ a }}}}\\nb'"
    assert str(raised.value).endswith(expected)
    with pytest.raises(UsageError, match=f"{command.removesuffix(' run')} chain c.toml --limit 3$"):
        read_process_info(env, 4, ["chain", "c.toml", "--limit", "3"])


def run_questions(model: Path, output: Path, *options: Any) -> list[Any]:
    """Return the arguments of a job on the first 6 real questions, in fp32."""
    return [
        *["run", "--model", model, "--dataset", QUESTIONS, "--limit", 6, "--prompt-column", "question"],
        *["--dtype", "float32", "--max-new-tokens", 8, "--rows-per-shard", 2, "--output", output, *options],
    ]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """Return the demo's model, which scripts/test makes."""
    path = os.environ.get("JOB_TEST_MODEL")
    if not path:
        pytest.skip("JOB_TEST_MODEL is not set: run scripts/test")
    return Path(path)


@pytest.mark.slow
def test_smollm2_gives_the_tokens_of_transformers_in_every_layout(
    smollm2: Path, run_job: Callable[..., Result], tmp_path: Path
) -> None:
    """One process; and two replicas of two processes on one run directory, 9 heads and 3 KV heads cut unevenly."""
    alone = run_job(*run_questions(smollm2, tmp_path / "1"))
    args = run_questions(smollm2, tmp_path / "2x2", "--tensor-parallel-size", 2)
    results = finish(start_processes(["-m", "job", *args], 4))
    assert [result.exit_code for result in (alone, *results)] == [0] * 5, results
    assert "6 rows in 3 parts" in alone.stdout and "6 rows in 3 parts" in results[0].stdout
    assert [result.stdout for result in results[1:]] == [""] * 3, "one process speaks"
    tables = [read_output(tmp_path / name) for name in ("1", "2x2")]
    expected = greedy_texts(smollm2, tables[0]["prompt"].to_pylist(), 8, special=False)
    for table in tables:
        assert table["completion"].to_pylist() == expected
        assert table["row_idx"].to_pylist() == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launchers_start_the_job(tiny_model: Callable[..., Path], tmp_path: Path, launcher: str) -> None:
    """With what they put into the arguments and the environment; and though the user has a file of that name: with
    ``--module job`` it would run instead, and end with exit code 0.
    """
    command = {
        "deepspeed": ["-q", "--num_gpus", "2", "--master_port", str(free_port()), "--no_python", "job"],
        "torchrun": ["--nproc-per-node", "2", "--master-port", str(free_port()), "--no-python", "job"],
    }[launcher]
    (tmp_path / "job.py").write_text("print('a foreign job')")
    (tmp_path / "job").mkdir()
    args = run_questions(tiny_model(), tmp_path / "out", "--tensor-parallel-size", 2)
    bin_dir = Path(sys.executable).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{bin_dir}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [str(arg) for arg in [bin_dir / launcher, *command, *args]]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "6 rows in 3 parts" in result.stdout and "foreign" not in result.stdout
    texts = read_output(tmp_path / "out")
    assert texts["completion"].to_pylist() == greedy_texts(tiny_model(), texts["prompt"].to_pylist(), 8, special=True)


@pytest.mark.slow
def test_a_mistake_is_told_once_by_a_launch_of_several(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """All processes leave with exit code 2, before weights are loaded."""
    args = run_questions(tiny_model(), tmp_path / "out", "--tensor-parallel-size", 2, "--prompt-column", "text")
    results = finish(start_processes(["-m", "job", *args], 2))
    assert [result.exit_code for result in results] == [2] * 2
    errors = "".join(result.stderr for result in results)
    assert errors.count("has no column 'text'") == 1
    assert "Traceback" not in errors


@pytest.mark.slow
def test_one_process_concludes_a_finished_run_for_all(
    tiny_model: Callable[..., Path], run_job: Callable[..., Result], tmp_path: Path
) -> None:
    """Each read the footers of all parts. What is wrong with one is told once, too."""
    args = run_questions(tiny_model(), tmp_path / "out", "--engine", "fake")
    assert run_job(*args).exit_code == 0
    code = (
        "import sys, job.output.looking.totals as totals; from job.cli import program; count_all = totals.count_all\n"
        "def count(directory): print('footers', file=sys.stderr); return count_all(directory)\n"
        "totals.count_all = count; program()"
    )
    results = finish(start_processes(["-c", code, *args], 2))
    assert [result.exit_code for result in results] == [0] * 2, results
    assert [result.stderr.count("footers") for result in results] == [1, 0]
    assert "all 6 rows are already done" in results[0].stderr
    (tmp_path / "out/data/part-00001.parquet").write_bytes(b"damaged")
    results = finish(start_processes(["-c", code, *args], 2))
    assert [result.exit_code for result in results] == [1] * 2, results
    errors = "".join(result.stderr for result in results)
    assert errors.count("job: ") == 1 and "part-00001.parquet is not a part of this run" in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_full_disk_under_the_log_does_not_end_a_run(
    full: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """What it would have told is lost, its rows are not; and the exit code is true."""
    args = run_questions(tiny_model(), tmp_path / "out", "--engine", "fake")
    with Path("/dev/full").open("w") as disk:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: disk}
        command = [sys.executable, "-m", "job", *map(str, args)]
        result = subprocess.run(command, cwd=ROOT, text=True, timeout=120, **streams)
    assert result.returncode == 0, result
    assert read_output(tmp_path / "out")["row_idx"].to_pylist() == list(range(6))
    if full == "stdout":
        assert "the summary cannot be written to standard output: No space left on device" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_what_a_command_prints_is_a_failure(
    tiny_model: Callable[..., Path], run_job: Callable[..., Result], tmp_path: Path
) -> None:
    assert run_job(*run_questions(tiny_model(), tmp_path / "out", "--engine", "fake")).exit_code == 0
    status = [sys.executable, "-m", "job", "status", str(tmp_path / "out")]
    with Path("/dev/full").open("w") as disk:
        told = subprocess.run(status, cwd=ROOT, text=True, timeout=120, stdout=disk, stderr=subprocess.PIPE)
    assert (told.returncode, told.stderr) == (1, "job: the output cannot be written: No space left on device.\n")


@pytest.mark.slow
def test_a_follower_that_dies_takes_its_replica_down(
    tiny_model: Callable[..., Path], run_job: Callable[..., Result], tmp_path: Path
) -> None:
    """At once and with a line that says so; then another number of processes finishes the run."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"number {i}"} for i in range(160)])
    args = [
        *["run", "--model", tiny_model(), "--dataset", data, "--dtype", "float32"],
        *["--max-new-tokens", 24, "--rows-per-shard", 40, "--max-batch-rows", 8, "--output"],
    ]
    assert run_job(*args, tmp_path / "undisturbed").exit_code == 0
    args = [*args, tmp_path / "out"]
    processes = start_processes(["-m", "job", *args, "--tensor-parallel-size", 2], 2)
    while not list((tmp_path / "out").glob("journal/*.arrows")):
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    processes[1].kill()
    leader, _ = finish(processes)
    assert leader.exit_code == 1
    assert "another process" in leader.stderr.splitlines()[-1]
    assert "Traceback" not in leader.stderr
    resumed = run_job(*args)
    assert resumed.exit_code == 0, resumed.stderr
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "undisturbed"))

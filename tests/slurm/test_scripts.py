"""The sbatch scripts without a Slurm: what they start, which exit codes they give, and when they requeue."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT

SCRIPTS = ("one-node.sbatch", "multi-node.sbatch", "array.sbatch")

STUBS = {
    # srun runs its command here, which is what each task does; the tasks' code is what the test asks for
    "srun": 'echo "srun ${*//$\'\\n\'/ }" >>"$CALLS"; while [ "$1" != bash ]; do shift; done; exec "$@"',
    "job": 'echo "job $*" >>"$CALLS"; [ -z "$SIGNAL" ] || kill -"$SIGNAL" $PPID $$; '
    'echo "offline $HF_HUB_OFFLINE $HF_DATASETS_OFFLINE" >>"$CALLS.offline"; '
    '[ "$CODE" = unavailable ] && exit "$JOB_EXIT_UNAVAILABLE" || exit "$CODE"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"; case $1 in show) echo "JobState=COMPLETING Reason=$REASON" ;; '
    'requeue) [ -z "$REFUSE" ] || { echo "$REFUSE" >&2; exit 1; }; [ -z "$ENDED" ] || kill -TERM $$ ;; esac',
    "sleep": 'echo "sleep $*" >>"$CALLS"',
}


@dataclass(frozen=True)
class Ended:
    """What a script did."""

    exit_code: int
    calls: list[str]
    log: str

    @property
    def requeues(self) -> list[str]:
        """The jobs that were put back into the queue."""
        return [call.removeprefix("scontrol requeue ") for call in self.calls if call.startswith("scontrol requeue")]


class Scripts:
    """Runs a script with stand-ins for Slurm's commands and for ``job``."""

    def __init__(self, home: Path) -> None:
        """Make the stand-ins."""
        self.home, self._calls = home, home / "calls"
        (home / ".venv/bin").mkdir(parents=True)
        (home / ".venv/bin/activate").write_text("")
        shutil.copytree(ROOT / "slurm", home / "slurm")
        (home / "bin").mkdir()
        for name, text in STUBS.items():
            (home / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (home / "bin" / name).chmod(0o755)

    def run(self, script: str = "one-node.sbatch", *args: str, code: int | str = 0, **env: str) -> Ended:
        """Run it as the batch shell of job 7 does."""
        self._calls.write_text("")
        variables = {
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "CALLS": str(self._calls),
            "SLURM_SUBMIT_DIR": str(self.home),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node1",
            "CODE": str(code),
            **env,
        }
        result = subprocess.run(
            ["bash", self.home / "slurm" / script, *args], env=variables, capture_output=True, text=True, timeout=20
        )
        return Ended(result.returncode, self._calls.read_text().splitlines(), result.stderr)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """Return the scripts in a home of their own."""
    return Scripts(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_job_run_with_what_its_top_block_says(scripts: Scripts, script: str) -> None:
    """And with the script's own arguments behind it, so that they win."""
    ended = scripts.run(script, "--limit", "10 or so")
    srun, job = ended.calls
    assert srun.startswith("srun --kill-on-bad-exit=1 --export=ALL bash -c ")
    assert job.startswith("job run --model /shared/models/")
    assert job.endswith(
        " --dataset /shared/data/questions.jsonl --output /shared/runs/questions --prompt-column question"
        " --max-new-tokens 256 --limit 10 or so"
    )
    assert (ended.exit_code, ended.requeues) == (0, [])


def test_a_command_in_the_environment_is_not_run(scripts: Scripts) -> None:
    """`job submit` sets an array COMMAND in its script, and sbatch exports the user's environment."""
    ended = scripts.run(COMMAND="echo mine")
    assert ended.exit_code == 0 and ended.calls[-1].startswith("job run --model ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_asks_slurm_for_what_a_restart_needs(script: str) -> None:
    """And for as many tasks as GPUs; the lines must stand before the first command, or sbatch does not read them."""
    lines = (ROOT / "slurm" / script).read_text().splitlines()
    first_command = next(idx for idx, line in enumerate(lines) if line and not line.startswith("#"))
    asked = {line.removeprefix("#SBATCH ") for line in lines[:first_command] if line.startswith("#SBATCH ")}
    assert {"--signal=USR1@180", "--requeue", "--open-mode=append"} <= asked
    values = dict(option.split("=", 1) for option in asked if "=" in option)
    assert values["--ntasks-per-node"] == values["--gpus-per-node"]
    assert len([line for line in lines if line.startswith("#SBATCH ")]) == len(asked)


def test_only_a_stop_on_request_is_requeued(scripts: Scripts) -> None:
    """All other exit codes are passed on as they are."""
    for code in (0, 1, 2, 3, 137):
        ended = scripts.run(code=code)
        assert (ended.exit_code, ended.requeues) == (code, []), ended.log
    ended = scripts.run(code=75)
    assert (ended.exit_code, ended.requeues) == (75, ["7"])
    assert ended.calls[-1] == "sleep 300"
    assert "stopped, and requeued: restart 1 of at most 50" in ended.log


def test_a_hub_that_does_not_answer_is_waited_for_in_the_queue(scripts: Scripts) -> None:
    """The code is that of a failure, but this one alone may be over soon."""
    ended = scripts.run(code="unavailable")
    assert (ended.exit_code, ended.requeues) == (1, ["7"])
    assert "job run ended with exit code 1" in ended.log
    assert "the Hub or a store did not answer, and requeued: restart 1 of at most 50" in ended.log
    last = scripts.run(code="unavailable", SLURM_RESTART_COUNT="50")
    assert (last.exit_code, last.requeues) == (1, [])
    assert "the Hub or a store did not answer, and restarted 50 times already" in last.log


@pytest.mark.parametrize(("typed", "seen"), [({}, "1 1"), ({"HF_HUB_OFFLINE": "0"}, "0 0")], ids=repr)
def test_nodes_with_internet_access_may_go_online(scripts: Scripts, typed: dict[str, str], seen: str) -> None:
    """The user's own choice wins."""
    scripts.run(**typed)
    assert (scripts.home / "calls.offline").read_text() == f"offline {seen}\n"


@pytest.mark.parametrize(
    ("task_codes", "exit_code", "requeues"),
    [((1, 75), 1, []), ((75, "unavailable", 3), 3, []), (("unavailable", 75), 1, ["7"])],
    ids=repr,
)
def test_a_failure_is_not_hidden_by_the_tasks_that_were_stopped_for_it(
    scripts: Scripts, task_codes: tuple[int | str, ...], exit_code: int, requeues: list[str]
) -> None:
    """srun returns the largest code: 1 beside 75 came out as 75, and a failed run was requeued 50 times."""
    srun = "".join(f'CODE={code} "$@"; codes+=($?);' for code in task_codes)
    (scripts.home / "bin/srun").write_text(
        '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\ncodes=()\n'
        f'{srun}\nprintf \'%s\\n\' ${{codes[@]}} | sort -n | tail -n 1 >"$CALLS.max"\nexit "$(<"$CALLS.max")"\n'
    )
    ended = scripts.run()
    assert (ended.exit_code, ended.requeues) == (exit_code, requeues), ended.log


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_signal_before_python_listens_is_a_stop_on_request(scripts: Scripts, signal: str) -> None:
    """It kills the process while it imports its libraries: a preemption a second after the start.

    A step's signals reach all of its processes, so also the shell around ``job run``, which must live on.
    """
    ended = scripts.run(SIGNAL=signal)
    assert (ended.exit_code, ended.requeues) == (75, ["7"]), ended.log


def test_requeues_are_bounded(scripts: Scripts) -> None:
    """By the count of all restarts, Slurm's own included; beyond it nothing is started."""
    assert scripts.run(code=75, SLURM_RESTART_COUNT="49").requeues == ["7"]
    last = scripts.run(code=75, SLURM_RESTART_COUNT="50")
    assert (last.exit_code, last.requeues) == (75, [])
    assert "restarted 50 times already (MAX_REQUEUES). Nothing is lost: submit it again to continue" in last.log
    beyond = scripts.run(code=0, SLURM_RESTART_COUNT="51")
    assert (beyond.exit_code, beyond.calls) == (75, [])


def test_an_array_task_requeues_itself_and_not_the_whole_array(scripts: Scripts) -> None:
    """The SLURM_JOB_ID of an array's last task is the id of the array."""
    array = {"SLURM_JOB_ID": "34", "SLURM_ARRAY_JOB_ID": "34", "SLURM_ARRAY_TASK_ID": "3"}
    assert scripts.run("array.sbatch", code=75, **array).requeues == ["34_3"]


def test_a_site_that_refuses_requeues_gets_one_clear_line(scripts: Scripts) -> None:
    """And exit code 75."""
    refusal = "Requested operation is presently disabled for job 7"
    ended = scripts.run(code=75, REFUSE=refusal)
    assert ended.exit_code == 75
    assert f"this site refuses a requeue ({refusal}). Nothing is lost: submit it again to continue" in ended.log


def test_a_requeue_that_ends_scontrol_at_once_is_no_refusal(scripts: Scripts) -> None:
    """A regression: Slurm ends all that a batch shell has started, also what has just asked for the requeue."""
    ended = scripts.run(code=75, ENDED="1")
    assert (ended.exit_code, ended.requeues) == (75, ["7"])
    assert "stopped, and requeued: restart 1 of at most 50" in ended.log and "refuses" not in ended.log


@pytest.mark.parametrize(("reason", "requeues"), [("TimeLimit", ["7"]), ("None", [])])
def test_what_slurm_has_ended_is_requeued_only_at_the_time_limit(
    scripts: Scripts, reason: str, requeues: list[str]
) -> None:
    """The batch shell gets TERM after scancel, too, and a cancelled job must not come back."""
    (scripts.home / "bin/srun").write_text("#!/bin/bash\nkill -TERM $PPID\nexit 75\n")
    ended = scripts.run(REASON=reason)
    assert (ended.exit_code, ended.requeues) == (75, requeues), ended.log


def test_a_missing_environment_is_told_before_anything_starts(scripts: Scripts) -> None:
    """Exit code 2, which is never requeued."""
    (scripts.home / "bin/job").unlink()
    ended = scripts.run(PATH=f"{scripts.home}/bin:/usr/bin:/bin")
    assert (ended.exit_code, ended.calls) == (2, [])
    assert "the command 'job' is missing after activate" in ended.log
    (scripts.home / ".venv/bin/activate").unlink()
    assert scripts.run().exit_code == 2
    shutil.rmtree(scripts.home / "slurm")
    shutil.copytree(ROOT / "slurm", scripts.home / "moved")
    (scripts.home / "slurm").mkdir()
    (scripts.home / "slurm/one-node.sbatch").symlink_to(scripts.home / "moved/one-node.sbatch")
    lost = scripts.run()
    assert lost.exit_code == 2
    assert f"{scripts.home}/slurm/run.sh: No such file or directory" in lost.log


def test_a_container_stands_between_srun_and_the_command(scripts: Scripts) -> None:
    """As srun's options (pyxis) or as a command (apptainer); the environment may be in it alone."""
    script = scripts.home / "slurm/one-node.sbatch"
    text = script.read_text().replace("CONTAINER=()", "CONTAINER=(--container-image=a.sqsh --container-mounts='/a b')")
    script.write_text(text)
    (scripts.home / "bin/inside").mkdir()
    ended = scripts.run()
    assert ended.calls[0].startswith(
        "srun --kill-on-bad-exit=1 --export=ALL --container-image=a.sqsh --container-mounts=/a b bash -c "
    )

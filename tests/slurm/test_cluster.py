"""Runs on a real Slurm, and what happens to them there. Each must end with the table of an undisturbed run.

What happens to a run is a scenario, a function. All scenarios that are asked for go on at the same time on nodes of
their own, since most of their time is waiting for Slurm's clocks; a test waits for its scenario and looks at the table.

No scenario counts on the speed of the machine: its run is slow until what is to happen has happened, and then fast.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result
from tests.slurm.cluster import FAKE, NUM_ROWS, PATIENCE_SECS, ROWS_PER_SHARD, SLOW, Lab, Submitted, until
from tests.test_run import read_output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_SECS)]

Scenario = Callable[[Lab], Submitted]

NUM_AT_ONCE = 5
"""Each launch needs seconds of processor time to import its libraries."""


def scenario(function: Scenario) -> Callable[[Any], Any]:
    """Say which scenario a test is about."""

    def decorate(test: Any) -> Any:
        test.scenario = function
        return test

    return decorate


@pytest.fixture(scope="module")
def futures(request: pytest.FixtureRequest, lab: Lab) -> Iterator[dict[Scenario, Future[Submitted]]]:
    """Start the scenarios of all tests that were asked for."""
    tests = [item.function for item in request.session.items if isinstance(item, pytest.Function)]
    wanted = [test.scenario for test in tests if hasattr(test, "scenario")]
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        yield {function: pool.submit(function, lab) for function in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def submitted(request: pytest.FixtureRequest, futures: dict[Scenario, Future[Submitted]]) -> Submitted:
    """Wait for a test's scenario, and return the submission that finished the run."""
    return futures[request.function.scenario].result()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Path]:
    """Return the output of the undisturbed run of each command line, as far as there is one yet."""
    return {}


@pytest.fixture
def check(
    submitted: Submitted, undisturbed: dict[str, Path], run_job: Callable[..., Result], tmp_path: Path
) -> Callable[[], None]:
    """Return a function that compares a run's table with an undisturbed run's, and sees that nothing is left over."""

    def run(output: Path) -> Path:
        # One process, whatever it was on Slurm: the last --tensor-parallel-size counts.
        result = run_job("run", *submitted.arguments, "--tensor-parallel-size", 1, "--output", output)
        assert result.exit_code == 0, result.stderr
        return output

    def compare() -> None:
        arguments = str(submitted.arguments)
        if arguments not in undisturbed:
            undisturbed[arguments] = run(tmp_path / "out")
        expected = undisturbed[arguments]
        assert read_output(submitted.output).equals(read_output(expected))
        assert {path.name for path in submitted.output.iterdir()} == {path.name for path in expected.iterdir()}
        assert list(submitted.output.glob("journal/*")) == list(submitted.output.glob("leases/[0-9]*")) == []

    return compare


def time_limit(lab: Lab) -> Submitted:
    """Meet the time limit once. It is set when the first rows are there, and lifted before the next launch."""
    run = lab.submit(
        "one-node.sbatch",
        "time-limit",
        nodes=[1],
        step_secs=SLOW,
        sbatch=["--time=60", "--signal=USR1@120"],
    )
    run.wait_for_workers(1)
    # A limit is whole minutes since the start. This one is one to two minutes away, so the signal is due at once.
    hours, minutes, _ = run.show()["RunTime"].split(":")
    run.set_time_limit(60 * int(hours) + int(minutes) + 2)
    until(lambda: "stopped on SIGUSR1" in run.log, run.explain)
    run.set_time_limit(60)
    run.speed_up()
    run.wait_done()
    return run


def cut_cable(lab: Lab) -> Submitted:
    """Cut a worker off. It goes on, and Slurm starts another in its place."""
    run = lab.submit(
        "array.sbatch",
        "cut-cable",
        nodes=[5, 6, 7],
        step_secs=SLOW,
        sbatch=["--array=0-1", "--gpus-per-node=4"],
    )
    run.wait_for_workers(2)
    old = next(run.task(idx) for idx in range(2) if run.task(idx).show()["NodeList"] == "node5")
    other = next(run.task(idx) for idx in range(2) if run.task(idx).show()["NodeList"] == "node6")
    lab.cluster.node("cut-net", "node5")
    # Let its shard be taken over while it is away, and go on with it: two workers write one shard.
    shard, pid = next((shard, pid) for shard, (host, pid) in run.leases().items() if host == "node5")
    lab.cluster.node("exec", "node5", "kill", "-STOP", pid)
    part = run.output / f"data/part-{shard}.parquet"
    until(lambda: run.leases().get(shard, ("node5", 0))[0] != "node5" or part.exists(), run.explain)
    lab.cluster.node("exec", "node5", "kill", "-CONT", pid)
    old.wait_for(lambda job: job["Restarts"] == "1" and job["NodeList"] == "node7")
    num_bytes = len(run.metrics("node5"))
    until(lambda: len(run.metrics("node5")) > num_bytes, lambda: "the old worker writes no more")
    run.speed_up()
    old.wait_done()
    other.wait_done()
    until(lambda: not run.leases(), run.explain)
    return run


def power_cut(lab: Lab) -> Submitted:
    """Cut a worker's power. The other one takes its shard over and finishes the run before Slurm has noticed."""
    run = lab.submit(
        "array.sbatch",
        "power-cut",
        nodes=[3, 4],
        step_secs=SLOW,
        sbatch=["--array=0-1", "--gpus-per-node=4"],
    )
    run.wait_for_workers(2)
    dead = next(run.task(idx) for idx in range(2) if run.task(idx).show()["NodeList"] == "node3")
    other = next(run.task(idx) for idx in range(2) if run.task(idx).show()["NodeList"] == "node4")
    lab.cluster.node("kill-node", "node3")
    run.speed_up()
    other.wait_done()
    assert len(list(run.output.glob("data/part-*"))) == NUM_ROWS // ROWS_PER_SHARD
    restarted = dead.wait_done()
    assert (restarted["Restarts"], restarted["NodeList"]) == ("1", "node4")
    assert f"all {NUM_ROWS:,} rows are already done" in run.log
    return run


def preemption(lab: Lab) -> Submitted:
    """Let a job of a higher partition take a node from two array tasks. Only TERM comes, and only to their steps."""
    run = lab.submit(
        "array.sbatch",
        "preemption",
        nodes=[8],
        step_secs=SLOW,
        sbatch=["--partition=low", "--array=0-1"],
        options=[*FAKE, "--metrics-port", 9400, "--on-end", f"cat >> {told_of(lab)}"],
    )
    until(lambda: len(run.leases()) >= 2, run.explain)
    lab.cluster.command(
        *["sbatch", "--parsable", "--partition=main", "--nodelist=node8", "--exclusive", "--time=1"],
        *["--output=/dev/null", "--wrap=sleep 3"],
    )
    until(lambda: run.log.count("stopped on SIGTERM") == 2, run.explain)
    run.speed_up()
    assert [run.task(idx).wait_done()["Restarts"] for idx in range(2)] == ["1", "1"]
    assert run.log.count("stopped, and requeued: restart 1 of at most 50") == 2
    ports = re.findall(r"figures for Prometheus: http://127\.0\.0\.1:(94\d\d)/metrics", run.log)
    assert len(ports) == 4 and len(set(ports)) > 1, "two tasks on a node, twice"
    return run


def told_of(lab: Lab) -> Path:
    """Return the file to which ``--on-end`` adds what it gets of the tasks that are preempted."""
    return lab.directory / "preempted.jsonl"


def stopped_by_hand(lab: Lab) -> Submitted:
    """Stop a run where the site allows no requeue, cancel the next one, and let the third finish."""

    def submit(*sbatch: str, step_secs: float = SLOW) -> Submitted:
        return lab.submit("one-node.sbatch", "stopped", nodes=[2], step_secs=step_secs, sbatch=sbatch)

    first = submit("--no-requeue")
    first.wait_for_workers(1)
    lab.cluster.command("scancel", "--signal=TERM", first.job_id)
    job = first.wait()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "75:0"), first.log
    assert "this site refuses a requeue" in first.log
    assert first.leases() == {}
    second = submit()
    until(second.leases, second.explain)
    lab.cluster.command("scancel", second.job_id)
    job = second.wait()
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), second.log
    assert second.log.count("stopped on SIGTERM") == 2
    assert second.leases() == {}
    third = submit(step_secs=0)
    third.wait_done()
    assert second.show()["JobState"] == "CANCELLED"
    return third


def array_of_four(lab: Lab) -> Submitted:
    """Kill one task of four for good."""
    run = lab.submit(
        "array.sbatch",
        "array-of-four",
        nodes=[9, 10],  # all four must be at work at the same time, so no other run is there
        step_secs=SLOW,
        sbatch=["--array=0-3", "--gpus-per-node=2"],
    )
    until(lambda: len(run.leases()) >= 4, run.explain)
    run.wait_for_workers(2)
    host, pid = next(iter(run.leases().values()))
    lab.cluster.node("exec", host, "kill", "-KILL", pid)
    run.speed_up()
    jobs = [run.task(idx).wait() for idx in range(4)]
    ends = sorted((job["JobState"], job["ExitCode"], job["Restarts"]) for job in jobs)
    assert ends == [("COMPLETED", "0:0", "0")] * 3 + [("FAILED", "137:0", "0")], run.log
    return run


def one_node(lab: Lab) -> Submitted:
    """Leave two replicas on one node in peace."""
    run = lab.submit(
        "one-node.sbatch",
        "one-node",
        nodes=[1],
        num_rows=1280,
        step_secs=0.1,
        sbatch=["--ntasks-per-node=2", "--gpus-per-node=2"],
    )
    run.wait_done()
    return run


def two_nodes(lab: Lab) -> Submitted:
    """Leave two replicas of two processes each in peace: here with a model, since the fake engine has none to share."""
    run = lab.submit(
        "multi-node.sbatch",
        "two-nodes",
        nodes=[1, 2],
        num_rows=640,
        sbatch=["--ntasks-per-node=2", "--gpus-per-node=2"],
        options=["--dtype", "float32", "--max-new-tokens", 4, "--tensor-parallel-size", 2],
    )
    job = run.wait_done()
    assert job["NodeList"] == "node[1-2]"
    return run


def stopped_while_loading(lab: Lab) -> Submitted:
    """Preempt a launch of four processes on two nodes while it loads its model."""
    run = lab.submit(
        "multi-node.sbatch",
        "while-loading",
        nodes=[1, 2],
        num_rows=640,
        sbatch=["--ntasks-per-node=2", "--gpus-per-node=2"],
        options=["--dtype", "float32", "--max-new-tokens", 4, "--tensor-parallel-size", 2],
    )
    until(lambda: "loading" in run.log, run.explain)
    lab.cluster.command("scancel", "--signal=TERM", run.job_id)
    until(lambda: "job run ended with exit code 75" in run.log, run.explain)
    assert run.log.count("stopped on SIGTERM before the first row") == 1, run.log
    assert run.wait_done()["Restarts"] == "1"
    return run


def hub_that_does_not_answer(lab: Lab) -> Submitted:
    """Let two replicas read a dataset of a Hub that cannot be reached until they are started again."""
    home, commit = lab.directory / "hf", "c" * 40
    folder = home / "hub/datasets--acme--data"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "data.jsonl").write_text('{"id": 1, "prompt": "a"}\n' * 640)
    run = lab.submit(
        "one-node.sbatch",
        "no-hub",
        nodes=[2],
        num_rows=640,
        sbatch=["--ntasks-per-node=2", "--gpus-per-node=2"],
        options=["--engine", "fake", "--dataset", "acme/data", "--hub-timeout", 1],
        env={"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0"},
    )
    run.wait_done()
    return run


@scenario(time_limit)
def test_the_time_limit_is_met_and_the_run_finishes(submitted: Submitted, check: Callable[[], None]) -> None:
    """USR1 some time before it, exit 75, back into the queue; one log of both launches."""
    check()
    num_restarts = int(submitted.show()["Restarts"])
    assert num_restarts >= 1, "more where the limit was not lifted before the next launch had begun"
    assert submitted.log.count("job run ended with exit code 75") == num_restarts
    assert submitted.log.count("stopped on SIGUSR1") > 0
    assert submitted.log.count("job run ended with exit code 0") == 1


@scenario(cut_cable)
def test_two_workers_on_one_shard_do_no_harm_when_a_cable_is_cut(check: Callable[[], None]) -> None:
    """Slurm gives the node up and starts the task elsewhere, while the old worker still writes."""
    check()


@scenario(power_cut)
def test_a_node_without_power_is_finished_for_by_the_others(check: Callable[[], None]) -> None:
    """They do not wait for Slurm; the task that it restarts later finds everything done."""
    check()


@scenario(preemption)
def test_preempted_tasks_requeue_themselves_and_finish(
    submitted: Submitted, check: Callable[[], None], lab: Lab
) -> None:
    """Slurm would call a job complete whose tasks end in the grace time. Each requeues itself, not the whole array.

    Each of the four launches says how it ended, within the grace time; one of them has completed the run.
    """
    told = [json.loads(line) for line in told_of(lab).read_text().splitlines()]
    assert sorted((each["state"], each["exit_code"]) for each in told) == [("done", 0)] * 2 + [("stopped", 75)] * 2
    assert [each["completed_run"] for each in told].count(True) == 1
    assert {each["reason"] for each in told if each["state"] == "stopped"} == {"SIGTERM"}
    assert {each["launch"]["slurm_job_id"] for each in told} == {f"{submitted.job_id}_{idx}" for idx in range(2)}
    check()


@scenario(stopped_by_hand)
def test_a_cancelled_run_stays_cancelled_and_the_next_submission_finishes(check: Callable[[], None]) -> None:
    """Each stop gives the leases back."""
    check()


@scenario(array_of_four)
def test_an_array_goes_on_without_a_task_that_was_killed(check: Callable[[], None]) -> None:
    """It is not requeued, since nobody asked it to stop; the others take its shard over."""
    check()


@scenario(stopped_while_loading)
def test_a_launch_that_is_stopped_while_it_loads_goes_back_into_the_queue(check: Callable[[], None]) -> None:
    """A regression: signals were not heard until the model was loaded, or the dataset converted. Slurm killed the
    tasks, and 137 is not requeued.
    """
    check()


@scenario(hub_that_does_not_answer)
def test_a_job_goes_back_into_the_queue_when_the_hub_does_not_answer(submitted: Submitted) -> None:
    """A regression: an outage of half a minute ended jobs. Other failures still do."""
    assert submitted.show()["Restarts"] == "1", submitted.log
    assert "job: The Hub (acme/data) has not answered for 1 s: Connection refused. Nothing is lost" in submitted.log
    assert submitted.log.count("job run ended with exit code 1\n") == 1
    assert "the Hub or a store did not answer, and requeued: restart 1 of at most 50" in submitted.log
    assert read_output(submitted.output).num_rows == 640


@scenario(one_node)
def test_one_node_with_two_replicas(submitted: Submitted, check: Callable[[], None]) -> None:
    """From sbatch to the finished table."""
    check()
    assert "1,280 rows in 4 parts" in submitted.log


@scenario(two_nodes)
def test_two_nodes_with_two_replicas_of_two_processes(submitted: Submitted, check: Callable[[], None]) -> None:
    """From sbatch to the finished table."""
    check()
    assert "2 replicas of 2 processes" in submitted.log

"""Leases and claims: one holder at a time, dead and silent ones replaced, living ones respected."""

import dataclasses
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from job.launch.processes import start_time_of
from job.output.parts.plan import Plan
from job.output.sharing import worker as worker_module
from job.output.sharing.claims import Claims
from job.output.sharing.leases import Leases, read_holder
from job.output.sharing.worker import WorkerId
from tests.run_files import RunFiles

MakeLeases = Callable[..., Leases]


@pytest.fixture
def paths(tmp_path: Path) -> RunFiles:
    paths = RunFiles(tmp_path, 10)
    paths.directory.prepare()
    return paths


@pytest.fixture
def make_leases(paths: RunFiles) -> Iterator[MakeLeases]:
    """Workers, by name. The heartbeat is slow enough never to beat within a test, unless asked to."""
    made: list[Leases] = []

    def make(worker: WorkerId, *, timeout_secs: float = 60.0, beat_secs: float = 1e6, **more: Any) -> Leases:
        made.append(Leases(paths.directory, worker, timeout_secs=timeout_secs, beat_secs=beat_secs, **more))
        return made[-1]

    yield make
    for leases in made:
        leases.close()


def elsewhere(name: str) -> WorkerId:
    """A worker of another host, of which nobody here can tell whether it runs."""
    return WorkerId(name, 1, "1", "other", "0")


def dead_worker() -> WorkerId:
    """A process of this host that has ended."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    here = WorkerId.of_this_process()
    worker = dataclasses.replace(here, pid=process.pid, start_time=start_time_of(process.pid) or "")
    assert not worker.is_dead()
    process.communicate()
    return worker


def make_silent(lease: Path, secs: float) -> None:
    then = time.time() - secs
    os.utime(lease, (then, then))


def race_for_shard_3(workers: list[Leases]) -> list[Leases]:
    """Let all try in the same instant, and return those who got it."""
    barrier, winners = threading.Barrier(len(workers)), []

    def acquire(worker: Leases) -> None:
        barrier.wait()
        if worker.acquire(3):
            winners.append(worker)

    threads = [threading.Thread(target=acquire, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_one_of_many_threads_gets_a_shard(make_leases: MakeLeases) -> None:
    workers = [make_leases(elsewhere(f"n{idx}")) for idx in range(12)]
    winners = race_for_shard_3(workers)
    assert len(winners) == 1


def test_one_of_many_threads_takes_over_a_dead_workers_lease(make_leases: MakeLeases, paths: RunFiles) -> None:
    make_leases(dead_worker()).acquire(3)
    workers = [make_leases(elsewhere(f"n{idx}")) for idx in range(12)]
    make_silent(paths.lease(3), 100)
    winners = race_for_shard_3(workers)
    # Of two who see the dead lease, the slower may rename the faster one's new lease away for an instant, and a third
    # may come in: two on one shard are allowed, none is not.
    assert winners
    assert [path.name for path in paths.lease_dir.iterdir() if path.name.endswith(".tmp")] == []


def test_shards_are_held_apart(make_leases: MakeLeases) -> None:
    a, b = make_leases(elsewhere("a")), make_leases(elsewhere("b"))
    assert a.acquire(1) and b.acquire(2)
    assert not a.acquire(2) and not b.acquire(1)


def test_a_released_shard_is_free(make_leases: MakeLeases, paths: RunFiles) -> None:
    a, b = make_leases(elsewhere("a")), make_leases(elsewhere("b"))
    assert a.acquire(1)
    a.release(1)
    assert not paths.lease(1).exists()
    assert b.acquire(1) and not a.acquire(1)


def test_releasing_what_another_took_over_leaves_it_alone(make_leases: MakeLeases, paths: RunFiles) -> None:
    a, b = make_leases(elsewhere("a")), make_leases(elsewhere("b"))
    a.acquire(1)
    make_silent(paths.lease(1), 61)
    assert b.acquire(1)
    a.release(1)
    assert paths.lease(1).exists() and not make_leases(elsewhere("c")).acquire(1)


def test_a_dead_process_is_replaced_at_once(make_leases: MakeLeases) -> None:
    dead = dead_worker()
    assert make_leases(dead).acquire(1)
    assert dead.is_dead()
    assert make_leases(WorkerId.of_this_process()).acquire(1)


def test_a_later_process_with_the_same_number_is_not_the_holder() -> None:
    here = WorkerId.of_this_process()
    assert not here.is_dead()
    assert dataclasses.replace(here, start_time="1").is_dead()


def test_start_times_are_those_that_leases_of_older_versions_hold() -> None:
    """In clock ticks since boot, from the kernel itself: or else a mixed launch would take living workers for dead."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert start_time_of(os.getpid()) == fields[19]


@pytest.mark.parametrize("start_time", ["", "1722945600.25", "2026-08-06T12:00:00"])
def test_a_start_time_in_the_form_of_another_version_does_not_make_a_living_worker_dead(start_time: str) -> None:
    """Silence decides then."""
    assert not dataclasses.replace(WorkerId.of_this_process(), start_time=start_time).is_dead()


def test_a_process_that_may_not_be_seen_is_not_declared_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid, /proc shows users only their own processes: others' workers on this node were taken for dead."""

    def hide(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    here = WorkerId.of_this_process()
    monkeypatch.setattr(psutil, "Process", hide)
    monkeypatch.setattr(os, "kill", refuse)
    assert not here.is_dead()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "container"}])
def test_nobody_is_declared_dead_from_another_host_or_container(change: dict[str, str]) -> None:
    assert not dataclasses.replace(dead_worker(), **change).is_dead()


def test_without_proc_nobody_is_declared_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, every living worker was taken for dead, and its shard taken over."""
    monkeypatch.setattr(worker_module, "start_time_of", lambda pid: None)
    monkeypatch.setattr(worker_module, "pid_namespace", lambda: worker_module.UNKNOWN)
    assert not WorkerId.of_this_process().is_dead()


def test_the_user_hears_once_of_a_holder_elsewhere_that_may_be_dead(make_leases: MakeLeases, paths: RunFiles) -> None:
    """Its lease is not taken over yet, and meanwhile nothing seems to happen."""
    make_leases(elsewhere("n7")).acquire(1)
    heard: list[str] = []
    waiting = make_leases(elsewhere("n8"), note=heard.append)
    make_silent(paths.lease(1), 10)
    assert not waiting.acquire(1) and heard == []
    make_silent(paths.lease(1), 20)
    assert not waiting.acquire(1) and not waiting.acquire(1)
    [text] = heard
    assert text == "process 1 on n7 has been silent for 20 s: after 60 s it counts as dead, and its rows are taken over"


@pytest.mark.parametrize(("silent_secs", "is_ours"), [(0, False), (59, False), (61, True), (1e6, True)])
def test_a_silent_holder_elsewhere_is_replaced_after_its_time(
    make_leases: MakeLeases, paths: RunFiles, silent_secs: float, is_ours: bool
) -> None:
    make_leases(elsewhere("a")).acquire(1)
    make_silent(paths.lease(1), silent_secs)
    assert make_leases(elsewhere("b"), timeout_secs=60).acquire(1) is is_ours


def test_a_living_holder_here_is_respected(make_leases: MakeLeases) -> None:
    make_leases(WorkerId.of_this_process()).acquire(1)
    assert not make_leases(elsewhere("b")).acquire(1)


@pytest.mark.parametrize("content", ["", "{", '{"host": "a"}', "[1]"])
def test_a_lease_that_says_nothing_is_nobodys_once_it_is_stale(
    make_leases: MakeLeases, paths: RunFiles, content: str
) -> None:
    """While it is young it may be being written, on a file system without hard links."""
    paths.lease(1).write_text(content)
    assert not make_leases(elsewhere("a")).acquire(1)
    make_silent(paths.lease(1), 100)
    assert make_leases(elsewhere("a")).acquire(1)


def test_a_holder_that_changed_meanwhile_keeps_its_lease(
    make_leases: MakeLeases, paths: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B sees A's silent lease; before B renames it, C has taken over. B must put C's lease back."""
    a, b, c = (make_leases(elsewhere(name)) for name in "abc")
    a.acquire(1)
    make_silent(paths.lease(1), 100)
    now = Leases._now

    def overtaken(self: Leases) -> float:
        if self is b:
            assert c.acquire(1)
            make_silent(paths.lease(1), 100)
        return now(self)

    monkeypatch.setattr(Leases, "_now", overtaken)
    assert not b.acquire(1)
    assert read_holder(paths.store, paths.names.lease(1)) == elsewhere("c")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_lease_is_put_back_without_hard_links(
    make_leases: MakeLeases, paths: RunFiles, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some FUSE and SMB mounts have none: the worker that took another's new lease by mistake ended."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(os, "link", refuse)
    test_a_holder_that_changed_meanwhile_keeps_its_lease(make_leases, paths, monkeypatch)


def test_a_lease_that_another_client_has_removed_is_free(
    make_leases: MakeLeases, paths: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers ESTALE where a local disk has no such file."""
    make_leases(elsewhere("a")).acquire(1)

    def stale(fd: int) -> Any:
        paths.lease(1).unlink()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    worker = make_leases(elsewhere("b"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        assert worker.acquire(1)
    assert read_holder(paths.store, paths.names.lease(1)) == elsewhere("b")


def test_the_heartbeat_keeps_a_lease_fresh(make_leases: MakeLeases, paths: RunFiles) -> None:
    worker = make_leases(elsewhere("a"), beat_secs=0.001)
    worker.acquire(1)
    make_silent(paths.lease(1), 1000)
    for _ in range(100_000):
        if time.time() - paths.lease(1).stat().st_mtime < 500:
            return
    pytest.fail("no heartbeat")


def test_close_gives_everything_back(make_leases: MakeLeases, paths: RunFiles) -> None:
    worker = make_leases(elsewhere("a"))
    assert worker.acquire(1) and worker.acquire(2)
    worker.close()
    assert list(paths.lease_dir.iterdir()) == []
    assert not any(thread.name == "lease-heartbeat" and thread is worker._thread for thread in threading.enumerate())


def test_a_killed_process_leaves_its_lease_to_the_next(make_leases: MakeLeases, paths: RunFiles) -> None:
    """End to end, without a word from the dead one."""
    code = (
        "import os, sys; from pathlib import Path; from tests.run_files import RunFiles\n"
        "from job.output.sharing.leases import Leases; from job.output.sharing.worker import WorkerId\n"
        "assert Leases(RunFiles(Path(sys.argv[1]), 10).directory, WorkerId.of_this_process()).acquire(1)\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, paths.root], cwd=Path(__file__).parents[1]).returncode == 9
    assert paths.lease(1).exists()
    assert make_leases(WorkerId.of_this_process()).acquire(1)


def shards_of(claims: Claims, number: int) -> list[int | None]:
    """Claim so many times."""
    return [claim and claim.shard_idx for claim in (claims.claim() for _ in range(number))]


def test_claims_hand_out_what_is_neither_done_nor_held(make_leases: MakeLeases, paths: RunFiles) -> None:
    plan = Plan(num_rows=50, rows_per_shard=10)
    paths.part(1).touch()
    other = make_leases(elsewhere("b"))
    other.acquire(2)
    claims = Claims(paths.directory, plan, make_leases(elsewhere("a")))
    assert shards_of(claims, 4) == [0, 3, 4, None]
    other.release(2)
    assert shards_of(claims, 1) == [None]
    assert claims.look_again() and shards_of(claims, 1) == [2]
    for shard_idx in (0, 2, 3, 4):
        paths.part(shard_idx).touch()
        claims.leave(shard_idx)
    assert not claims.look_again()
    assert not [path for path in paths.lease_dir.iterdir() if not path.name.startswith(".")]


def test_a_shard_finished_between_two_looks_is_not_claimed(make_leases: MakeLeases, paths: RunFiles) -> None:
    claims = Claims(paths.directory, Plan(num_rows=20, rows_per_shard=10), make_leases(elsewhere("a")))
    paths.part(0).touch()
    assert shards_of(claims, 1) == [1] and not paths.lease(0).exists()


def test_who_has_no_shard_helps_from_the_end(make_leases: MakeLeases, paths: RunFiles) -> None:
    """Every row is handed out once, to the holder or to the helper."""
    plan = Plan(num_rows=150, rows_per_shard=150)
    holder = Claims(paths.directory, plan, make_leases(elsewhere("a")))
    helper = Claims(paths.directory, plan, make_leases(elsewhere("b")))
    first = holder.claim()
    assert first is not None and first.rows == range(32)
    assert helper.claim() is None  # it has not looked at what others hold
    assert helper.look_again()
    helped = [claim.rows for claim in iter(helper.claim, None)]
    assert helped == [range(128, 150), range(96, 128), range(64, 96), range(32, 64)]
    assert holder.holds(0) and not helper.holds(0)
    assert holder.look_again() and holder.claim() is None


def test_a_shard_that_is_left_is_worked_on_no_more(make_leases: MakeLeases, paths: RunFiles) -> None:
    """A regression: with the leases gone, the holder did the slices again that helpers had done."""
    plan = Plan(num_rows=100, rows_per_shard=100)
    holder = Claims(paths.directory, plan, make_leases(elsewhere("a")))
    helper = Claims(paths.directory, plan, make_leases(elsewhere("b")))
    assert holder.claim() is not None and helper.claim() is None and helper.look_again()
    assert len(list(iter(helper.claim, None))) == 3
    paths.part(0).touch()
    holder.leave(0)
    assert holder.claim() is None and not paths.lease(0, 1).exists()


def test_slices_of_a_dead_helper_go_back_to_the_holder(make_leases: MakeLeases, paths: RunFiles) -> None:
    plan = Plan(num_rows=64, rows_per_shard=64)
    holder = Claims(paths.directory, plan, make_leases(elsewhere("a")))
    assert holder.claim() is not None
    make_leases(elsewhere("b")).acquire(0, 1)
    assert holder.claim() is None and holder.look_again() and holder.claim() is None
    make_silent(paths.lease(0, 1), 61)
    assert holder.look_again()
    again = holder.claim()
    assert again is not None and again.rows == range(32, 64)


def test_offered_rows_go_to_a_worker_without_any_and_back_if_it_ends(make_leases: MakeLeases, paths: RunFiles) -> None:
    """Once they are taken back, or their shard is left, nobody finds them."""
    plan = Plan(num_rows=64, rows_per_shard=64)
    holder = Claims(paths.directory, plan, make_leases(elsewhere("a")))
    other = make_leases(elsewhere("b"))
    helper = Claims(paths.directory, plan, other)
    assert [claim.rows for claim in iter(holder.claim, None)] == [range(32), range(32, 64)]
    assert helper.look_again() and helper.claim() is None
    rows = [*range(20, 30), *range(40, 64)]
    holder.offer(rows)
    assert helper.claim() is None and helper.look_again()
    claims = sorted(iter(helper.claim, None), key=lambda claim: claim.rows.start)
    assert [sorted(claim.only or ()) for claim in claims] == [rows[:32], rows[32:]]
    assert [(claim.shard_idx, claim.rows) for claim in claims] == [(0, range(20, 62)), (0, range(62, 64))]
    assert holder.look_again() and holder.claim() is None, "another worker has them"
    other.close()
    assert holder.look_again()
    assert sorted(sorted(claim.only or ()) for claim in iter(holder.claim, None)) == [rows[:32], rows[32:]]
    holder.offer(rows)
    assert len(list(paths.lease_dir.glob("*.rows"))) == 2
    few = Claims(paths.directory, plan, make_leases(elsewhere("c")), num_rows=50)
    assert few.look_again() and few.claim() is None, "its limit leaves out some of them"
    assert holder.look_again() and len(list(iter(holder.claim, None))) == 2
    holder.offer(rows)
    paths.part(0).touch()
    holder.leave(0)
    assert [path.name for path in paths.lease_dir.iterdir() if not path.name.startswith(".")] == []
    holder.offer(rows)
    holder.close()
    assert not list(paths.lease_dir.glob("*.rows"))


def test_a_helper_becomes_the_holder_of_a_shard_that_is_left(make_leases: MakeLeases, paths: RunFiles) -> None:
    """It goes on with what it has not claimed already, or just writes the part if it has claimed everything."""
    plan = Plan(num_rows=64, rows_per_shard=64)
    old = make_leases(elsewhere("a"))
    old.acquire(0)
    claims = Claims(paths.directory, plan, make_leases(elsewhere("b")))
    assert claims.claim() is None and claims.look_again()
    assert claims.claim() is not None and claims.claim() is not None
    old.release(0)
    assert claims.look_again() and claims.claim() is None
    assert claims.holds(0)


def test_a_shard_marked_for_retry_is_claimed_again(make_leases: MakeLeases, paths: RunFiles) -> None:
    plan = Plan(num_rows=20, rows_per_shard=10)
    paths.part(0).touch()
    paths.part(1).touch()
    paths.retry_dir.mkdir()
    paths.retry(1).touch()
    assert paths.directory.done_shards() == {0}
    assert shards_of(Claims(paths.directory, plan, make_leases(elsewhere("a"))), 2) == [1, None]

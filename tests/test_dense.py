"""Weights that are made once of others: whole or not there, and only where there is room."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from job.engine.model.dense import check_room, dense_directory
from job.errors import UsageError
from job.remote import once

FACTS = {"fingerprint": "1f", "made": "dense weights", "version": 1}

KILLED = """
import os, signal, sys
from job.engine.model.dense import dense_directory
def make(directory):
    (directory / "model.safetensors").write_text("half")
    print("made", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
dense_directory({"fingerprint": "1f", "made": "dense weights", "version": 1}, what="m", num_bytes=1, make=make)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/dense"


def make(directory: Path) -> None:
    (directory / "model.safetensors").write_text("whole")


def must_not_make(directory: Path) -> None:
    raise AssertionError("it is there already")


def test_weights_are_made_once_for_what_they_are_made_of() -> None:
    made = dense_directory(FACTS, what="m", num_bytes=5, make=make)
    assert (made / "model.safetensors").read_text() == "whole"
    assert dense_directory(dict(reversed(FACTS.items())), what="n", num_bytes=5, make=must_not_make) == made
    assert dense_directory({**FACTS, "version": 2}, what="m", num_bytes=5, make=make) != made


def test_what_a_killed_process_leaves_is_not_trusted(cache: Path) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL and died.stdout == b"made\n", died.stderr
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".tmp"]
    made = dense_directory(FACTS, what="m", num_bytes=5, make=make)
    assert (made / "model.safetensors").read_text() == "whole"
    assert [path for path in cache.iterdir() if path.is_dir()] == [made]


def test_what_a_killed_process_leaves_of_something_else_is_deleted_when_it_is_nobodys(cache: Path) -> None:
    """It stayed for 30 days: tens of gigabytes of a model that nobody asked for again."""
    subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    (torn,) = cache.glob("*.tmp")
    other = {**FACTS, "version": 2}
    dense_directory(other, what="m", num_bytes=5, make=make)
    assert torn.is_dir(), "another machine may be at work on it, where locks are not seen"
    for path in (torn, *torn.iterdir()):
        os.utime(path, (0, time.time() - once.ABANDONED_SECS - 9))
    lock = cache / f"{torn.name.partition('.')[0]}.lock"
    with once._locked(lock, "holding"):
        dense_directory({**FACTS, "version": 3}, what="m", num_bytes=5, make=make)
    assert torn.is_dir(), "somebody holds its lock"
    dense_directory({**FACTS, "version": 4}, what="m", num_bytes=5, make=make)
    assert not torn.exists()


@pytest.mark.parametrize("damage", ["cut", "deleted", "no sizes"])
def test_what_was_damaged_later_is_made_again(cache: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    """safetensors would only have said that a header is incomplete, and a deleted file is no file of the model's."""
    made = dense_directory(FACTS, what="m", num_bytes=5, make=make)
    weights = made / "model.safetensors"
    {"cut": lambda: os.truncate(weights, 3), "deleted": weights.unlink, "no sizes": (made / "sizes.json").unlink}[
        damage
    ]()
    check_room(FACTS, what="m", num_bytes=5)
    assert dense_directory(FACTS, what="m", num_bytes=5, make=make) == made
    assert weights.read_text() == "whole" and [path for path in cache.iterdir() if path.is_dir()] == [made]
    assert re.search(r"dense/\w+ has been damaged since it was made: converting m again", capsys.readouterr().err)


def test_two_at_once_make_it_once() -> None:
    """One waits for the lock of the other."""
    num_made, found = [], []

    def slowly(directory: Path) -> None:
        num_made.append(directory)
        time.sleep(0.2)
        make(directory)

    def start() -> None:
        found.append(dense_directory(FACTS, what="m", num_bytes=5, make=slowly))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(num_made) == 1 and len(found) == 3 and len(set(found)) == 1


def test_a_disk_that_fills_up_is_told_as_one(cache: Path) -> None:
    """safetensors wraps what the system says in an error of its own, which was a traceback."""
    limited = """
import resource, torch
from pathlib import Path
from safetensors.torch import save_file
from job.engine.model.dense import dense_directory
from job.errors import UsageError
def make(directory):
    save_file({"weight": torch.zeros(1 << 20)}, directory / "model.safetensors")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    dense_directory({}, what="m", num_bytes=1, make=make)
except UsageError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert re.search(r"^m cannot be converted in .*dense: File too large\. Set JOB_CACHE", result.stdout), result.stderr
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_there_must_be_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before anything is read; what has been made needs no more room."""
    needs: dict[str, Any] = {"what": "--model m (FP8)", "num_bytes": 141_000_000_000}
    usage = shutil.disk_usage(cache.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000_000_000))
    message = r"--model m \(FP8\) is converted once .* takes 141 GB of disk; .*dense has 20 GB free\. Set JOB_CACHE"
    with pytest.raises(UsageError, match=message):
        check_room(FACTS, **needs)
    with pytest.raises(UsageError, match=message):
        dense_directory(FACTS, **needs, make=must_not_make)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000_000_000))
    dense_directory(FACTS, **needs, make=make)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    check_room(FACTS, **needs)
    dense_directory(FACTS, **needs, make=must_not_make)


def test_a_failure_leaves_nothing(cache: Path) -> None:
    def fails(directory: Path) -> None:
        make(directory)
        raise OSError(28, os.strerror(28))

    with pytest.raises(UsageError, match=r"m cannot be converted in .*: No space left on device\. Set JOB_CACHE"):
        dense_directory(FACTS, what="m", num_bytes=5, make=fails)
    assert not [path for path in cache.iterdir() if path.is_dir()]

"""Weights that are made once of others: whole or not there, and only where there is room."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from job.engine.model.dense import check_room, dense_directory
from job.errors import UsageError

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

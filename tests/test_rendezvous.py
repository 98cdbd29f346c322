"""How processes find each other: who is missing, who is too many, and what the user hears meanwhile."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import JobError
from job.launch import activity, rendezvous
from job.launch.environment import ProcessInfo, read_process_info
from job.launch.rendezvous import Rendezvous
from tests.conftest import free_port


def process(rank: int, port: int, world_size: int = 2, **env: str) -> ProcessInfo:
    """Return what a process of a launch reads from its environment."""
    launch = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_PORT": str(port)}
    return read_process_info({**launch, **env}, 1)


def ignore(text: str) -> None:
    """Take a note."""


def test_a_rendezvous_that_nobody_joins_ends_and_names_the_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own waited for half an hour."""
    monkeypatch.setattr(rendezvous, "JOIN_SECS", 0.0)
    alone = Rendezvous(process(0, free_port(), world_size=12), ignore)
    alone.sign_in()
    with pytest.raises(JobError, match=r"11 of 12 processes \(ranks 1, 2, 3, 4, 5, 6, 7, 8, \.\.\.\)\. Were all 12"):
        alone.wait_for_all()
    lost = Rendezvous(process(1, free_port()), ignore)
    with pytest.raises(JobError, match=r"rank 1: cannot join rank 0 at .*refused.* Were all 2 started"):
        lost.sign_in()


def test_a_port_that_is_taken_is_refused_with_the_option_that_sets_it() -> None:
    """By the name that the launcher has for it."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for env, option in (({}, "--master_port of deepspeed"), ({"TORCHELASTIC_RUN_ID": "x"}, "--master-port")):
            with pytest.raises(JobError, match=f"port {port} of 127.0.0.1 is in use.* with {option}"):
                Rendezvous(process(0, port, **env), ignore).sign_in()


def test_a_process_of_another_launch_does_not_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launches on one port: rank 0 of the second cannot listen, but its rank 1 finds the first one's store."""
    port = free_port()
    launch = [Rendezvous(process(rank, port), ignore) for rank in range(2)]
    for one in launch:
        one.sign_in()
    for stranger in (process(1, port), process(3, port, world_size=4)):
        with pytest.raises(JobError, match=f"port {port} of 127.0.0.1 is in use, perhaps by another launch"):
            Rendezvous(stranger, ignore).sign_in()
    for one in launch:
        one.wait_for_all()


def test_what_takes_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is quick is not."""
    monkeypatch.setattr(activity, "_current", activity._Activity())
    notes: list[str] = []
    heard = threading.Event()

    def note(text: str) -> None:
        notes.append(text)
        heard.set()

    with activity.telling_what_takes_long(note, first_secs=60):
        activity.doing("reading the tokenizer of a model")
    assert notes == []
    activity.doing("opening d.csv")
    with activity.telling_what_takes_long(note, first_secs=0.01):
        assert heard.wait(10)
    assert notes[0] == "still opening d.csv (0 s)"


def test_loading_says_how_far_it_is(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through transformers' seam for progress bars, which our options hide."""
    from job.config import ModelConfig
    from job.engine.model import loading, reading
    from job.engine.model.info import inspect_model
    from job.launch.replica import Replica
    from job.remote.model_files import ModelFiles

    heard: list[tuple[Any, ...]] = []
    monkeypatch.setattr(reading, "doing", lambda *args: heard.append(args))
    config = ModelConfig(model=str(tiny_model()), dtype="float32")
    replica = Replica(read_process_info({}, 1))
    loading.load_model(config, inspect_model(config, ModelFiles(name=config.model), replica.device, 1), replica, [])
    counts = [args[1] for args in heard if len(args) == 2]
    assert counts[0].startswith("0 of ") and counts[0].endswith(" tensors") and len(counts) > 5

"""Steps: what the leader packs is what followers unpack, and the channel carries it whole, whatever its length."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from job.engine.paged.schedule.step import CLOSE, KEEP_ALIVE, RUN, Step, close_step, rows
from job.launch import replica
from job.launch.environment import ProcessInfo
from job.launch.replica import MESSAGE_INTS, Replica

WIDTHS = {"token_ids": None, "sequences": 4, "new_pages": 3, "pages_to_clear": 1, "copies": 3}


def random_step(seed: int) -> Step:
    """Return a step each array of which may be empty."""
    rng = np.random.default_rng(seed)

    def array(width: int | None) -> Any:
        length = int(rng.integers(0, 30)) * int(rng.integers(0, 2))
        shape = length if width is None else (length, width)
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)

    return Step(kind=int(rng.integers(0, 3)), **{name: array(width) for name, width in WIDTHS.items()})


def assert_same(found: Step, expected: Step) -> None:
    """Compare all fields, shapes and types included."""
    assert {field.name for field in fields(Step)} == {"kind", *WIDTHS}
    assert found.kind == expected.kind
    for name in WIDTHS:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype == np.int32 and one.shape == other.shape, name
        assert np.array_equal(one, other), name


@pytest.mark.parametrize("seed", range(40))
def test_a_step_is_unpacked_as_it_was_packed(seed: int) -> None:
    step = random_step(seed)
    packed = step.pack()
    assert packed.dtype == np.int32 and packed.ndim == 1 and packed[0] == len(packed)
    assert_same(Step.unpack(packed), step)


@pytest.mark.parametrize("kind", [RUN, KEEP_ALIVE, CLOSE])
def test_a_step_without_anything_in_it_is_only_a_header(kind: int) -> None:
    packed = Step(kind=kind).pack()
    assert len(packed) == 7
    assert_same(Step.unpack(packed), Step(kind=kind))


@pytest.mark.parametrize("exit_code", [0, 1, 75])
def test_the_last_step_carries_the_exit_code(exit_code: int) -> None:
    step = Step.unpack(close_step(exit_code).pack())
    assert (step.kind, step.token_ids.tolist()) == (CLOSE, [exit_code])


def test_rows_have_their_width_even_if_there_are_none() -> None:
    assert rows([], 3).shape == (0, 3) and rows([], 3).dtype == np.int32
    assert rows([(1, 2), (3, 4)], 2).tolist() == [[1, 2], [3, 4]]


def process(rank: int, num_processes: int) -> Replica:
    """Return one process of a replica, without the others."""
    subject = Replica.__new__(Replica)
    subject._commands = None
    subject.info = ProcessInfo(
        rank=rank,
        world_size=num_processes,
        local_rank=rank,
        local_world_size=num_processes,
        tensor_parallel_size=num_processes,
        master_addr="127.0.0.1",
        master_port=0,
        launcher="torchrun",
    )
    return subject


@pytest.mark.parametrize("length", [1, 7, MESSAGE_INTS - 1, MESSAGE_INTS, MESSAGE_INTS + 1, 3 * MESSAGE_INTS + 5])
def test_numbers_of_any_length_reach_the_followers(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leader first, follower after it, and a list between them in place of gloo."""
    numbers = np.arange(length, dtype=np.int32) * 3 + 1
    numbers[0] = length
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src, group: sent.append(tensor.clone()))
    assert np.array_equal(process(0, 2).broadcast_ints(numbers), numbers)
    assert [len(message) for message in sent] == [MESSAGE_INTS, length - MESSAGE_INTS][: len(sent)]
    assert len(sent) == (1 if length <= MESSAGE_INTS else 2)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src, group: tensor.copy_(sent.pop(0)))
    assert np.array_equal(process(1, 2).broadcast_ints(None), numbers)
    assert not sent


def test_a_replica_of_one_process_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "dist", None)
    alone, numbers = process(0, 1), np.array([2, 5], np.int32)
    assert alone.broadcast_ints(numbers) is numbers
    assert alone.gather("x") == ["x"] and alone.gather_status("bad") == ["bad"] and alone.any_failed(True) is True

"""The CUDA path's own logic, on a CPU: plain operations compute what the kernels do, and a replay runs the step again.

What only a GPU can show (the compiled kernel, the recording) is in test_cuda.py.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from job.engine.model.experts import one_after_the_other
from job.engine.paged.cuda import steps
from job.engine.paged.cuda.graphs import Graphs
from job.engine.paged.cuda.numbers import StepShape
from job.engine.paged.cuda.steps import DeviceSteps, RecordedStep
from job.engine.paged.engine import PagedEngine
from job.engine.paged.executor import Executor
from job.engine.transfers import Upload, num_bytes
from tests import plain_launches
from tests.serving import (
    MODES,
    Served,
    ask,
    complete,
    expected_tokens,
    finish,
    generate,
    make_engine,
    make_prompts,
    serve,
    tokens,
)

NUM_PAGES = 160
"""Of 64 tokens; ``make_engine`` counts in pages of 32."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[StepShape]:
    """Let engines take the way of CUDA. Returns the shapes that are replayed."""
    return plain_launches.record(monkeypatch)


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    """Return a llama."""
    return serve(tiny_model("llama"))


def engine_of(served: Served, **options: Any) -> PagedEngine:
    """Return an engine with so many pages of the size of this backend."""
    return make_engine(served, **{"num_pages": NUM_PAGES * 2, **options})


@pytest.mark.parametrize("mode", MODES)
def test_tokens_equal_transformers(mode: str, served: Served, recorded: list[StepShape], tiny_model: Any) -> None:
    """Of prompts in one page and in five, in all shapes of the engine."""
    prompts = [*make_prompts(), [5 + idx % 200 for idx in range(250)], [7 + idx % 150 for idx in range(300)]]
    options = {**MODES[mode], "num_pages": 7 * 8 if "num_pages" in MODES[mode] else NUM_PAGES * 2}
    engine = engine_of(served, **options)
    assert engine.no_graphs is None
    found = tokens(complete(engine, prompts))
    assert found == expected_tokens(tiny_model("llama"), prompts, 12)
    assert recorded
    if mode in ("one row", "chunks"):  # elsewhere, few steps have prompts
        assert any(any(shape.num_chunks) for shape in recorded)
    assert any(not any(shape.num_chunks) for shape in recorded)


def test_samples_that_share_all_of_a_prompt_are_those_of_launched_steps(
    served: Served, recorded: list[StepShape]
) -> None:
    """A regression: the last token of a shared prompt is a step of one token, and copies a page."""

    def draw(*, cuda_graphs: bool) -> list[list[int]]:
        config = {"max_batch_rows": 4, "cuda_graphs": cuda_graphs}
        engine = engine_of(served, config=config)
        prompt = [5 + idx * 7 % 200 for idx in range(45)]
        return tokens(finish(engine, [ask(prompt, generate(temperature=1.0), sample_idx=idx) for idx in range(12)]))

    expected = draw(cuda_graphs=False)
    assert not recorded
    assert draw(cuda_graphs=True) == expected and recorded


def test_all_recorded_steps_leave_their_logits_in_one_place(served: Served, recorded: list[StepShape]) -> None:
    engine = engine_of(served, config={"max_batch_rows": 5})
    complete(engine, make_prompts())
    runner = engine._executor._steps
    assert isinstance(runner, DeviceSteps) and runner._logits is not None
    assert len(runner._logits) == 8, "the size that holds five rows"
    assert len({shape.num_tokens for shape in runner._recorded}) > 2


def test_a_model_whose_steps_cannot_be_recorded_is_served_without(
    served: Served, recorded: list[StepShape], monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    """And no row is to blame."""

    def fail(*_: Any) -> None:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")

    monkeypatch.setattr(steps.Graphs, "record", fail)
    engine, prompts = engine_of(served), make_prompts()
    assert engine.no_graphs == "Cannot copy between CPU and CUDA tensors during CUDA graph capture"
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model("llama"), prompts, 12)
    assert not recorded


def test_nothing_is_recorded_unless_asked_for(served: Served, recorded: list[StepShape], tiny_model: Any) -> None:
    engine, prompts = engine_of(served, config={"cuda_graphs": False}), make_prompts()
    assert engine.no_graphs is None
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model("llama"), prompts, 12)
    assert not recorded


def test_a_step_with_prompts_of_much_work_is_launched(
    served: Served, recorded: list[StepShape], monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    monkeypatch.setattr(steps, "MAX_RECORDED_WORK", 0)
    prompts = make_prompts()
    assert tokens(complete(engine_of(served), prompts)) == expected_tokens(tiny_model("llama"), prompts, 12)
    assert recorded and not any(any(shape.num_chunks) for shape in recorded)


def test_a_step_goes_to_the_device_in_one_copy(
    served: Served, recorded: list[StepShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 bytes for a decoding row: id, position, place, index, two for a page, and a tile of 16."""
    sent: list[int] = []
    sent_by_steps: list[list[int]] = []
    send, run = Upload.__call__, Executor.run

    def count(self: Upload, *arrays: Any, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        sent.append(num_bytes(*arrays))
        return send(self, *arrays, into=into)

    def run_and_count(*args: Any) -> torch.Tensor:
        sent.clear()
        logits = run(*args)
        sent_by_steps.append(list(sent))
        return logits

    engine = engine_of(served, config={"max_batch_rows": 8})
    monkeypatch.setattr(Upload, "__call__", count)
    monkeypatch.setattr(Executor, "run", run_and_count)
    complete(engine, [[5 + idx, 7, 9] for idx in range(8)])
    monkeypatch.undo()
    others = sent_by_steps[1:]
    assert others and others == [[8 * 40]] * len(others)


def test_a_shape_that_cannot_be_recorded_is_launched(
    served: Served, recorded: list[StepShape], monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    """No row is to blame, and the other shapes are replayed."""
    engine, prompts = engine_of(served), make_prompts()
    record = DeviceSteps._record

    def fail_with_prompts(self: DeviceSteps, shape: StepShape) -> RecordedStep:
        if any(shape.num_chunks):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return record(self, shape)

    monkeypatch.setattr(DeviceSteps, "_record", fail_with_prompts)
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model("llama"), prompts, 12)
    assert recorded and not any(any(shape.num_chunks) for shape in recorded)


def test_a_recording_that_failed_is_forgotten_and_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does it: what has waited for the device ends with an error, and the allocator is not told."""
    events: list[Any] = []
    pools = iter("abc")
    stream = SimpleNamespace(wait_stream=lambda other: events.append("wait"))

    @contextlib.contextmanager
    def graph(made: Any, *, pool: str, stream: Any) -> Iterator[None]:
        events.append(pool)
        yield

    for name, value in {
        "graph_pool_handle": lambda: next(pools),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "current_device": lambda: 0,
        "stream": lambda _: contextlib.nullcontext(),
        "set_stream": lambda _: events.append("restored"),
        "CUDAGraph": lambda: SimpleNamespace(replay=None),
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: events.append(("ended", pool)))
    graphs, runs = Graphs(), iter([None, ValueError("waited"), None, None, MemoryError()])

    def work() -> None:
        if (error := next(runs)) is not None:
            raise error

    with pytest.raises(ValueError, match="waited"):
        graphs.record(work)
    assert events == ["wait", "wait", "a", ("ended", "a"), "restored"]
    events.clear()
    graphs.record(work)
    assert events == ["wait", "wait", "b", "restored"]
    events.clear()
    with pytest.raises(MemoryError):
        graphs.record(work)
    assert events[:2] == ["wait", "wait"], "for what was launched before the failure"


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [
        ((9, 0), torch.float16, "in float16, torch computes experts one after the other; .*--dtype bfloat16"),
        ((10, 0), torch.bfloat16, None),
        ((8, 0), torch.bfloat16, "on this GPU, torch computes experts one after the other"),
    ],
)
def test_why_steps_of_experts_cannot_be_recorded_is_said(
    capability: tuple[int, int], dtype: torch.dtype, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the words of CUDA: the operation waits inside of torch, in these cases alone."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    experts = AutoConfig.for_model("mixtral", num_local_experts=4)
    found = one_after_the_other(experts, dtype, torch.device("cuda"))
    assert found is None if said is None else re.match(said, found or "")
    assert one_after_the_other(AutoConfig.for_model("llama"), dtype, torch.device("cuda")) is None
    assert one_after_the_other(experts, dtype, torch.device("cpu")) is None

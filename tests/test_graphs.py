"""The CUDA path's own logic, on a CPU: plain operations compute what the kernels do, and a replay runs the step again.

What only a GPU can show (the compiled kernel, the recording) is in test_cuda.py.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from job.engine.paged import engine as paged_engine
from job.engine.paged.attention.backends import TRITON
from job.engine.paged.cuda.graphs import DecodeGraphs, RecordedStep
from job.engine.paged.engine import PagedEngine
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
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let engines take the way of CUDA. Returns the sizes and widths that are replayed."""
    replayed: list[tuple[int, int]] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "graph_pool_handle": lambda: None,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "set_stream": lambda _: None,
        "CUDAGraph": lambda: None,
        "graph": lambda *_, **__: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    record = RecordedStep.record

    def remember(self: RecordedStep, module: Any, memory: Any, logits: torch.Tensor) -> None:
        record(self, module, memory, logits)

        def replay() -> torch.Tensor:
            replayed.append(self.tensors.tables.shape)
            return logits.copy_(self._run(module))

        monkeypatch.setattr(self, "replay", replay, raising=False)

    monkeypatch.setattr(RecordedStep, "record", remember)
    plain_launches.use(monkeypatch)
    monkeypatch.setattr(paged_engine, "choose_backend", lambda shapes, replica: (TRITON, None))
    return replayed


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    """Return a llama."""
    return serve(tiny_model("llama"))


def engine_of(served: Served, **options: Any) -> PagedEngine:
    """Return an engine with so many pages of the size of this backend."""
    return make_engine(served, **{"num_pages": NUM_PAGES * 2, **options})


@pytest.mark.parametrize("mode", MODES)
def test_tokens_equal_transformers(mode: str, served: Served, recorded: list[tuple[int, int]], tiny_model: Any) -> None:
    """Of prompts in one page and in five, in all shapes of the engine."""
    prompts = [*make_prompts(), [5 + idx % 200 for idx in range(250)], [7 + idx % 150 for idx in range(300)]]
    options = {**MODES[mode], "num_pages": 7 * 8 if "num_pages" in MODES[mode] else NUM_PAGES * 2}
    found = tokens(complete(engine_of(served, **options), prompts))
    assert found == expected_tokens(tiny_model("llama"), prompts, 12)
    assert recorded
    if mode == "one row":  # elsewhere the longest rows may never be in a step of single tokens
        assert {width for _, width in recorded} == {1, 2, 4, 8}


def test_samples_that_share_all_of_a_prompt_are_those_of_launched_steps(
    served: Served, recorded: list[tuple[int, int]]
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


def test_all_recorded_steps_leave_their_logits_in_one_place(served: Served, recorded: list[tuple[int, int]]) -> None:
    engine = engine_of(served, config={"max_batch_rows": 5})
    complete(engine, make_prompts())
    graphs = engine._executor._recorder
    assert isinstance(graphs, DecodeGraphs) and graphs._logits is not None
    assert len(graphs._logits) == 8, "the size that holds five rows"
    assert len({size for size, _ in graphs._recorded}) > 2
    assert {step._logits.data_ptr() for step in graphs._recorded.values()} == {graphs._logits.data_ptr()}


def test_a_model_whose_steps_cannot_be_recorded_is_served_without(
    served: Served, recorded: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    """And no row is to blame."""

    def fail(*_: Any) -> None:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")

    monkeypatch.setattr(RecordedStep, "record", fail)
    engine, prompts = engine_of(served), make_prompts()
    assert engine.no_graphs == "Cannot copy between CPU and CUDA tensors during CUDA graph capture"
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model("llama"), prompts, 12)
    assert not recorded


def test_nothing_is_recorded_unless_asked_for(served: Served, recorded: list[tuple[int, int]]) -> None:
    engine = engine_of(served, config={"cuda_graphs": False})
    assert engine._executor._recorder is None and engine.no_graphs is None
    assert isinstance(engine_of(served)._executor._recorder, DecodeGraphs)

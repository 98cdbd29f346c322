"""Starting a choice or scores never waits for the device: shown on tensors that hold no numbers.

Tensors on PyTorch's "meta" device have shapes only, and raise an exception wherever something depends on what they
hold: ``item``, ``tolist``, ``nonzero``, a branch. They stand for those of a GPU here, and what is copied between them
and the host is counted. Whether a copy that need not wait really does not, only a GPU can show.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from job.engine import transfers
from job.engine.logits.history import TokenHistory
from job.engine.logits.masks import Masks
from job.engine.logits.pipeline import start_choice
from job.engine.logits.sampling import SamplingBatch
from job.engine.logits.trie import start_scores, trie_of
from job.engine.static.token_choice import Row
from job.tasks import SamplingParams

NUM_ROWS, VOCAB = 6, 700
DEVICE = torch.device("meta")


class Recorder(TorchDispatchMode):
    """Records operations with their shapes, and how numbers cross between host and device."""

    def __init__(self) -> None:
        """Start without operations."""
        super().__init__()
        self.operations: list[Any] = []
        self.copies: list[tuple[str, bool]] = []
        """For each copy, where it goes, and whether the host goes on meanwhile."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record and run an operation."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.operations.append((func, [tensor.shape for tensor in tensors]))
        sources = {tensor.device.type for tensor in tensors}
        target = torch.device(kwargs.get("device") or next(iter(sources), "cpu")).type
        if func is torch.ops.aten._to_copy.default and sources != {target}:
            self.copies.append(("host" if target == "cpu" else "device", bool(kwargs.get("non_blocking"))))
            if target == "cpu":
                assert kwargs.get("non_blocking"), "the host waits for numbers"
                return torch.empty_like(tensors[0], device="cpu")
        else:
            assert len(sources) < 2, f"{func} has numbers of the host copied for it"
        return func(*args, **kwargs)


class NoHiddenCopies(TorchFunctionMode):
    """Refuses what copies numbers to the device where a ``Recorder`` does not see it, and waits for that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, unless it makes a tensor of numbers there, or assigns a number to ``tensor[index]``."""
        assert func not in (torch.tensor, torch.as_tensor) or not (kwargs or {}).get("device"), "the host waits"
        assert func is not torch.Tensor.__setitem__ or isinstance(args[2], torch.Tensor), "the host waits"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace what PyTorch has only for a GPU: pinned memory and events."""

    def buffer(size: int, *, is_pinned: bool) -> tuple[torch.Tensor, Any]:
        assert is_pinned
        numbers = np.empty(size, np.uint8)
        return torch.from_numpy(numbers), numbers

    monkeypatch.setattr(transfers, "_host_buffer", buffer)
    event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: pytest.fail("waits"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with NoHiddenCopies():
        yield


CASES: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}],
    "sampled": [{"temperature": 0.7}],
    "min-p": [{"temperature": 1.0, "min_p": 0.1}],
    "top-k": [{"temperature": 1.0, "top_k": 20, "top_p": 0.9}],
    "top-p": [{"temperature": 1.0, "top_p": 0.9, "min_p": 0.02}],
    "penalty": [{"repetition_penalty": 1.3}],
    "counts": [{"presence_penalty": 0.4, "frequency_penalty": -0.2}],
    "biases": [{"biases": ((3, 1.0), (60, -2.0))}],
    "ruled out": [{"bad_token_ids": ((5,), (6, 7, 8)), "min_new_tokens": 60, "stop_token_ids": (9,)}],
    "logprobs": [{"logprobs": True}],
    "top logprobs": [{"num_top_logprobs": 3}],
    "mixed": [
        {},
        {"temperature": 0.7, "repetition_penalty": 1.3},
        {"temperature": 1.0, "top_k": 20, "logprobs": True},
        {"temperature": 1.0, "top_p": 0.9, "bad_token_ids": ((5,),)},
        {"temperature": 0.5, "num_top_logprobs": 5},
        {"temperature": 1.0, "min_p": 0.1, "seed": 5, "frequency_penalty": 0.3},
    ],
}


def choice_of(case: str, *, num_masks: int, wide: tuple[int, ...] = ()) -> Callable[[int], Any]:
    """Return what starts the choice of a step of the same rows, with other tokens and masks at each step."""
    distinct = [SamplingParams(**params) for params in CASES[case]]
    params = [distinct[row % len(distinct)] for row in range(NUM_ROWS)]
    history, rows = TokenHistory(NUM_ROWS), [Row(slot, [1, 2, 3], 2) for slot in range(NUM_ROWS)]

    def start(step: int) -> Any:
        rng = np.random.default_rng(step)
        logits = torch.empty(NUM_ROWS, VOCAB, dtype=torch.bfloat16, device=DEVICE)
        for row in rows:
            row.token_ids.append(int(rng.integers(VOCAB)))
        keys = [(int(row_idx), 0) for row_idx in rng.integers(1000, size=NUM_ROWS)]
        batch = SamplingBatch(params, keys, rng.integers(50, size=NUM_ROWS).tolist(), wide)
        words = rng.integers(0, 2**32, (num_masks, 22), np.uint32)
        masks = Masks(words, np.arange(num_masks)) if num_masks else None
        return start_choice(logits, batch, history.of(rows), masks)

    return start


@pytest.mark.parametrize("num_masks", [0, 2, NUM_ROWS])
@pytest.mark.parametrize("case", CASES)
def test_a_choice_takes_at_most_one_copy_there_and_one_back_and_never_waits(case: str, num_masks: int) -> None:
    start = choice_of(case, num_masks=num_masks)
    with Recorder():
        start(0)  # clears the slots, and makes the masks' table
    traces = []
    for step in (1, 2):
        with Recorder() as recorder:
            choice = start(step)
        needs_numbers = num_masks or case not in ("greedy", "logprobs", "top logprobs")
        assert recorder.copies == [("device", True)] * bool(needs_numbers) + [("host", True)]
        assert choice.tokens.device == DEVICE and choice.tokens.shape == (NUM_ROWS,)
        traces.append(recorder.operations)
    assert traces[0] == traces[1], "the same operations and shapes whatever the numbers"


def test_a_choice_that_sorts_all_logits_does_not_wait_either() -> None:
    start = choice_of("mixed", num_masks=0, wide=(3,))
    with Recorder():
        start(0)
    with Recorder() as recorder:
        start(1)
    assert recorder.copies == [("device", True), ("host", True)]


def test_scores_take_one_copy_there_and_one_back_and_never_wait() -> None:
    tries = [trie_of(((5, 6), (5, 7), (8, 9, 10))), trie_of(((1,), (2,)))]
    nodes = [(tries[0], 0), (tries[1], 0), (tries[0], 1), (tries[0], 0)]
    with Recorder() as recorder:
        start_scores(torch.empty(len(nodes), VOCAB, device=DEVICE), nodes)
    assert recorder.copies == [("device", True), ("host", True)]


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.tolist(),
        lambda tensor: bool(tensor.any()),
        lambda tensor: tensor.numpy(force=True),
        lambda tensor: tensor.nonzero(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: torch.equal(tensor, tensor),
        lambda tensor: tensor[torch.tensor([0, 2])],
        lambda tensor: torch.tensor([0, 2], device=tensor.device),
        lambda tensor: tensor.__setitem__(tensor.long(), 1.0),
    ],
)
def test_this_device_notices_who_looks(wait: Callable[[torch.Tensor], Any]) -> None:
    """Or else the tests above would hold for nothing."""
    with Recorder(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        wait(torch.empty(3, device=DEVICE))


def test_a_copy_that_waits_is_counted() -> None:
    with Recorder() as recorder:
        torch.zeros(3).to(DEVICE)
    assert recorder.copies == [("device", False)]

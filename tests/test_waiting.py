"""A step, and starting a choice or scores, never wait for the device: shown on tensors that hold no numbers.

Tensors on PyTorch's "meta" device have shapes only, and raise an exception wherever something depends on what they
hold: ``item``, ``tolist``, ``nonzero``, a branch. They stand for those of a GPU here, and what is copied between them
and the host is counted. Whether a copy that need not wait really does not, only a GPU can show.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from job.engine import transfers
from job.engine.logits.history import TokenHistory
from job.engine.logits.masks import Masks
from job.engine.logits.pipeline import start_choice
from job.engine.logits.sampling import SamplingBatch
from job.engine.logits.text_scores import PendingTextScores
from job.engine.logits.trie import start_scores, trie_of
from job.engine.paged.attention import interface
from job.engine.paged.attention.cache import KVCache, LayerShape
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.cuda import launches
from job.engine.paged.cuda.steps import DeviceSteps
from job.engine.paged.executor import run_model
from job.engine.paged.schedule.step import Step, rows
from job.engine.paged.support import spare_looks
from job.engine.paged.tasks.pooling import PendingVectors
from job.engine.static.token_choice import Row
from job.tasks import SamplingParams
from tests import plain_launches
from tests.tiny import ARCHITECTURES, UNCUT

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
        self._no_hidden_copies = NoHiddenCopies()

    def __enter__(self) -> "Recorder":
        """Begin, and refuse what cannot be seen."""
        self._no_hidden_copies.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        """End both."""
        super().__exit__(*args)
        self._no_hidden_copies.__exit__(*args)

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
        if func is torch.segment_reduce:  # which has no form for this device
            assert kwargs and kwargs["unsafe"], "it looks at the lengths"
            return args[0].new_empty(len(kwargs["lengths"]), args[0].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what PyTorch has only for a GPU: pinned memory and events."""

    def buffer(size: int, *, is_pinned: bool) -> tuple[torch.Tensor, Any]:
        assert is_pinned
        numbers = np.empty(size, np.uint8)
        return torch.from_numpy(numbers), numbers

    monkeypatch.setattr(transfers, "_host_buffer", buffer)
    event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: pytest.fail("waits"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)


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


@pytest.mark.parametrize(("weights", "num_copies"), [(None, 1), (np.ones(9, np.float32), 2)])
def test_sums_over_tokens_do_not_wait(weights: Any, num_copies: int) -> None:
    with Recorder() as recorder:
        PendingVectors(torch.empty(9, 32, dtype=torch.float16, device=DEVICE), [2, 3, 4], weights)
    assert recorder.copies == [("device", True)] * num_copies + [("host", True)]


def test_scores_of_texts_do_not_wait() -> None:
    with Recorder() as recorder:
        PendingTextScores(torch.empty(9, VOCAB, dtype=torch.float16, device=DEVICE), range(9))
    assert recorder.copies == [("device", True), ("host", True)]


ROPE = {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
LONG = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {},
    "opt": {},
    "gpt2": {},
    "mixtral": EXPERTS,
    "gpt_oss": {**EXPERTS, "head_dim": 32},
    "deepseek_v3": {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
    "dynamic": {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "yarn": {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", **ROPE}},
    "longrope": {"model_type": "llama", "rope_parameters": {"rope_type": "longrope", **ROPE, **LONG}},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_takes_one_copy_and_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows whose latest tokens the host does not know, through all layers of a model. What looks at a number there,
    or copies one, cannot be recorded either.
    """
    monkeypatch.setattr(launches, "attend_launches", lambda *_, **__: [])
    monkeypatch.setattr(launches, "store_launch", lambda *_: plain_launches.PlainLaunch(lambda: None))
    model = empty_model(name)
    cache = KVCache(shapes_of(model), num_pages=16, page_tokens=64, device=DEVICE)
    tables = BlockTables(5)
    tables.add(rows([(slot, 0, slot) for slot in range(4)], 3))
    step = Step(
        token_ids=np.array([-1, -2, *range(5, 12)], np.int32),
        sequences=rows([(0, 7, 1, 1), (1, 9, 1, 1), (2, 3, 7, 1)], 4),
        new_pages=rows([(0, 0, 0)], 3),
        copies=rows([(1, 2, 3)], 3),
    )
    chosen = torch.empty(4, dtype=torch.int64, device=DEVICE)
    steps = DeviceSteps(model, cache, DEVICE, num_slots=4)
    with Recorder() as recorder:
        logits = steps.run(step, tables, chosen)
    assert recorder.copies == [("device", True)]
    assert logits.shape == (3, 260)


def empty_model(name: str) -> Any:
    """Return a model that the paged engine has accepted, without numbers."""
    values = {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    values |= {"num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0}
    values |= {**ARCHITECTURES, **UNCUT}.get(name, {}) | MODELS[name]
    config = AutoConfig.for_model(values.pop("model_type", name), **values)
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    model.to(DEVICE).set_attn_implementation(interface.NAME)
    spare_looks(model, 256)
    return model


def shapes_of(model: Any) -> dict[int, LayerShape]:
    """Return what its layers store."""
    shapes: dict[int, LayerShape] = {}

    def look(layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: Any) -> torch.Tensor:
        shapes[layer_idx] = LayerShape.of(query, key, value, args)
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)

    one = Step(token_ids=np.zeros(1, np.int32), sequences=rows([(0, 0, 1, 1)], 4))
    run_model(model, Layout(one, BlockTables(1), 64), look, DEVICE)
    return shapes


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

"""Texts are scored as plain transformers would: log-softmax in fp32, each token once, whatever the engine's shape.

JOB_TEST_CASES=200 tries that many random texts in every shape and architecture instead of a few. Two ranks are in
test_mixed_tasks.
"""

import os
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import EngineConfig
from job.engine.static.engine import StaticEngine
from job.records import Request
from job.tasks import ScoreText
from job.tasks.scored_text import windows_of
from tests import oracle
from tests.serving import MODES, ask, finish, load, make_engine, serve
from tests.test_paged_engine import SUPPORTED
from tests.tiny import ARCHITECTURES

TOLERANCE = 1e-4
WINDOW = 48
NUM_CASES = int(os.environ.get("JOB_TEST_CASES", "20"))


@cache
def make_texts() -> list[tuple[list[int], list[int]]]:
    """Return prompts and texts: with a common beginning, of a single token, and longer than a window."""
    rng = random.Random(3)

    def draw(num_tokens: int) -> list[int]:
        return [rng.randrange(2, 258) for _ in range(num_tokens)]

    common = draw(33)
    shapes = [(1, 1), (1, 40), (5, 3), (46, 1), (47, 9), (2, 47), (1, 48), (1, 49), (7, 130)]
    shapes += [(rng.randrange(1, WINDOW), rng.randrange(1, 150)) for _ in range(NUM_CASES - 20)]
    texts = [(draw(num_prompt), draw(num_text)) for num_prompt, num_text in shapes]
    return [*texts, *((common + draw(1), draw(num_text)) for num_text in (4, 20, 60)), texts[1]]


def score(text: Sequence[int], window: int = WINDOW, stride: int = WINDOW) -> ScoreText:
    return ScoreText(text_ids=tuple(text), num_bytes=len(text), window=window, stride=stride)


def requests_of(texts: list[tuple[list[int], list[int]]], stride: int = WINDOW) -> list[Request]:
    return [ask(prompt, score(text, stride=stride), row_idx=idx) for idx, (prompt, text) in enumerate(texts)]


_scores: dict[tuple[Path, str], list[list[float]]] = {}


def expected_scores(model_dir: Path, requests: Sequence[Request]) -> list[list[float]]:
    """Return what plain transformers says of each window, one at a time. It is asked once."""
    asked = (model_dir, repr(requests))
    if asked not in _scores:
        _scores[asked] = scores_by_windows(oracle.load(model_dir), requests)
    return _scores[asked]


def scores_by_windows(model: Any, requests: Sequence[Request]) -> list[list[float]]:
    scores = []
    for request in requests:
        assert isinstance(request.task, ScoreText)
        ids, of_one = [*request.prompt_ids, *request.task.text_ids], []
        for window in windows_of(request.prompt_ids, request.task):
            end = len(request.prompt_ids) + window.end
            context = ids[end - 1 - len(window.token_ids) : end - window.num_scored]
            of_one += oracle._logprobs(model, context, ids[end - window.num_scored : end])
        scores.append(of_one)
    return scores


def assert_equal(generations: list[Any], expected: list[list[float]]) -> None:
    assert [generation.error for generation in generations] == [None] * len(generations)
    for generation, values in zip(generations, expected, strict=True):
        assert generation.token_ids == generation.request.task.text_ids and generation.finish_reason == "stop"
        assert torch.tensor(generation.logprobs).shape == torch.tensor(values).shape
        assert float((torch.tensor(generation.logprobs) - torch.tensor(values)).abs().max()) < TOLERANCE


def test_every_token_is_scored_once_with_as_much_context_as_there_is_room_for() -> None:
    rng = random.Random(1)
    for _ in range(NUM_CASES):
        window = rng.randrange(2, 20)
        stride, num_prompt, num_text = rng.randrange(1, window + 1), rng.randrange(1, window), rng.randrange(1, 90)
        ids = list(range(num_prompt + num_text))
        windows = list(windows_of(ids[:num_prompt], score(ids[num_prompt:], window, stride)))
        scored = [token + 1 for window in windows for token in window.token_ids[window.first_wanted :]]
        assert scored == ids[num_prompt:]
        assert [idx for each in windows for idx in range(each.begin, each.end)] == list(range(num_text))
        for idx, each in enumerate(windows):
            assert len(each.token_ids) == min(window, num_prompt + each.end - 1)
            assert idx == 0 or each.num_scored <= stride


@pytest.mark.parametrize("mode", MODES)
def test_scores_equal_transformers_whatever_the_shape_of_the_engine(tiny_model: Callable[..., Path], mode: str) -> None:
    for stride, share_prefixes in ((WINDOW, True), (10, False)):
        requests, options = requests_of(make_texts(), stride), MODES[mode]
        config = {**options["config"], "share_prefixes": share_prefixes}
        engine = make_engine(serve(tiny_model("llama")), **{**options, "config": config})
        assert_equal(finish(engine, requests), expected_scores(tiny_model("llama"), requests))
        assert engine.num_pending == 0 and not engine.scheduler.running


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_architecture_that_is_served_scores_as_transformers(tiny_model: Callable[..., Path], name: str) -> None:
    requests = requests_of(make_texts())
    engine = make_engine(serve(tiny_model(name)), **MODES["chunks"])
    assert_equal(finish(engine, requests), expected_scores(tiny_model(name), requests))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_static_batches_score_as_transformers(tiny_model: Callable[..., Path], name: str) -> None:
    """In batches, and in pieces where even one window is too long for its logits to be there at once."""
    model, replica = load(tiny_model(name))
    requests = requests_of(make_texts())
    for max_tokens in (200, 31):
        engine = StaticEngine(model, EngineConfig(max_batch_rows=7, max_batch_tokens=max_tokens), replica)
        assert_equal(finish(engine, requests), expected_scores(tiny_model(name), requests))


def test_a_step_has_few_logits_however_long_the_texts(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt's log probabilities in one piece have cost other engines their memory: text times vocabulary."""
    served, rng = serve(tiny_model("llama")), random.Random(2)
    texts = [([5], [rng.randrange(2, 258) for _ in range(num_text)]) for num_text in (400, 300, 20, 330)]
    requests = [ask(prompt, score(text, 512, 512), row_idx=idx) for idx, (prompt, text) in enumerate(texts)]
    forward, most = served.model.module.forward, []

    def watched(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        most.append(output.logits.shape[1])
        return output

    monkeypatch.setattr(served.model.module, "forward", watched)
    engine = make_engine(served, config={"max_batch_rows": 4, "max_batch_tokens": 1000})
    generations = finish(engine, requests)
    assert max(most) == 252 and len(most) == 5, "of 256 logits, 4 are for the rows that are generated"
    monkeypatch.undo()
    assert_equal(generations, expected_scores(tiny_model("llama"), requests))


def test_a_text_that_is_not_finite_becomes_an_error_row_and_no_other(tiny_model: Callable[..., Path]) -> None:
    """All its windows are computed before it is given up, and none is left in the engine."""
    served = serve(tiny_model("llama"))
    texts = [tuple([98 if token == 99 else token for token in ids] for ids in pair) for pair in make_texts()]
    bad = [7] * 70 + [99] + [7] * 70
    embed = served.model.module.get_input_embeddings()
    weight = embed.weight.detach().clone()
    try:
        with torch.no_grad():
            embed.weight[99] = torch.nan
        engine = make_engine(served, config={"max_batch_rows": 1})
        *good, failed = finish(engine, [*requests_of(texts), ask([5], score(bad), row_idx=len(texts))])
    finally:
        with torch.no_grad():
            embed.weight.copy_(weight)
    assert failed.error is not None and failed.error.kind == "non_finite_logits" and failed.logprobs is None
    assert_equal(good, expected_scores(tiny_model("llama"), requests_of(texts)))
    assert engine.num_pending == 0


def test_a_text_that_does_not_fit_into_the_cache_is_returned_once(tiny_model: Callable[..., Path]) -> None:
    engine = make_engine(serve(tiny_model("llama")), num_pages=3)
    requests = [ask([5], score([7] * 900, 300, 100)), ask([8], score([9, 10]), row_idx=1)]
    large, small = finish(engine, requests)
    assert large.error is not None and large.error.kind == "kv_cache_full"
    assert small.error is None and engine.num_pending == 0

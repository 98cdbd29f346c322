"""Choices are scored as plain transformers would: summed log-softmax in fp32, whatever the engine's shape."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from job.config import EngineConfig
from job.engine.static.engine import StaticEngine
from job.tasks import Score
from tests.oracle import choice_logprobs
from tests.ranks import Ranks
from tests.serving import MODES, Observed, complete, load, make_engine, make_prompts, serve
from tests.test_paged_engine import SUPPORTED, UNSUPPORTED
from tests.test_trie import SETS
from tests.tiny import ARCHITECTURES

CHOICES = {name: [list(choice) for choice in choices] for name, choices in SETS.items()}
TOLERANCE = 1e-4


def scores_of(generations: list[Any]) -> list[list[float]]:
    assert [generation.error for generation in generations] == [None] * len(generations)
    assert {(generation.finish_reason, len(generation.token_ids)) for generation in generations} == {("stop", 0)}
    return [generation.numbers for generation in generations]


def score(choices: list[list[int]]) -> Score:
    return Score(choice_ids=tuple(map(tuple, choices)))


def assert_equal(found: list[list[float]], expected: list[list[float]]) -> None:
    assert torch.tensor(found).shape == torch.tensor(expected).shape
    assert float((torch.tensor(found) - torch.tensor(expected)).abs().max()) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETS)
def test_scores_equal_transformers_whatever_the_shape_of_the_engine(
    tiny_model: Callable[..., Path], observed: Observed, name: str, mode: str
) -> None:
    prompts, options = make_prompts(), MODES[mode]
    expected = choice_logprobs(tiny_model("llama"), prompts, CHOICES[name])
    num_tokens = []
    for share_prefixes in (False, True):
        observed.num_tokens = 0
        config = {**options["config"], "share_prefixes": share_prefixes}
        engine = make_engine(serve(tiny_model("llama")), **{**options, "config": config})
        assert_equal(scores_of(complete(engine, prompts, score(CHOICES[name]))), expected)
        assert engine.num_pending == 0 and not engine.scheduler.running
        num_tokens.append(observed.num_tokens)
    assert num_tokens[1] < 0.75 * num_tokens[0], "branches and prompts share what they have in common"


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_architecture_that_is_served_scores_as_transformers(tiny_model: Callable[..., Path], name: str) -> None:
    prompts, choices = make_prompts(), CHOICES["common beginnings"]
    engine = make_engine(serve(tiny_model(name)), **MODES["chunks"])
    assert_equal(
        scores_of(complete(engine, prompts, score(choices))), choice_logprobs(tiny_model(name), prompts, choices)
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_static_batches_score_as_transformers(tiny_model: Callable[..., Path], name: str) -> None:
    model, replica = load(tiny_model(name))
    prompts, choices = make_prompts(), CHOICES["common beginnings"]
    engine = StaticEngine(model, EngineConfig(max_batch_rows=7), replica)
    assert_equal(
        scores_of(complete(engine, prompts, score(choices))), choice_logprobs(tiny_model(name), prompts, choices)
    )


def test_choices_of_a_model_that_is_not_causal_are_error_rows(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its decoder would read the whole text at once, and score it wrongly without an error."""
    model, replica = load(tiny_model("llama"))
    monkeypatch.setattr(model.module.config, "is_encoder_decoder", True)
    engine = StaticEngine(model, EngineConfig(max_batch_rows=7), replica)
    generations = complete(engine, make_prompts()[:3], score([[5], [6]]))
    assert [str(generation.error).partition(":")[0] for generation in generations] == ["engine_error"] * 3


def test_a_row_that_is_not_finite_becomes_an_error_row_and_no_other(tiny_model: Callable[..., Path]) -> None:
    """All branches of the row are computed before it is given up, and none is left in the engine."""
    served, choices = serve(tiny_model("llama")), CHOICES["common beginnings"]
    prompts = [*(prompt for prompt in make_prompts() if 99 not in prompt), [5, 99, 7]]
    forward = served.model.module.forward

    def broken(input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        """Spoil the logits behind token 99, in its sequence alone."""
        output = forward(input_ids=input_ids, position_ids=position_ids, **kwargs)
        for idx in (input_ids[0] == 99).nonzero()[:, 0].tolist():
            behind = position_ids[0, idx:] - position_ids[0, idx]
            length = int((behind == torch.arange(len(behind))).long().cumprod(0).sum())
            wanted = kwargs["logits_to_keep"]
            output.logits[0, (wanted >= idx) & (wanted < idx + length)] = torch.nan
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.model.module, "forward", broken)
        engine = make_engine(served, config={"max_batch_rows": 16})
        *good, bad = complete(engine, prompts, score(choices))
    assert bad.error is not None and bad.error.kind == "non_finite_logits" and bad.numbers is None
    assert_equal(scores_of(good), choice_logprobs(tiny_model("llama"), prompts[:-1], choices))
    assert engine.num_pending == 0


def test_a_row_that_does_not_fit_into_the_cache_is_returned_once(tiny_model: Callable[..., Path]) -> None:
    prompts = [[7] * 300, [8, 9]]
    engine = make_engine(serve(tiny_model("llama")), num_pages=3)
    large, small = complete(engine, prompts, score(CHOICES["common beginnings"]))
    assert large.error is not None and large.error.kind == "kv_cache_full"
    assert small.error is None and engine.num_pending == 0


def test_scores_equal_transformers_on_two_ranks(tiny_model: Callable[..., Path], two_ranks: Ranks) -> None:
    """In chunks, with few pages, uneven heads included; and in static batches.

    That AutoTP cuts the other architectures as well is shown with generations, in test_paged_engine.
    """
    choices = CHOICES["common beginnings"]
    jobs = {name: {"model": name, **MODES["few pages and chunks"]} for name in ("llama_uneven", "gemma2")}
    jobs[UNSUPPORTED] = {"model": UNSUPPORTED, "engine": "chosen"}
    for name, job in jobs.items():
        job |= {"model": str(tiny_model(name)), "prompts": make_prompts(), "params": {}, "choices": choices}
    for name, output in two_ranks.run(jobs).items():
        assert {error for *_, error in output["generations"]} == {None}
        assert_equal(output["scores"], choice_logprobs(tiny_model(name), make_prompts(), choices))


REVIEWS = Path(__file__).parents[1] / "scripts/demo-data/reviews-200.jsonl"
LABELS = ("positive", "negative", "neutral", "very positive", "very negative")


def review_prompts(model_dir: str) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of real prompts and of five labels, some of which begin alike.

    Not of all 200, because the oracle computes each text anew, in fp32; JOB_SCORED_ROWS=200 takes all, some minutes.
    """
    num_rows = int(os.environ.get("JOB_SCORED_ROWS", "5"))
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [json.loads(line)["text"] for line in REVIEWS.open()][:num_rows]
    assert len(texts) == num_rows
    instruction = "Is this sentence of a product review positive, negative or neutral? Answer with one word."
    messages = [[{"role": "user", "content": f"{instruction}\n{text}"}] for text in texts]
    prompts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return prompts, [tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]


@pytest.mark.slow
@pytest.mark.skipif("JOB_TEST_MODEL" not in os.environ, reason="JOB_TEST_MODEL names no model; scripts/test sets it")
def test_scores_of_real_reviews_equal_transformers(two_ranks: Ranks) -> None:
    """On one rank in two shapes, and on two ranks (of its 9 heads, 3 key-value heads)."""
    model_dir = Path(os.environ["JOB_TEST_MODEL"])
    prompts, choices = review_prompts(str(model_dir))
    expected = choice_logprobs(model_dir, prompts, choices)
    job = {"model": str(model_dir), "prompts": prompts, "params": {}, "choices": choices}
    output = two_ranks.run({"two ranks": {**job, "config": {"max_batch_rows": 50}}})
    assert_equal(output["two ranks"]["scores"], expected)
    for config in ({}, {"max_batch_rows": 3, "max_batch_tokens": 100}):
        engine = make_engine(serve(model_dir), num_pages=1024, config=config)
        assert_equal(scores_of(complete(engine, prompts, score(choices))), expected)

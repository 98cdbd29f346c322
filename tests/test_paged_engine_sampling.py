"""What PagedEngine draws, against transformers: the distribution, penalties, log probabilities, samples of a row."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from job.records import Generation
from tests.serving import (
    MAX_NEW_TOKENS,
    MODES,
    OVERLAP,
    Observed,
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

SCORED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.7, "top_k": 5, "seed": 2},
    "penalized": {"repetition_penalty": 1.7},
}

NUM_SAMPLES = 20
"""More than there are rows whose queries meet a shared page at once."""


@cache
def transformers_model(model_dir: Path) -> Any:
    """Return a model that nothing of ours has touched, in float32."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def logits_of(model_dir: Path, ids: list[int]) -> torch.Tensor:
    """Return [T, V] of plain transformers."""
    with torch.inference_mode():
        return transformers_model(model_dir)(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("mode", ["all rows", "few pages"])
def test_samples_of_one_prompt_differ_and_equal_each_drawn_alone(
    tiny_model: Callable[..., Path], observed: Observed, mode: str
) -> None:
    """Their prompt is computed once: the last token by each, all others by the first."""
    served, task = serve(tiny_model("llama")), generate(temperature=1.0, seed=9)
    prompt = max(make_prompts(), key=len)[:90]
    requests = [ask(prompt, task, row_idx=4, sample_idx=sample_idx) for sample_idx in range(NUM_SAMPLES)]
    alone = [tokens(finish(make_engine(served), [request]))[0] for request in requests]
    observed.num_tokens = 0
    together = finish(make_engine(served, **MODES[mode]), requests)
    assert [generation.request for generation in together] == requests
    assert tokens(together) == alone
    assert len({tuple(ids) for ids in alone}) == NUM_SAMPLES
    if mode == "all rows":
        num_dropped = sum(len(ids) < MAX_NEW_TOKENS for ids in alone) if OVERLAP else 0  # after their last one
        assert observed.num_tokens == len(prompt) + NUM_SAMPLES - 1 + sum(len(ids) - 1 for ids in alone) + num_dropped
    else:
        assert observed.put_back


@pytest.mark.parametrize("mode", ["chunks", "few pages"])
def test_the_repetition_penalty_equals_that_of_transformers(tiny_model: Callable[..., Path], mode: str) -> None:
    """What a slot has seen is that of its row: slots are used again, and rows come back from preemptions."""
    prompts = make_prompts()
    model = transformers_model(tiny_model("llama"))
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=MAX_NEW_TOKENS, do_sample=False, repetition_penalty=1.7)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]
    engine = make_engine(serve(tiny_model("llama")), **MODES[mode])
    assert tokens(complete(engine, prompts, generate(repetition_penalty=1.7))) == expected
    assert expected != expected_tokens(tiny_model("llama"), prompts, MAX_NEW_TOKENS)


@pytest.mark.parametrize("mode", ["all rows", "few pages and chunks"])
@pytest.mark.parametrize("params", SCORED.values(), ids=SCORED)
def test_log_probabilities_are_those_of_the_model_itself(
    tiny_model: Callable[..., Path], observed: Observed, params: dict[str, Any], mode: str
) -> None:
    """Without temperature, filters and penalties; one for each token, preempted or not."""
    prompts = make_prompts()
    engine = make_engine(serve(tiny_model("llama")), **MODES[mode])
    generations = complete(engine, prompts, generate(logprobs=True, **params))
    assert bool(observed.put_back) == (mode == "few pages and chunks")
    for prompt, generation in zip(prompts, generations, strict=True):
        ids = list(generation.token_ids)
        scores = logits_of(tiny_model("llama"), prompt + ids)[len(prompt) - 1 : -1].log_softmax(dim=-1)
        expected = scores[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        assert generation.logprobs == pytest.approx(expected, abs=1e-4)


def test_log_probabilities_are_left_out_unless_asked_for(tiny_model: Callable[..., Path]) -> None:
    generations = complete(make_engine(serve(tiny_model("llama"))), [[5, 6, 7]])
    assert generations[0].logprobs is None


def first_tokens(generations: list[Generation]) -> Counter[int]:
    """Count the first tokens."""
    return Counter(generation.token_ids[0] for generation in generations)


def test_first_tokens_are_distributed_as_the_softmax_of_the_logits(tiny_model: Callable[..., Path]) -> None:
    """A chi-squared test of 8,192 samples of one prompt; tokens expected less than 8 times make one bin."""
    prompt, temperature, num_samples = [10, 20, 30, 40, 50], 1.5, 8192
    task = generate(temperature=temperature, seed=1, max_new_tokens=1)
    requests = [ask(prompt, task, sample_idx=sample_idx) for sample_idx in range(num_samples)]
    config = {"max_batch_rows": 256}
    served = serve(tiny_model("llama"))
    engine = make_engine(served, num_pages=300, config=config)
    counts = first_tokens(finish(engine, requests))
    logits = logits_of(tiny_model("llama"), prompt)[-1]
    expected = (logits / temperature).softmax(dim=-1).double() * num_samples
    observed = torch.tensor([counts[token] for token in range(len(expected))]).double()
    rare = expected < 8
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    statistic = ((observed - expected) ** 2 / expected).sum()
    num_degrees = len(expected) - 1
    assert num_degrees > 50, "a distribution of few tokens would show little"
    p_value = torch.special.gammaincc(torch.tensor(num_degrees / 2).double(), statistic / 2)
    assert p_value > 1e-4

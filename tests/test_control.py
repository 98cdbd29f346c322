"""What rows are told to avoid or to favor, in both engines, against a plain loop over the model of transformers.

The loop computes the whole text anew for every token, and applies each control as its documentation defines it.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from job.engine.protocol import Engine
from job.errors import UsageError
from job.tasks import SamplingParams
from tests.serving import complete, generate, make_prompts, tokens
from tests.test_mixed_tasks import engine_of

ENGINES = [("paged", "all rows"), ("paged", "few pages and chunks"), ("static", "all rows")]

PROMPTS = [*make_prompts()[:5], [5, 6, 7]]


@cache
def model_of(model_dir: Path) -> Any:
    """Return a model that nothing of ours has touched, in float32."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@cache
def by_a_plain_loop(model_dir: Path, prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
    """Return the tokens of greedy decoding."""
    ids: list[int] = []
    while len(ids) < params.max_new_tokens and (not ids or ids[-1] != 1):
        with torch.no_grad():
            scores = model_of(model_dir)(torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
        for token, count in Counter(ids).items():
            scores[token] -= params.presence_penalty + params.frequency_penalty * count
        ids.append(int(scores.argmax()))
    return ids


def expected(model_dir: Path, params: SamplingParams) -> list[list[int]]:
    """Return what the loop gives for all prompts."""
    return [by_a_plain_loop(model_dir, tuple(prompt), params) for prompt in PROMPTS]


@pytest.fixture
def model_dir(tiny_model: Callable[..., Path]) -> Path:
    """Return a model whose logits lie close together, so that small numbers change its tokens."""
    return tiny_model("llama", initializer_range=0.12)


def engine(where: tuple[str, str], model_dir: Path) -> Engine:
    """Return an engine of a kind and a shape."""
    return engine_of(where[0], model_dir, where[1])


PENALTIES: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 2.0},
    "frequency": {"frequency_penalty": 0.3},
    "both": {"presence_penalty": 1.2, "frequency_penalty": 0.7},
    "below 0": {"presence_penalty": -2.0, "frequency_penalty": -1.0},
}


@pytest.mark.parametrize("where", ENGINES, ids=str)
@pytest.mark.parametrize("penalties", PENALTIES.values(), ids=PENALTIES)
def test_penalties_count_what_was_generated(
    model_dir: Path, where: tuple[str, str], penalties: dict[str, float]
) -> None:
    task = generate(max_new_tokens=24, **penalties)
    assert tokens(complete(engine(where, model_dir), PROMPTS, task)) == expected(model_dir, task.params)
    assert expected(model_dir, task.params) != expected(model_dir, generate(max_new_tokens=24).params)


def test_penalties_beyond_those_of_the_api_are_refused() -> None:
    with pytest.raises(UsageError, match="presence-penalty"):
        SamplingParams(presence_penalty=2.5)
    with pytest.raises(UsageError, match="frequency-penalty"):
        SamplingParams(frequency_penalty=float("nan"))

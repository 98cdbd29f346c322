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
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from job.engine.protocol import Engine
from job.errors import UsageError
from job.tasks import SamplingParams
from tests.serving import ask, complete, finish, generate, make_prompts, tokens
from tests.test_mixed_tasks import ends_at, engine_of, grammar_of
from tests.tiny import make_tokenizer

ENGINES = [("paged", "few pages and chunks"), ("static", "all rows")]

PROMPTS = [make_prompts()[1], make_prompts()[2], [5, 6, 7]]


@cache
def model_of(model_dir: Path) -> Any:
    """Return a model that nothing of ours has touched, in float32."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


EOS = (1, 178)
"""The end-of-sequence tokens: one of the model's own, and one that it often writes."""


def processors(params: SamplingParams) -> LogitsProcessorList:
    """Return what transformers has for the parameters. It sees the tokens of the completion only."""
    ends = list({*EOS, *params.stop_token_ids})
    found: list[Any] = [MinNewTokensLengthLogitsProcessor(0, params.min_new_tokens, ends)]
    if params.bad_token_ids:
        found.append(NoBadWordsLogitsProcessor([list(word) for word in params.bad_token_ids]))
    if params.biases:
        found.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in params.biases}))
    return LogitsProcessorList(found)


@cache
def by_a_plain_loop(model_dir: Path, prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
    """Return the tokens of greedy decoding."""
    ids: list[int] = []
    process, ends = processors(params), {*EOS, *params.stop_token_ids}
    while len(ids) < params.max_new_tokens and (not ids or ids[-1] not in ends):
        with torch.no_grad():
            scores = model_of(model_dir)(torch.tensor([[*prompt, *ids]])).logits[:, -1].double()
        scores = process(torch.tensor([ids], dtype=torch.int64), scores)[0]
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
    return engine_of(where[0], model_dir, where[1], EOS)


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
    task = generate(max_new_tokens=18, **penalties)
    assert tokens(complete(engine(where, model_dir), PROMPTS, task)) == expected(model_dir, task.params)
    assert expected(model_dir, task.params) != expected(model_dir, generate(max_new_tokens=18).params)


CONTROLS: dict[str, dict[str, Any]] = {
    "biases": {"biases": ((17, 1.5), (40, -100.0), (178, 100.0), (205, 0.3))},
    "minimum": {"min_new_tokens": 9},
    "minimum to the end": {"min_new_tokens": 18},
    "stop tokens": {"stop_token_ids": tuple(range(0, 260, 9))},
    "minimum with stop tokens": {"stop_token_ids": tuple(range(0, 260, 7)), "min_new_tokens": 5},
    "bad tokens": {"bad_token_ids": tuple((token,) for token in range(2, 260, 2))},
    "all": {
        "biases": ((17, 1.5), (40, -100.0), (200, 0.3)),
        "bad_token_ids": ((3,), (5, 6), *((token, token + 1) for token in range(100))),
        "stop_token_ids": (33, 90),
        "min_new_tokens": 6,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
    },
}


@pytest.mark.parametrize("where", ENGINES, ids=str)
@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_what_is_favored_and_ruled_out_is_what_transformers_does(
    model_dir: Path, where: tuple[str, str], control: dict[str, Any]
) -> None:
    task = generate(max_new_tokens=18, **control)
    generations = complete(engine(where, model_dir), PROMPTS, task)
    assert tokens(generations) == expected(model_dir, task.params)
    assert expected(model_dir, task.params) != expected(model_dir, generate(max_new_tokens=18).params)
    ends = {*EOS, *task.params.stop_token_ids}
    reasons = ["stop" if generation.token_ids[-1] in ends else "length" for generation in generations]
    assert [generation.finish_reason for generation in generations] == reasons


@pytest.mark.parametrize("where", ENGINES, ids=str)
def test_bad_words_of_several_tokens_are_ruled_out_where_they_would_be_completed(
    model_dir: Path, where: tuple[str, str]
) -> None:
    """The words are what each completion would say otherwise, so each of them would occur."""
    plain = expected(model_dir, generate(max_new_tokens=18).params)
    words = tuple(
        {tuple(ids[at : at + size]) for ids in plain for at, size in ((0, 2), (2, 3), (5, 4)) if len(ids) > 9}
    )
    task = generate(max_new_tokens=18, bad_token_ids=words)
    found = tokens(complete(engine(where, model_dir), PROMPTS, task))
    assert found == expected(model_dir, task.params) != plain
    texts = ["".join(map(chr, ids)) for ids in found]
    assert not any("".join(map(chr, word)) in text for word in words for text in texts)


@pytest.mark.parametrize("where", ENGINES, ids=str)
def test_a_row_whose_grammar_leaves_nothing_else_is_an_error(model_dir: Path, where: tuple[str, str]) -> None:
    """Tokens that are forced are ruled out like the others."""
    a, b, c = make_tokenizer().encode("abc")
    for word in [(a,), (b,), (b, c)]:
        task = generate(grammar_of("abc+d"), bad_token_ids=(word,))
        tasks = [task, generate(grammar_of("abc+d")), generate(temperature=1.0, top_p=0.9, bad_token_ids=(word,))]
        asked = [ask(PROMPTS[0], each, row_idx=row_idx) for row_idx, each in enumerate(tasks)]
        bad, good, free = finish(engine(where, model_dir), asked)
        assert str(bad.error).startswith("constraint_failed: ") and "--bad-words" in str(bad.error)
        assert good.error is None and free.error is None


@pytest.mark.parametrize("where", ENGINES, ids=str)
def test_a_grammar_that_allows_nothing_more_ends_a_completion_below_its_minimum(
    model_dir: Path, where: tuple[str, str]
) -> None:
    [short] = complete(engine(where, model_dir), PROMPTS[:1], generate(grammar_of("ab"), min_new_tokens=9))
    assert (len(short.token_ids), short.finish_reason, short.error) == (2, "stop", None)
    [long] = complete(engine(where, model_dir), PROMPTS[:1], generate(grammar_of("[ab]*"), min_new_tokens=9))
    assert len(long.token_ids) >= 9 and long.error is None


@pytest.mark.parametrize("where", ENGINES, ids=str)
def test_a_stop_string_counts_once_there_is_more_than_the_minimum(model_dir: Path, where: tuple[str, str]) -> None:
    [plain] = complete(engine(where, model_dir), PROMPTS[:1], generate(max_new_tokens=18, ignore_eos=True))
    for minimum in (0, 3, 18):
        task = generate(max_new_tokens=18, ignore_eos=True, min_new_tokens=minimum, ends_text=ends_at(*range(260)))
        [found] = complete(engine(where, model_dir), PROMPTS[:1], task)
        assert list(found.token_ids) == list(plain.token_ids)[: minimum + 1]


def test_penalties_beyond_those_of_the_api_are_refused() -> None:
    with pytest.raises(UsageError, match="presence-penalty"):
        SamplingParams(presence_penalty=2.5)
    with pytest.raises(UsageError, match="frequency-penalty"):
        SamplingParams(frequency_penalty=float("nan"))

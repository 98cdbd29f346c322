"""One engine, requests that ask different things: each gets what it would get alone, whatever is beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job.config import EngineConfig
from job.data.tokenizer import Tokenizer
from job.engine.logits import constraint
from job.engine.protocol import Engine
from job.engine.static.engine import StaticEngine
from job.modes.structured import StructuredMode
from job.records import Generation, Request
from job.tasks import Grammar, Score, ScoreText, Task
from tests.ranks import Ranks
from tests.serving import (
    MODES,
    Observed,
    ask,
    complete,
    expected_tokens,
    finish,
    generate,
    load,
    make_engine,
    make_prompts,
    serve,
)
from tests.tiny import make_tokenizer

ENGINES = ("paged", "static")


@cache
def grammar_of(regex: str) -> Grammar:
    return StructuredMode(regex=regex).compiled(Tokenizer(make_tokenizer()))


def ends_at(*token_ids: int) -> Callable[[Sequence[Sequence[int]]], list[bool]]:
    """Return what ends a text at one of some tokens."""
    return lambda completions: [ids[-1] in token_ids for ids in completions]


def tasks() -> list[Task]:
    """Return tasks that differ in all that a task can say."""
    return [
        generate(),
        generate(max_new_tokens=3),
        generate(max_new_tokens=20, ignore_eos=True),
        generate(temperature=1.0, seed=3),
        generate(temperature=1.5, top_k=20, seed=4, logprobs=True),
        generate(temperature=1.0, top_p=0.9, seed=3),
        generate(repetition_penalty=1.7),
        generate(frequency_penalty=2.0, presence_penalty=1.0),
        generate(biases=((30, 2.0), (200, -9.0)), bad_token_ids=((7,), (40, 41)), min_new_tokens=7),
        generate(grammar_of("[a-m]{2,9}!"), bad_token_ids=((100,), (101, 102)), temperature=1.0, top_p=0.9),
        generate(stop_token_ids=tuple(range(2, 60)), min_new_tokens=2, max_new_tokens=20, ignore_eos=True),
        generate(ends_text=ends_at(*range(2, 60))),
        generate(ends_text=ends_at(*range(60, 120)), temperature=1.0),
        generate(grammar_of("(ab|cd)+-[0-9]{2,4}, and so on")),
        generate(grammar_of("[xyz]{3,9}!"), temperature=1.0, logprobs=True),
        Score(choice_ids=((5, 6), (5, 7), (8, 9, 10))),
        Score(choice_ids=((200,), (100, 101))),
        ScoreText(text_ids=tuple(range(20, 150)), num_bytes=1, window=100, stride=60),
    ]


def requests() -> list[Request]:
    """Return one for each task and prompt, in an order that puts unlike tasks side by side."""
    prompts = make_prompts()[:4]
    return [
        ask(prompt, task, row_idx=row_idx, sample_idx=sample_idx)
        for row_idx, prompt in enumerate(prompts)
        for sample_idx, task in enumerate(tasks())
    ]


def engine_of(name: str, model_dir: Path, mode: str, eos_token_ids: tuple[int, ...] = (1,)) -> Engine:
    if name == "static":
        model, replica = load(model_dir)
        model = replace(model, eos_token_ids=eos_token_ids)
        return StaticEngine(model, EngineConfig(max_batch_rows=MODES[mode]["config"]["max_batch_rows"]), replica)
    served = serve(model_dir)
    return make_engine(replace(served, model=replace(served.model, eos_token_ids=eos_token_ids)), **MODES[mode])


def answer(generation: Generation) -> tuple[Any, ...]:
    scores = [generation.logprobs, generation.numbers]
    rounded = [None if values is None else [pytest.approx(value, abs=1e-4) for value in values] for values in scores]
    return generation.request.key, list(generation.token_ids), generation.finish_reason, generation.error, *rounded


@cache
def answers_alone(model_dir: Path) -> list[tuple[Any, ...]]:
    """Return what each request gets in an engine of its own."""
    return [answer(finish(make_engine(serve(model_dir)), [request])[0]) for request in requests()]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("paged", mode) for mode in MODES] + [("static", "one row"), ("static", "chunks"), ("static", "all rows")],
)
def test_each_request_gets_what_it_gets_alone(tiny_model: Callable[..., Path], name: str, mode: str) -> None:
    generations = finish(engine_of(name, tiny_model(), mode), requests())
    assert [answer(generation) for generation in generations] == answers_alone(tiny_model())
    assert {generation.finish_reason for generation in generations} == {"stop", "length"}


def test_one_step_holds_several_kinds_of_tasks(tiny_model: Callable[..., Path], monkeypatch: Any) -> None:
    """Or else the tests here would hold for nothing."""
    engine = make_engine(serve(tiny_model()), config={"max_batch_rows": 64})
    num_kinds = []
    start = engine._tasks.start

    def counted(*args: Any) -> Any:
        choice = start(*args)
        num_kinds.append(len(choice._parts))
        return choice

    monkeypatch.setattr(engine._tasks, "start", counted)
    finish(engine, requests())
    assert max(num_kinds) == 3


@pytest.mark.parametrize("name", ENGINES)
def test_a_tokenizer_that_raises_costs_no_other_row_its_end(
    tiny_model: Callable[..., Path], observed: Observed, name: str
) -> None:
    """A regression: rows got their tokens, then the tokenizer raised on one of them, and all were computed again with
    those tokens, whose checks never happened: a row that had just drawn its end-of-sequence token ran past it.
    """
    prompts = make_prompts()
    expected = expected_tokens(tiny_model(), prompts, 12)
    odd, eos = expected[0][3], expected[1][3]  # of one step
    assert all(odd not in ids[:3] for ids in expected), "the step is the first that fails"
    expected = [next((ids[: idx + 1] for idx, token in enumerate(ids) if token in (1, eos)), ids) for ids in expected]

    def ends_text(completions: Sequence[Sequence[int]]) -> list[bool]:
        if any(odd in ids for ids in completions):
            raise IndexError("piece id is out of range")
        return [False] * len(completions)

    engine = engine_of(name, tiny_model(), "all rows", eos_token_ids=(1, eos))
    num_errors = 0
    for generation, ids in zip(complete(engine, prompts, generate(ends_text=ends_text)), expected, strict=True):
        if odd in ids:
            assert str(generation.error).endswith("looking for stop strings: IndexError: piece id is out of range")
            num_errors += 1
        else:
            assert (list(generation.token_ids), generation.error) == (ids, None)
    assert 1 <= num_errors < len(prompts) / 2
    assert not observed.put_back, "nothing is computed again"


def test_a_grammar_that_is_no_longer_kept_is_compiled_again(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may bring a grammar for each row: what is compiled must not grow with the rows."""
    monkeypatch.setattr(constraint, "MAX_KEPT_GRAMMARS", 2)
    alphabet = ("abc", "def", "ghi", "jkl")
    asked = [
        ask([5, 6, row_idx], generate(grammar_of(alphabet[row_idx % 4])), row_idx=row_idx) for row_idx in range(12)
    ]
    engine = make_engine(serve(tiny_model()))
    texts = [make_tokenizer().decode(list(g.token_ids), skip_special_tokens=True) for g in finish(engine, asked)]
    assert texts == [alphabet[row_idx % 4] for row_idx in range(12)]


def test_two_ranks_give_each_request_what_it_gets_alone(tiny_model: Callable[..., Path], two_ranks: Ranks) -> None:
    """Followers know nothing of tasks, and still compute the same steps and batches as their leader."""
    jobs = {
        name: {"model": str(tiny_model()), "engine": name, "mixed": True, "config": {"max_batch_rows": 6}}
        for name in ENGINES
    }
    for output in two_ranks.run(jobs).values():
        rows = zip(output["generations"], output["logprobs"], output["scores"], strict=True)
        assert [(tuple(key), *rest, *scores) for (key, *rest), *scores in rows] == answers_alone(tiny_model())

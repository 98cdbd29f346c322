"""Reasoning before an answer, in engines: where it begins and ends, its budget, and what holds from its end on."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job.config import EngineConfig
from job.data.tokenizer import Tokenizer
from job.engine.protocol import Engine
from job.engine.static.engine import StaticEngine
from job.modes.stop_texts import StopTexts
from job.modes.structured import StructuredMode
from job.records import Generation, Request
from job.tasks import Generate, Grammar
from job.tasks.reasoning import Reasoning, Thought
from tests.oracle import greedy, logprobs_of
from tests.serving import MODES, Served, ask, finish, generate, load, make_engine, make_prompts, serve
from tests.tiny import make_tokenizer

DEFAULT_CASES = 4
NUM_CASES = int(os.environ.get("JOB_TEST_CASES", DEFAULT_CASES))

START, END = (200,), (201,)
ONE = Reasoning(start_ids=START, end_ids=END, closing_ids=END, border_ids=frozenset([0, 1, 200, 201]))
"""Markers that are single tokens."""
LONG = Reasoning(start_ids=(202, 30, 203), end_ids=(202, 31, 203), closing_ids=(204, 205, 202, 31, 203))
"""Markers that begin alike, and a longer text that is forced, like the channels of gpt-oss."""


def answer_of(reasoning: Reasoning, prompt: Sequence[int], completion: Sequence[int], **options: Any) -> Thought:
    """Return how far a completion is."""
    thought = Thought(reasoning, prompt, **{"is_constrained": False, **options})
    for token in completion:
        assert not thought.forced or thought.forced[0] == token
        thought.accept(token)
    return thought


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ([5, 200], True),
        ([5, 200, 12, 12], True),
        ([5, 200, 7, 201], False),
        ([200, 7, 201, 9, 200, 8], True),
        ([200, 7, 1, 5], False),
        ([5, 6], False),
        ([201], False),
        ([], False),
    ],
)
def test_a_prompt_may_begin_the_reasoning(prompt: list[int], is_open: bool) -> None:
    """A marker in the text of a row is an old one once its turn has ended."""
    assert ONE.is_open_after(prompt) == is_open
    assert LONG.is_open_after([*prompt, 202, 30, 203, 8])
    assert not LONG.is_open_after([*prompt, 202, 31, 203, 8])


@pytest.mark.parametrize(
    ("reasoning", "prompt", "completion", "parts"),
    [
        (ONE, [5], [200, 7, 8, 201, 9], (1, 3, 4)),
        (ONE, [5, 200], [7, 8, 201, 201], (0, 2, 3)),
        (ONE, [5], [7, 200, 8, 201], (None, None, 0)),
        (ONE, [5], [201, 7], (None, None, 1)),
        (ONE, [5], [200, 201, 7], (1, 1, 2)),
        (ONE, [5], [200, 7], (1, 2, None)),
        (ONE, [5], [], (None, None, None)),
        (LONG, [5], [202, 30, 203, 7, 204, 205, 202, 31, 203, 8], (3, 4, 9)),
        (LONG, [5], [202, 30, 203, 7, 202, 31, 203, 8], (3, 4, 7)),
        (LONG, [5], [202, 31, 203, 8], (None, None, 3)),
        (LONG, [5], [202, 32, 8], (None, None, 0)),
        (LONG, [5], [202, 30], (None, None, None)),
    ],
)
def test_a_completion_is_split_at_its_markers(
    reasoning: Reasoning, prompt: list[int], completion: list[int], parts: tuple[int | None, ...]
) -> None:
    thought = answer_of(reasoning, prompt, completion)
    end = None if thought.begin is None else thought.end
    assert (thought.begin, end, thought.answer_begin) == parts and not thought.is_cut
    if thought.begin is not None and end is not None:
        assert thought.num_reasoning_tokens == end - thought.begin


def test_the_end_is_forced_at_the_budget_unless_it_came_before() -> None:
    bounded = replace(LONG, max_tokens=2)
    thought = answer_of(bounded, [202, 30, 203], [7, 8])
    assert list(thought.forced) == [204, 205, 202, 31, 203] and not thought.is_cut
    thought = answer_of(bounded, [202, 30, 203], [7, 204, 205, 202, 31, 203, 9])
    assert (thought.end, thought.answer_begin) == (1, 6) and not thought.is_cut, "the model had begun to end it"
    assert answer_of(bounded, [202, 30, 203], [7, 8, 204]).is_cut
    thought = answer_of(replace(LONG, max_tokens=6), [202, 30, 203], [7, 202, 31, 203, 9, 9, 9, 9, 9])
    assert not thought.is_cut and not thought.forced, "the answer is not counted"
    assert list(answer_of(replace(ONE, max_tokens=0), [200], []).forced) == [201]


@pytest.mark.parametrize("case", range(NUM_CASES))
def test_a_thought_equals_one_that_is_read_at_once(case: int) -> None:
    """For single-token markers: the first end marker after a start, or the budget, whichever is earlier."""
    rng = random.Random(case)
    for _ in range(200):
        most, is_open = rng.choice([None, 0, 1, 2, 5]), rng.random() < 0.5
        thought = Thought(replace(ONE, max_tokens=most), [200] if is_open else [5], is_constrained=False)
        completion: list[int] = []
        for _ in range(rng.randrange(12)):
            token = thought.forced[0] if thought.forced else rng.choice([200, 201, 7, 8, 9])
            thought.accept(token)
            completion.append(token)
        begin = 0 if is_open else 1 if completion[:1] == [200] else None
        expected = begin
        if begin is None:
            expected = None if not completion else int(completion[0] == 201)
        else:
            at = [idx for idx, token in enumerate(completion) if token == 201 and idx >= begin]
            expected = at[0] + 1 if at else None
            assert most is None or thought.num_reasoning_tokens <= most
        assert (thought.begin, thought.answer_begin) == (begin, expected)


def forced_open(max_tokens: int | None, **changes: Any) -> Reasoning:
    """Return reasoning that any prompt has begun: the byte-level models never write a marker by themselves."""

    class Open(Reasoning):
        def is_open_after(self, prompt_ids: Sequence[int]) -> bool:
            return True

    values = {name: getattr(ONE, name) for name in ("start_ids", "end_ids", "closing_ids", "border_ids")}
    return Open(**{**values, **changes}, max_tokens=max_tokens)


def task(
    max_tokens: int | None, grammar: Grammar | None = None, closing: tuple[int, ...] = END, **params: Any
) -> Generate:
    reasoning = forced_open(max_tokens, closing_ids=closing, end_ids=closing[-1:])
    return replace(generate(grammar, **params), reasoning=reasoning)


def results(generations: list[Generation]) -> list[Any]:
    return [(list(g.token_ids), g.finish_reason, g.error) for g in generations]


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    return serve(tiny_model())


@pytest.mark.parametrize("closing", [(201,), (210, 211, 201)])
def test_the_end_is_forced_at_every_position(
    served: Served, tiny_model: Callable[..., Path], closing: tuple[int, ...]
) -> None:
    """The answer equals that of plain transformers to a prompt that ends in the same reasoning and marker.

    One of the rows ends by itself, as it does where its last token is the last one of the budget.
    """
    prompts, most = make_prompts()[3:5], 9
    requests = [
        ask(prompt, task(budget, closing=closing, max_new_tokens=most), row_idx=row_idx, sample_idx=budget)
        for row_idx, prompt in enumerate(prompts)
        for budget in range(most)
    ]
    thoughts = greedy(tiny_model(), prompts, most)
    assert [1 in thought for thought in thoughts] == [False, True]
    begun = [thoughts[request.row_idx][: request.sample_idx] for request in requests]
    begun = [thought if 1 in thought or 201 in thought else [*thought, *closing] for thought in begun]
    asked = [[*request.prompt_ids, *start] for request, start in zip(requests, begun, strict=True)]
    answers = greedy(tiny_model(), asked, most)
    expected = [start if 1 in start else [*start, *answer][:most] for start, answer in zip(begun, answers, strict=True)]
    for overlap in (False, True):
        found = finish(make_engine(served, config={"overlap": overlap}), requests)
        assert [list(generation.token_ids) for generation in found] == expected


@cache
def grammar() -> Grammar:
    return StructuredMode(regex="(yes|no): [a-z]{3}").compiled(Tokenizer(make_tokenizer()))


def mixed_requests() -> list[Request]:
    """Return requests with and without reasoning, grammars, stops, draws and log probabilities."""
    constrained = grammar()
    stops = lambda completions: [len(ids) > 1 and ids[-1] % 5 == 0 for ids in completions]  # noqa: E731
    draws: list[dict[str, Any]] = [{}, {"temperature": 1.2, "seed": 4}, {"logprobs": True}, {"repetition_penalty": 1.5}]
    rng, requests = random.Random(3), []
    for row_idx, prompt in enumerate(make_prompts()):
        params = {"max_new_tokens": 24, **rng.choice(draws)}
        asked = task(
            rng.choice([None, 0, 1, 3, 8]), rng.choice([None, constrained]), rng.choice([END, (210, 201)]), **params
        )
        asked = asked if asked.grammar else replace(asked, ends_text=rng.choice([None, stops]))
        plain = replace(asked, reasoning=None)
        requests += [ask(prompt, each, row_idx=row_idx, sample_idx=idx) for idx, each in enumerate((asked, plain))]
        if asked.grammar is not None:
            undecided = replace(asked, reasoning=replace(ONE, max_tokens=2))
            requests.append(ask(prompt, undecided, row_idx=row_idx, sample_idx=2))
    return requests


@cache
def computed_by_the_static_engine(model_dir: Path) -> list[Any]:
    model, replica = load(model_dir)
    return results(finish(StaticEngine(model, EngineConfig(max_batch_rows=64), replica), mixed_requests()))


@pytest.mark.parametrize("mode", MODES if NUM_CASES > DEFAULT_CASES else ["all rows", "few pages and chunks"])
def test_all_ways_to_compute_give_the_same(served: Served, tiny_model: Callable[..., Path], mode: str) -> None:
    """Both engines, with and without overlap, in chunks and with rows that are preempted."""
    for overlap in (False, True) if mode == "all rows" or NUM_CASES > DEFAULT_CASES else (True,):
        shape = {**MODES[mode], "config": {**MODES[mode]["config"], "overlap": overlap}}
        found = results(finish(make_engine(served, **shape), mixed_requests()))
        assert found == computed_by_the_static_engine(tiny_model())


def test_the_grammar_begins_right_after_the_marker(served: Served) -> None:
    """With a marker of several tokens and log probabilities too, which need a step for each token."""
    for budget in (0, 1, 4):
        for params in ({}, {"logprobs": True}, {"temperature": 1.0}):
            asked = task(budget, grammar(), (210, 201), max_new_tokens=40, **params)
            for generation in finish(make_engine(served), [ask([5, 6], asked), ask([7], asked, row_idx=1)]):
                ids = list(generation.token_ids)
                assert ids[budget : budget + 2] == [210, 201] and generation.finish_reason == "stop"
                text = make_tokenizer().decode(ids[budget + 2 :], skip_special_tokens=True)
                assert text[:4] in ("yes:", "no: ") and len(text) in (7, 8)


def test_log_probabilities_of_a_forced_end_are_the_models_own(served: Served, tiny_model: Callable[..., Path]) -> None:
    asked = task(3, closing=(210, 211, 201), logprobs=True)
    [generation] = finish(make_engine(served), [ask([5, 6, 7], asked)])
    assert list(generation.token_ids[3:6]) == [210, 211, 201]
    expected = logprobs_of(tiny_model(), [5, 6, 7], list(generation.token_ids))
    assert generation.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_forced_end_costs_no_steps(served: Served) -> None:
    engine, num_steps = make_engine(served, config={"overlap": False}), 0
    engine.submit(ask([5, 6], task(2, closing=(*range(210, 220), 201), max_new_tokens=14)))
    while engine.num_pending:
        engine.step()
        num_steps += 1
    assert num_steps == 3


def test_stop_strings_are_looked_for_in_the_answer_alone(served: Served) -> None:
    asked: list[list[int]] = []

    def ends_text(completions: Sequence[Sequence[int]]) -> list[bool]:
        asked.extend(list(ids) for ids in completions)
        return [len(ids) == 2 for ids in completions]

    [generation] = finish(make_engine(served), [ask([5, 6], replace(task(3), ends_text=ends_text))])
    ids = list(generation.token_ids)
    assert len(ids) == 6 and generation.finish_reason == "stop" and asked == [ids[4:5], ids[4:]]


def test_white_space_behind_the_marker_ends_nothing(served: Served, tiny_model: Callable[..., Path]) -> None:
    """Models write an empty line there, and ``--stop $'\\n\\n'`` ended their answers before they began."""
    tokenizer = Tokenizer(make_tokenizer())
    model, replica = load(tiny_model())
    engines: list[Engine] = [make_engine(served), StaticEngine(model, EngineConfig(), replica)]
    for regex, stop, text in (
        ("\n\nab\n\ncd", "\n\n", "\n\nab\n\n"),
        ("\n{20}ab\n\ncd", "\n\n", f"{20 * chr(10)}ab\n\n"),
        ("\nab\nabc", "\nab", "\nab\nab"),
    ):
        answer = StructuredMode(regex=regex).compiled(tokenizer)
        ends_text = StopTexts(tokenizer, [stop], skips_leading_space=True)
        asked = replace(task(3, answer, max_new_tokens=60, logprobs=True), ends_text=ends_text)
        for engine in engines:
            [generation] = finish(engine, [ask([5, 6], asked)])
            assert tokenizer.decode([generation.token_ids[4:]]) == [text] and generation.finish_reason == "stop"


@pytest.mark.parametrize("overlap", [False, True])
def test_what_ends_within_its_reasoning_is_closed_if_its_answer_has_a_grammar(
    served: Served, tiny_model: Callable[..., Path], overlap: bool
) -> None:
    """The answer is that to a prompt that ends in the same reasoning and its end. Without a grammar, the row ends."""
    all_end = replace(served, model=replace(served.model, eos_token_ids=tuple(range(260))))
    [plain] = finish(make_engine(all_end), [ask([5, 6], task(None))])
    assert (len(plain.token_ids), plain.finish_reason) == (1, "stop")
    [prompt] = [prompt for prompt in make_prompts()[3:5] if 1 in greedy(tiny_model(), [prompt], 9)[0]]
    num_thought = greedy(tiny_model(), [prompt], 9)[0].index(1)
    model, replica = load(tiny_model())
    paged = make_engine(served, config={"overlap": overlap})
    engines: list[Engine] = [paged, StaticEngine(model, EngineConfig(), replica)]
    for closing in ((201,), (210, 211, 201)):
        for params in ({}, {"logprobs": True}):
            asked = task(None, grammar(), closing, max_new_tokens=40, **params)
            for engine in engines:
                [closed] = finish(engine, [ask(prompt, asked), ask([5, 6], generate(), row_idx=1)])[:1]
                begun = list(closed.token_ids[: num_thought + len(closing)])
                assert begun == [*greedy(tiny_model(), [prompt], num_thought)[0], *closing] and closed.error is None
                behind = ask([*prompt, *begun], replace(asked, reasoning=None))
                [answer] = finish(make_engine(served), [behind])
                assert list(closed.token_ids[len(begun) :]) == list(answer.token_ids)
                if params:
                    expected = logprobs_of(tiny_model(), prompt, list(closed.token_ids))
                    assert closed.logprobs == pytest.approx(expected, abs=1e-4)
    [cut] = finish(make_engine(served), [ask([5, 6], task(None, grammar(), max_new_tokens=4))])
    assert (len(cut.token_ids), cut.finish_reason, cut.error) == (4, "length", None)


def test_a_constrained_completion_may_begin_to_reason(served: Served) -> None:
    """At its first token, the start marker is allowed beside the grammar; the rest of a long one is then forced."""
    [unbound] = finish(make_engine(served), [ask([5, 6])])
    likely = int(unbound.token_ids[0])
    reasoning = Reasoning(start_ids=(likely, 211, 212), end_ids=END, closing_ids=END, max_tokens=2)
    asked = replace(generate(grammar(), max_new_tokens=40), reasoning=reasoning)
    [generation] = finish(make_engine(served), [ask([5, 6], asked)])
    ids = list(generation.token_ids)
    assert ids[:3] == [likely, 211, 212] and ids[5] == 201 and generation.finish_reason == "stop"
    other = replace(asked, reasoning=replace(reasoning, start_ids=(0,)))
    [generation] = finish(make_engine(served), [ask([5, 6], other)])
    [without] = finish(make_engine(served), [ask([5, 6], replace(asked, reasoning=None))])
    assert generation.token_ids == without.token_ids

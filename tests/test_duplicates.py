"""Equal prompts are computed once, and each request gets its own copy."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from job.engine import duplicates
from job.engine.duplicates import SharedCompletions
from job.engine.fake import FakeEngine
from job.records import Generation, Request
from job.tasks import Generate, SamplingParams, Score, Task

POISON = 13
GREEDY = Generate(params=SamplingParams(max_new_tokens=5))


class Recorder(FakeEngine):
    """A fake engine that knows what it was given, and gives log probabilities."""

    def __init__(self, **options: Any) -> None:
        """Fail on prompts with ``POISON``."""
        super().__init__(poison_id=POISON, **options)
        self.submitted: list[Request] = []
        self.num_steps = 0
        self.exit_codes: list[int] = []
        self.num_keep_alives = 0

    def submit(self, request: Request) -> None:
        self.submitted.append(request)
        super().submit(request)

    def step(self) -> list[Generation]:
        self.num_steps += 1
        return super().step()

    def keep_alive(self) -> None:
        self.num_keep_alives += 1

    def close(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)

    def follow(self) -> int:
        return 75

    def _complete(self, request: Request) -> Generation:
        generation = super()._complete(request)
        if generation.error is not None:
            return generation
        return Generation(
            request=request,
            token_ids=generation.token_ids,
            finish_reason=generation.finish_reason,
            logprobs=[-float(token) for token in generation.token_ids],
        )


def request(row_idx: int, prompt_ids: Sequence[int], sample_idx: int = 0, task: Task = GREEDY) -> Request:
    return Request(row_idx=row_idx, sample_idx=sample_idx, prompt_ids=prompt_ids, task=task)


def finish(engine: SharedCompletions) -> list[Generation]:
    """Step until nothing is pending."""
    generations: list[Generation] = []
    for _ in range(100):
        if not engine.num_pending:
            return generations
        generations += engine.step()
    raise AssertionError("it goes on and on")


def test_equal_prompts_are_computed_once() -> None:
    inner = Recorder()
    engine = SharedCompletions(inner)
    requests = [request(idx, [2, 3, idx % 3]) for idx in range(9)]
    for item in requests:
        engine.submit(item)
    generations = finish(engine)
    assert [item.row_idx for item in inner.submitted] == [0, 1, 2]
    assert sorted(generation.request.row_idx for generation in generations) == list(range(9))
    for generation in generations:
        assert generation.request is requests[generation.request.row_idx]
        expected = [generation.request.row_idx % 3, 3, 2]
        assert generation.token_ids == expected and generation.finish_reason == "stop"
        assert generation.logprobs == [-float(token) for token in expected] and generation.error is None


def test_samples_of_a_row_are_equal_prompts() -> None:
    """With greedy decoding they have equal completions."""
    inner = Recorder()
    engine = SharedCompletions(inner)
    for sample_idx in range(3):
        engine.submit(request(0, [4, 5], sample_idx))
    assert sorted(generation.request.key for generation in finish(engine)) == [(0, 0), (0, 1), (0, 2)]
    assert len(inner.submitted) == 1


def test_equal_prompts_are_shared_only_if_the_same_is_asked_of_them() -> None:
    """And sampled completions never are: each has draws of its own."""
    inner = Recorder()
    engine = SharedCompletions(inner)
    sampled = Generate(params=SamplingParams(max_new_tokens=5, temperature=1.0))
    longer = Generate(params=SamplingParams(max_new_tokens=6))
    tasks = [GREEDY, sampled, longer, Score(choice_ids=((1,),)), Score(choice_ids=((2,),))]
    for row_idx, task in enumerate(2 * tasks):
        engine.submit(request(row_idx, [4, 5], task=task))
    assert engine.num_pending == 10
    assert sorted(generation.request.row_idx for generation in finish(engine)) == list(range(10))
    assert [item.row_idx for item in inner.submitted] == [0, 1, 2, 3, 4, 6]
    assert Generate(params=SamplingParams(max_new_tokens=5)) == GREEDY, "equal tasks need not be one object"
    assert not is_computed(engine, inner, 4, 5)


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], [1, 2, 0]), ([1, 2], [2, 1]), ([256], [1]), ([0, 0], [0]), ([65536], [0, 1])]
)
def test_prompts_that_differ_in_anything_are_not_equal(one: list[int], other: list[int]) -> None:
    inner = Recorder()
    engine = SharedCompletions(inner)
    engine.submit(request(0, one))
    engine.submit(request(1, other))
    generations = finish(engine)
    assert [generation.token_ids for generation in generations] == [one[::-1], other[::-1]]
    assert len(inner.submitted) == 2


def test_lists_and_tuples_are_the_same_prompt() -> None:
    inner = Recorder()
    engine = SharedCompletions(inner)
    engine.submit(request(0, [7, 8]))
    engine.submit(request(1, (7, 8)))
    assert len(finish(engine)) == 2 and len(inner.submitted) == 1


def test_a_duplicate_of_a_finished_prompt_is_ready_at_once() -> None:
    inner = Recorder()
    engine = SharedCompletions(inner)
    engine.submit(request(0, [5, 6]))
    finish(engine)
    num_steps = inner.num_steps
    engine.submit(request(1, [5, 6]))
    engine.submit(request(2, [5, 6]))
    assert engine.num_pending == 2 and inner.num_pending == 0
    assert [(generation.request.row_idx, generation.token_ids) for generation in engine.step()] == [
        (1, [6, 5]),
        (2, [6, 5]),
    ]
    assert engine.num_pending == 0 and inner.num_steps == num_steps and len(inner.submitted) == 1


def test_an_error_is_copied_to_those_who_wait_and_then_forgotten() -> None:
    """A failure may be of the moment; who comes later is computed."""
    inner = Recorder()
    engine = SharedCompletions(inner)
    for row_idx in range(3):
        engine.submit(request(row_idx, [POISON]))
    generations = finish(engine)
    assert [generation.request.row_idx for generation in generations] == [0, 1, 2]
    assert {str(generation.error) for generation in generations} == {f"engine_error: token {POISON} is poison"}
    assert {generation.finish_reason for generation in generations} == {None}
    assert len(inner.submitted) == 1
    engine.submit(request(3, [POISON]))
    assert engine.num_pending == 1 and len(inner.submitted) == 2
    assert [generation.request.row_idx for generation in finish(engine)] == [3]


def test_pending_counts_duplicates_and_what_is_ready() -> None:
    inner = Recorder(rows_per_step=1)
    engine = SharedCompletions(inner)
    assert (engine.num_pending, engine.min_pending, engine.max_pending) == (0, 1, 4)
    for row_idx, prompt in enumerate([[1], [1], [2], [1], [2]]):
        engine.submit(request(row_idx, prompt))
        assert engine.num_pending == row_idx + 1
    assert inner.num_pending == 2
    assert engine.min_pending == 1 + 3, "duplicates keep no engine busy"
    assert [generation.request.row_idx for generation in engine.step()] == [0, 1, 3]
    assert (engine.num_pending, engine.min_pending) == (2, 2)
    engine.submit(request(5, [1]))
    assert (engine.num_pending, engine.min_pending) == (3, 3)
    assert [generation.request.row_idx for generation in engine.step()] == [5, 2, 4]
    assert (engine.num_pending, engine.min_pending) == (0, 1)


def test_computed_tokens_are_those_of_the_engine_inside() -> None:
    engine = SharedCompletions(Recorder())
    for row_idx in range(4):
        engine.submit(request(row_idx, [1, 2, 3]))
    finish(engine)
    assert engine.num_computed_tokens == 6


def is_computed(engine: SharedCompletions, inner: Recorder, *prompt_ids: int) -> bool:
    """Ask for a completion, and return whether the engine inside had to compute it."""
    num_submitted = len(inner.submitted)
    engine.submit(request(num_submitted, prompt_ids))
    assert len(finish(engine)) == 1
    return len(inner.submitted) > num_submitted


def test_what_was_not_asked_for_the_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_KEPT_TOKENS", 18)  # each token has a log probability
    monkeypatch.setattr(duplicates, "ROW_TOKENS", 0)
    inner = Recorder()
    engine = SharedCompletions(inner)

    def ask(first_token: int) -> bool:
        return is_computed(engine, inner, first_token, 3, 3)

    assert [ask(token) for token in (1, 2, 4)] == [True, True, True]
    assert [ask(token) for token in (2, 4, 1)] == [False, False, False]
    assert ask(5)
    assert [ask(token) for token in (4, 1, 5)] == [False, False, False]
    assert ask(2)
    assert ask(4), "it had not been asked for the longest when 2 came"


def test_a_long_completion_takes_the_room_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_KEPT_TOKENS", 18)  # each token has a log probability
    monkeypatch.setattr(duplicates, "ROW_TOKENS", 0)
    inner = Recorder()
    engine = SharedCompletions(inner)
    prompts = [(1, 3, 3), (2, 3, 3), (4, 3, 3), (5, 5, 5, 5, 5)]
    assert all(is_computed(engine, inner, *prompt) for prompt in prompts)
    assert [is_computed(engine, inner, *prompt) for prompt in prompts[2:]] == [False, False]
    assert is_computed(engine, inner, *prompts[1])
    assert is_computed(engine, inner, 6)
    assert [is_computed(engine, inner, *prompt) for prompt in [prompts[1], prompts[3], (6,)]] == [False, False, False]


def test_a_completion_that_is_longer_than_the_bound_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_KEPT_TOKENS", 2)
    monkeypatch.setattr(duplicates, "ROW_TOKENS", 0)
    inner = Recorder()
    engine = SharedCompletions(inner)
    for row_idx in range(2):
        engine.submit(request(row_idx, [1, 2, 3]))
        assert len(finish(engine)) == 1
    assert len(inner.submitted) == 2


def test_a_request_to_stop_returns_what_is_ready_and_nothing_else() -> None:
    stopped = False
    inner = Recorder(should_stop=lambda: stopped)
    engine = SharedCompletions(inner)
    engine.submit(request(0, [1]))
    finish(engine)
    engine.submit(request(1, [1]))
    engine.submit(request(2, [2]))
    stopped = True
    assert [generation.request.row_idx for generation in engine.step()] == [1]
    assert engine.num_pending == 1


def test_the_rest_goes_to_the_engine_inside() -> None:
    inner = Recorder()
    engine = SharedCompletions(inner)
    engine.keep_alive()
    engine.close(3)
    assert inner.num_keep_alives == 1 and inner.exit_codes == [3] and engine.follow() == 75


@pytest.mark.parametrize("seed", range(10))
def test_each_of_many_requests_comes_back_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitted and computed in a random order, with little room to remember."""
    monkeypatch.setattr(duplicates, "MAX_KEPT_TOKENS", 12)
    rng, inner = random.Random(seed), Recorder(rows_per_step=2)
    engine = SharedCompletions(inner)
    requests = [request(row_idx, [rng.randrange(6), rng.choice([1, POISON])]) for row_idx in range(80)]
    waiting, returned = list(requests), []
    while waiting or engine.num_pending:
        if waiting and rng.random() < 0.7:
            engine.submit(waiting.pop(0))
        elif engine.num_pending:
            returned += engine.step()
        assert engine.num_pending == len(requests) - len(waiting) - len(returned)
    assert sorted(generation.request.row_idx for generation in returned) == list(range(80))
    for generation in returned:
        is_poisoned = POISON in generation.request.prompt_ids
        assert (generation.error is not None) == is_poisoned
        assert generation.token_ids == ([] if is_poisoned else list(generation.request.prompt_ids)[::-1])
    assert 12 <= len(inner.submitted) < 70


def test_what_is_kept_does_not_hold_prompts() -> None:
    """Labels have no tokens: hundreds of thousands were kept, each with its prompt, and memory grew with the data."""
    engine = SharedCompletions(FakeEngine())
    for row_idx in range(100):
        engine.submit(request(row_idx, [row_idx] * 1000, task=Score(choice_ids=((1,), (2,)))))
    while engine.num_pending:
        engine.step()
    assert len(engine._finished) == 100
    assert {tuple(kept.request.prompt_ids) for kept in engine._finished.values()} == {()}
    assert engine._num_kept_tokens >= 100 * 16

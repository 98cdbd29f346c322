"""PagedEngine when a step fails, a row cannot be computed, or somebody asks it to stop: no other row is lost."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from job.engine.logits import pipeline
from job.errors import JobError
from job.records import Generation
from tests.serving import (
    MAX_NEW_TOKENS,
    MODES,
    Observed,
    Served,
    ask,
    complete,
    expected_tokens,
    generate,
    make_engine,
    make_prompts,
    serve,
    tokens,
)

ODD = 99
"""The token on which a test lets the model fail."""

Break = Callable[[Callable[[torch.Tensor], bool], Exception], None]


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    """Return a llama."""
    return serve(tiny_model("llama"))


@pytest.fixture
def expected(tiny_model: Callable[..., Path]) -> Callable[[Sequence[Sequence[int]]], list[list[int]]]:
    """Return the oracle of that llama."""
    return lambda prompts: expected_tokens(tiny_model("llama"), prompts, MAX_NEW_TOKENS)


@pytest.fixture
def break_forward(served: Served, monkeypatch: pytest.MonkeyPatch) -> Break:
    """Return a function that lets the model raise on some inputs."""
    module = served.model.module

    def break_it(is_broken: Callable[[torch.Tensor], bool], error: Exception) -> None:
        forward = module.forward

        def wrapped(input_ids: torch.Tensor, **kwargs: Any) -> Any:
            if is_broken(input_ids):
                raise error
            return forward(input_ids=input_ids, **kwargs)

        monkeypatch.setattr(module, "forward", wrapped)

    return break_it


def odd_prompts() -> list[list[int]]:
    """Return prompts three of which have the odd token, behind a beginning that others share."""
    prompts = make_prompts()
    longest = max(prompts, key=len)
    return [*prompts, [*longest[:40], ODD], [*longest[:67], ODD, 5, 6], [ODD, *longest[:9]]]


def reads_odd(prompt: Sequence[int], completion: Sequence[int]) -> bool:
    """Whether the model reads the odd token: the last token of a completion is not read."""
    return ODD in [*prompt, *completion[:-1]]


def check(
    generations: Sequence[Generation], prompts: Sequence[Sequence[int]], expected: Any, *, error: str
) -> list[Generation]:
    """Check that exactly the rows that read the odd token have an error, and the others their tokens."""
    assert [generation.request.row_idx for generation in generations] == list(range(len(prompts)))
    bad = []
    for generation, prompt, ids in zip(generations, prompts, expected(prompts), strict=True):
        if reads_odd(prompt, ids):
            assert str(generation.error).startswith(error)
            assert (list(generation.token_ids), generation.finish_reason) == ([], None)
            bad.append(generation)
        else:
            assert (list(generation.token_ids), generation.error) == (ids, None)
    assert 3 <= len(bad) < len(prompts) / 2
    return bad


def test_out_of_memory_is_met_with_smaller_steps(served: Served, expected: Any, break_forward: Break) -> None:
    """All rows are completed, and later steps stay small from the start."""
    sizes: list[int] = []

    def too_large(input_ids: torch.Tensor) -> bool:
        sizes.append(input_ids.shape[1])
        return input_ids.shape[1] > 20

    break_forward(too_large, torch.OutOfMemoryError("CUDA out of memory"))
    engine = make_engine(served, config={"max_batch_rows": 16, "max_batch_tokens": 64})
    prompts = make_prompts()
    assert tokens(complete(engine, prompts)) == expected(prompts)
    assert [size for size in sizes if size > 20] == [64, 32]


def test_out_of_memory_in_mid_completion_costs_no_token(
    served: Served, expected: Any, break_forward: Break, observed: Observed
) -> None:
    """Rows that have generated tokens are computed again, those tokens included."""
    num_calls: list[int] = []
    break_forward(lambda ids: num_calls.append(1) or len(num_calls) == 8, MemoryError("not enough memory"))
    prompts = make_prompts()
    assert tokens(complete(make_engine(served, config={"max_batch_rows": 64}), prompts)) == expected(prompts)
    assert max(observed.put_back) == 7


def test_memory_that_runs_out_while_choosing_makes_steps_smaller(
    served: Served, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader alone holds the copies of [rows, vocabulary] that choosing takes."""
    largest, sizes = pipeline.largest, []

    def too_large(logits: torch.Tensor) -> Any:
        sizes.append(len(logits))
        if len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return largest(logits)

    monkeypatch.setattr(pipeline, "largest", too_large)
    prompts = make_prompts()
    engine = make_engine(served, config={"max_batch_rows": 8, "max_batch_tokens": 64})
    assert tokens(complete(engine, prompts)) == expected(prompts)
    assert max(sizes[-50:]) == 2


def test_a_row_too_large_for_the_memory_is_an_error_row(served: Served, expected: Any, break_forward: Break) -> None:
    """It fails alone and in a small step; the others do not."""
    error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    break_forward(lambda ids: ODD in ids, error)
    prompts = odd_prompts()
    engine = make_engine(served, config={"max_batch_rows": 8, "max_batch_tokens": 64})
    check(complete(engine, prompts), prompts, expected, error="out_of_memory: ")


@pytest.mark.parametrize("mode", ["all rows", "few pages and chunks"])
@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), KeyError("odd"), ValueError("Connection to the igloo"), AssertionError()]
)
def test_a_row_on_which_the_model_fails_is_an_error_row(
    served: Served, expected: Any, break_forward: Break, error: Exception, mode: str
) -> None:
    """Halving the step finds it, whatever is raised, and rows that begin alike are not drawn in."""
    break_forward(lambda ids: ODD in ids, error)
    prompts = odd_prompts()
    bad = check(complete(make_engine(served, **MODES[mode]), prompts), prompts, expected, error="engine_error: ")
    assert all(type(error).__name__ in str(generation.error) for generation in bad)


def test_a_search_for_a_bad_row_goes_on_while_rows_arrive(served: Served, expected: Any, break_forward: Break) -> None:
    """Rows that are submitted meanwhile wait, and are computed."""
    break_forward(lambda ids: ODD in ids, RuntimeError("odd"))
    prompts, generations = odd_prompts(), []
    engine = make_engine(served, config={"max_batch_rows": 6})
    for row_idx, prompt in reversed(list(enumerate(prompts))):
        engine.submit(ask(prompt, row_idx=row_idx))
        generations += engine.step()
    while engine.num_pending:
        generations += engine.step()
    generations.sort(key=lambda generation: generation.request.key)
    check(generations, prompts, expected, error="engine_error: ")


def test_a_broken_device_ends_the_run(served: Served, break_forward: Break) -> None:
    """After a CUDA error every result is suspect: no row is blamed for it."""
    break_forward(lambda ids: True, RuntimeError("CUDA error: device-side assert triggered"))
    engine = make_engine(served)
    engine.submit(ask([5]))
    with pytest.raises(JobError, match="device"):
        engine.step()


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_p": 0.9}, {"logprobs": True}], ids=str)
def test_non_finite_logits_are_an_error_of_that_row_alone(
    served: Served, expected: Any, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    """float16 overflows on some models and some rows. What they draw instead means nothing, and is not returned."""
    prompts = make_prompts()
    prompts += [[*prompt[:20], ODD] for prompt in prompts[:3]]
    untouched = complete(make_engine(served), prompts, generate(**params))
    forward = served.model.module.forward

    def poisoned(input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
        is_odd = input_ids[0, logits_to_keep] == ODD
        output.logits[0, is_odd.nonzero()[:, 0], 7] = torch.nan
        return output

    monkeypatch.setattr(served.model.module, "forward", poisoned)
    generations = complete(make_engine(served, config={"max_batch_rows": 8}), prompts, generate(**params))
    num_bad = 0
    for generation, before in zip(generations, untouched, strict=True):
        if before.request.prompt_ids[-1] == ODD or ODD in before.token_ids[:-1]:
            assert str(generation.error).startswith("non_finite_logits: ")
            num_bad += 1
        else:
            assert (generation.token_ids, generation.error) == (before.token_ids, None)
    assert 3 <= num_bad < len(prompts) / 2


@pytest.fixture
def poisoned_embedding(served: Served) -> Iterator[None]:
    """Let the odd token's embedding be NaN: so are the keys and values of it and of all tokens behind it."""
    weight = served.model.module.get_input_embeddings().weight
    kept = weight[ODD].clone()
    with torch.inference_mode():
        weight[ODD] = torch.nan
    yield
    with torch.inference_mode():
        weight[ODD] = kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_what_a_bad_row_left_in_the_cache_harms_nobody(
    served: Served, expected: Any, poisoned_embedding: None, share_prefixes: bool, mode: str
) -> None:
    """Neither rows of the same step, nor rows with the same beginning, nor those that get its pages later."""
    prompts, options = odd_prompts(), MODES[mode]
    config = {**options["config"], "share_prefixes": share_prefixes}
    generations = complete(make_engine(served, **{**options, "config": config}), prompts)
    check(generations, prompts, expected, error="non_finite_logits: ")


def test_a_bad_row_does_not_spoil_the_rows_beside_it(served: Served, expected: Any, poisoned_embedding: None) -> None:
    """A regression: windows of unlike length were padded with page 0, whoever had it."""
    prompts = [[*range(100, 120), ODD, *range(120, 133)], *([token, *range(150, 180)] for token in range(11, 15))]
    generations = complete(make_engine(served, config={"share_prefixes": False}), prompts)
    assert [generation.error is None for generation in generations] == [False, True, True, True, True]
    assert tokens(generations[1:]) == expected(prompts[1:])


@pytest.mark.parametrize("num_before", [8, 40])
def test_a_bad_row_does_not_spoil_the_beginning_it_shares(
    served: Served, expected: Any, poisoned_embedding: None, num_before: int
) -> None:
    """A regression: in attention NaN passes masks, so tokens before the odd one are NaN if they are computed in the
    same step, and all rows that shared those were error rows.
    """
    beginning = max(make_prompts(), key=len)[:num_before]
    prompts = [[*beginning, 5, ODD, 7, 8], *([*beginning, 5, token] for token in range(10, 14))]
    generations = complete(make_engine(served), prompts)
    assert [generation.error is None for generation in generations] == [False, True, True, True, True]
    assert tokens(generations[1:]) == expected(prompts[1:])


def test_a_row_that_does_not_fit_into_the_cache_is_an_error_row(served: Served, expected: Any) -> None:
    """One prompt is too long from the start, one only with its completion; one is as long as the cache."""
    prompts = make_prompts()
    too_long, longest = [7] * 97, max(prompts, key=len)
    fits_barely = longest[: 96 - MAX_NEW_TOKENS + 1]
    others = [prompt for prompt in prompts if len(prompt) <= len(fits_barely)]
    prompts = [too_long, longest, fits_barely, *others]
    assert len(others) > 10
    for share_prefixes in (True, False):
        engine = make_engine(served, num_pages=3, config={"share_prefixes": share_prefixes})
        generations = complete(engine, prompts)
        assert tokens(generations[2:]) == expected(prompts[2:])
        for generation in generations[:2]:
            assert str(generation.error).startswith("kv_cache_full: ")
            assert "96 tokens of the KV cache; use a larger --kv-cache-memory" in str(generation.error)


@pytest.mark.parametrize(
    ("num_bytes", "told"),
    [(20, "Only 20 bytes are left for the KV cache"), (2**60, "are left for each process on this")],
)
def test_a_cache_that_cannot_be_had_ends_the_run_with_a_line(served: Served, num_bytes: int, told: str) -> None:
    """Not with an error row for every row, and not with a traceback."""
    with pytest.raises(JobError, match=told):
        make_engine(served, config={"kv_cache_memory": num_bytes})


def test_a_stop_request_leaves_before_the_next_step(served: Served, expected: Any, observed: Observed) -> None:
    """Nothing is lost or computed meanwhile, and the engine goes on if it is asked to."""
    is_stopped: list[bool] = []
    engine = make_engine(served, should_stop=lambda: bool(is_stopped))
    prompts = make_prompts()
    for row_idx, prompt in enumerate(prompts):
        engine.submit(ask(prompt, row_idx=row_idx))
    generations = engine.step() + engine.step()
    is_stopped.append(True)
    num_tokens = observed.num_tokens
    assert num_tokens > 0
    assert engine.step() == engine.step() == []
    assert observed.num_tokens == num_tokens
    assert engine.num_pending == len(prompts) - len(generations)
    is_stopped.clear()
    while engine.num_pending:
        generations += engine.step()
    assert tokens(sorted(generations, key=lambda generation: generation.request.key)) == expected(prompts)


def test_a_step_without_requests_does_nothing(served: Served) -> None:
    engine = make_engine(served)
    assert engine.step() == []
    assert engine.num_pending == engine.num_computed_tokens == 0


def test_computed_tokens_are_those_of_the_rows(served: Served, expected: Any) -> None:
    """Shared ones count for each of their rows: it is the user's work that is measured."""
    prompts = make_prompts()
    engine = make_engine(served, **MODES["few pages"])
    complete(engine, prompts)
    assert engine.num_computed_tokens == sum(map(len, prompts)) + sum(map(len, expected(prompts)))


def test_a_row_ends_at_eos_unless_eos_is_ignored(served: Served, expected: Any) -> None:
    """``finish_reason`` says which, and the count includes the end-of-sequence token. A model may have several."""
    prompts = make_prompts()
    (eos,) = served.model.eos_token_ids
    ends = (eos, expected(prompts)[0][2])
    ending = dataclasses.replace(served, model=dataclasses.replace(served.model, eos_token_ids=ends))
    generations = complete(make_engine(ending, config={"max_batch_rows": 3}), prompts)
    assert len(generations[0].token_ids) <= 3
    for generation, ids in zip(generations, expected(prompts), strict=True):
        end = next((idx + 1 for idx, token in enumerate(ids) if token in ends), len(ids))
        reason = "stop" if ids[end - 1] in ends else "length"
        assert (list(generation.token_ids), generation.finish_reason) == (ids[:end], reason)
    ignoring = complete(make_engine(ending), prompts, generate(ignore_eos=True))
    assert {(len(generation.token_ids), generation.finish_reason) for generation in ignoring} == {(12, "length")}
    assert [ids[: len(alone)] for ids, alone in zip(tokens(ignoring), expected(prompts), strict=True)] == expected(
        prompts
    )


def test_a_row_ends_where_its_text_does(served: Served, expected: Any) -> None:
    """``ends_text`` sees the completions alone; the tokens up to the one that ended the text are kept."""
    prompts = make_prompts()
    stops = {tuple(ids[3:5]) for ids in expected(prompts)[::3]}

    def ends_text(completions: Sequence[Sequence[int]]) -> list[bool]:
        return [tuple(ids[-2:]) in stops for ids in completions]

    def cut(ids: list[int]) -> list[int]:
        return next((ids[:end] for end in range(2, len(ids) + 1) if tuple(ids[end - 2 : end]) in stops), ids)

    generations = complete(make_engine(served, **MODES["few pages"]), prompts, generate(ends_text=ends_text))
    assert tokens(generations) == [cut(ids) for ids in expected(prompts)]
    for generation in generations:
        has_ended = tuple(generation.token_ids[-2:]) in stops or generation.token_ids[-1] in served.model.eos_token_ids
        assert generation.finish_reason == ("stop" if has_ended else "length")
    assert len({generation.finish_reason for generation in generations}) == 2

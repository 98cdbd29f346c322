"""PagedEngine against the oracle: equal tokens in fp32, whatever its shape, on one process and on two."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.config import EngineConfig
from job.engine.duplicates import SharedCompletions
from job.engine.paged.engine import PagedEngine
from job.engine.static.engine import StaticEngine
from job.launch.replica import MESSAGE_INTS
from tests.ranks import Ranks
from tests.serving import (
    MAX_NEW_TOKENS,
    MODES,
    Observed,
    build_as_the_job_does,
    complete,
    expected_tokens,
    generate,
    innermost,
    load,
    make_engine,
    make_prompts,
    serve,
    tokens,
)
from tests.tiny import ARCHITECTURES

UNSUPPORTED = "gpt_neo"
"""Its attention is not one of transformers' interface."""

SUPPORTED = [name for name in ARCHITECTURES if name != UNSUPPORTED]

DRAWS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0, "seed": 3},
    "top_p": {"temperature": 1.0, "top_p": 0.9, "seed": 3},
    "top_k": {"temperature": 1.5, "top_k": 20, "seed": 4},
    "min_p": {"temperature": 1.5, "min_p": 0.05, "seed": 5},
}

BREAKS = ("row", "memory", "leader's memory")
"""Ways to fail at two ranks, see ``engine_process.break_model``."""


@pytest.mark.parametrize(
    ("name", "mode"),
    # One row at a time takes the most steps, and what it may break is no matter of the architecture.
    [(name, mode) for name in SUPPORTED for mode in MODES if mode != "one row" or name in ("llama", "gemma2")],
)
def test_greedy_equals_transformers_whatever_the_shape_of_the_engine(
    tiny_model: Callable[..., Path], observed: Observed, name: str, mode: str
) -> None:
    """Mixed lengths, common prefixes and duplicates; shared prefixes are computed once and change nothing."""
    prompts, options = make_prompts(), MODES[mode]
    expected = expected_tokens(tiny_model(name), prompts, MAX_NEW_TOKENS)
    num_tokens = []
    for share_prefixes in (False, True):
        observed.num_tokens, observed.put_back = 0, []
        config = {**options["config"], "share_prefixes": share_prefixes}
        generations = complete(make_engine(serve(tiny_model(name)), **{**options, "config": config}), prompts)
        assert tokens(generations) == expected
        assert {generation.finish_reason for generation in generations} <= {"length", "stop"}
        assert (max(observed.put_back, default=0) > 0) == ("few pages" in mode), "rows are preempted in mid completion"
        num_tokens.append(observed.num_tokens)
    assert observed.most_tokens <= options["config"].get("max_batch_tokens", 2048)
    alone, shared = num_tokens
    assert shared < 0.75 * alone, "of 780 prompt tokens some 420 are common to several prompts"


@pytest.mark.parametrize("share_prefixes", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_many_rows_equal_transformers(tiny_model: Callable[..., Path], name: str, share_prefixes: bool) -> None:
    """So many that one shared page is multiplied with the queries of several groups of rows."""
    prompts = make_prompts() * 8
    config = {"max_batch_rows": 128, "share_prefixes": share_prefixes}
    generations = complete(make_engine(serve(tiny_model(name)), num_pages=512, config=config), prompts)
    assert tokens(generations) == expected_tokens(tiny_model(name), prompts, MAX_NEW_TOKENS)


def test_a_model_that_cannot_be_served_so_gets_static_batches_and_one_line(tiny_model: Callable[..., Path]) -> None:
    engine, notes = build_as_the_job_does(tiny_model(UNSUPPORTED))
    assert isinstance(engine, SharedCompletions) and isinstance(innermost(engine), StaticEngine)
    (note,) = notes
    assert note.startswith("model type 'gpt_neo' is served by static batches, which are slower: its attention does")
    prompts = make_prompts()
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model(UNSUPPORTED), prompts, MAX_NEW_TOKENS)


def test_a_model_that_can_be_served_gets_pages_without_a_word(tiny_model: Callable[..., Path]) -> None:
    engine, notes = build_as_the_job_does(tiny_model("llama"))
    assert isinstance(engine, SharedCompletions) and isinstance(innermost(engine), PagedEngine)
    prompts = make_prompts()
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model("llama"), prompts, MAX_NEW_TOKENS)
    static, more_notes = build_as_the_job_does(tiny_model("llama"), "static")
    assert isinstance(static, SharedCompletions) and isinstance(innermost(static), StaticEngine)
    assert notes == more_notes == []


def breaking_prompts() -> list[list[int]]:
    """Return few and short ones, two of which have the token on which the model may fail."""
    return [prompt for prompt in make_prompts() if len(prompt) < 42] + [[5, 99, 7], [99]]


def long_prompts() -> list[list[int]]:
    """Return prompts that are computed in one step, if it may have 8192 tokens."""
    rng = random.Random(2)
    return [[rng.randrange(2, 258) for _ in range(450)] for _ in range(10)]


@pytest.fixture(scope="module")
def on_two_ranks(tiny_model: Callable[..., Path], two_ranks: Ranks) -> dict[str, Any]:
    """Run everything that is to run on two ranks."""
    greedy_params = {"max_new_tokens": MAX_NEW_TOKENS}
    forced = MODES["few pages and chunks"]
    jobs: dict[str, dict[str, Any]] = {name: {"model": name, **forced} for name in SUPPORTED}
    jobs[UNSUPPORTED] = {"model": UNSUPPORTED, "engine": "chosen"}
    for draw, params in DRAWS.items():
        jobs[draw] = {"model": "llama", "params": {**greedy_params, **params}, **forced}
    jobs["overlap"] = {"model": "llama", **forced, "config": {**forced["config"], "overlap": True}}
    config = {"max_batch_tokens": 8192, "max_batch_rows": 16}
    jobs["long step"] = {"model": "llama", "prompts": long_prompts(), "params": {"max_new_tokens": 3}, "config": config}
    for breaks in BREAKS:
        config = {"max_batch_tokens": 64, "max_batch_rows": 8}
        jobs[breaks] = {"model": "llama", "breaks": breaks, "prompts": breaking_prompts(), "config": config}
    jobs["recorded"] = {"model": "llama", "records": True, "num_pages": 400, "config": {"cuda_graphs": True}}
    jobs["unasked"] = {**jobs["recorded"], "config": {}}
    for job in jobs.values():
        job["model"] = str(tiny_model(job["model"]))
        job.setdefault("prompts", make_prompts())
        job.setdefault("params", greedy_params)
    return two_ranks.run(jobs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers_on_two_ranks(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any], name: str
) -> None:
    """In chunks, with preemptions and shared prefixes, uneven heads included."""
    output, expected = on_two_ranks[name], expected_tokens(tiny_model(name), make_prompts(), MAX_NEW_TOKENS)
    assert [ids for _, ids, _, _ in output["generations"]] == expected
    assert (output["num_preempted"] > 0) == (name != UNSUPPORTED)
    assert len(output["notes"]) == (name == UNSUPPORTED)


def test_recorded_steps_on_two_ranks(tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any]) -> None:
    """Both ranks record the same steps, since their collectives must meet. Not yet unless asked for."""
    expected = expected_tokens(tiny_model("llama"), make_prompts(), MAX_NEW_TOKENS)
    for name in ("recorded", "unasked"):
        assert [ids for _, ids, _, _ in on_two_ranks[name]["generations"]] == expected
        assert (on_two_ranks[name]["num_replayed"] > 0) == (name == "recorded")


def test_overlap_on_two_ranks(tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any]) -> None:
    """The follower gets the tokens that a step takes from the latest choice."""
    expected = expected_tokens(tiny_model("llama"), make_prompts(), MAX_NEW_TOKENS)
    assert [ids for _, ids, _, _ in on_two_ranks["overlap"]["generations"]] == expected


def test_a_step_of_more_tokens_than_a_message_holds_reaches_both_ranks(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any]
) -> None:
    assert sum(map(len, long_prompts())) > MESSAGE_INTS
    expected = expected_tokens(tiny_model("llama"), long_prompts(), 3)
    assert [ids for _, ids, _, _ in on_two_ranks["long step"]["generations"]] == expected


@pytest.mark.parametrize("breaks", BREAKS)
def test_failures_on_two_ranks_cost_no_other_row(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any], breaks: str
) -> None:
    """Both ranks leave the step together and go on with others, also if only the leader has failed."""
    expected = expected_tokens(tiny_model("llama"), breaking_prompts(), MAX_NEW_TOKENS)
    generations = on_two_ranks[breaks]["generations"]
    assert [key for key, *_ in generations] == [[row_idx, 0] for row_idx in range(len(expected))]
    num_errors = 0
    for (_, ids, _, error), prompt, tokens_alone in zip(generations, breaking_prompts(), expected, strict=True):
        if breaks == "row" and 99 in prompt + tokens_alone[:-1]:
            assert error.startswith("engine_error") and "an odd row" in error
            num_errors += 1
        else:
            assert (ids, error) == (tokens_alone, None)
    assert 2 <= num_errors < len(expected) / 2 if breaks == "row" else num_errors == 0


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_do_not_depend_on_slots_preemptions_or_ranks(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any], observed: Observed, draw: str
) -> None:
    """Law 5: a row's draws are its own. Nor on the engine: a restart may take another one."""
    served, prompts, task = serve(tiny_model("llama")), make_prompts(), generate(**DRAWS[draw])
    alone = tokens(complete(make_engine(served, config={"max_batch_rows": 1}), prompts, task))
    for max_batch_rows in (4, 64):
        config = {"max_batch_rows": max_batch_rows}
        assert tokens(complete(make_engine(served, config=config), prompts, task)) == alone
    assert not observed.put_back
    assert tokens(complete(make_engine(served, **MODES["few pages"]), prompts, task)) == alone
    assert max(observed.put_back) > 0
    assert [ids for _, ids, _, _ in on_two_ranks[draw]["generations"]] == alone
    assert on_two_ranks[draw]["num_preempted"] > 0
    model, replica = load(tiny_model("llama"))
    assert tokens(complete(StaticEngine(model, EngineConfig(), replica), prompts, task)) == alone
    other_seed = generate(**{**DRAWS[draw], "seed": task.params.seed + 1})
    assert tokens(complete(make_engine(served), prompts, other_seed)) != alone
    assert alone != expected_tokens(tiny_model("llama"), prompts, MAX_NEW_TOKENS)

"""Completions that must match: on random weights, which would never do so by themselves."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from job.config import EngineConfig
from job.data.tokenizer import Tokenizer
from job.engine.logits import constraint, pipeline
from job.engine.static.engine import StaticEngine
from job.modes.structured import StructuredMode
from job.records import Generation
from job.tasks import Generate, Grammar
from tests.oracle import logprobs_of
from tests.ranks import Ranks
from tests.serving import MODES, Observed, ask, complete, finish, load, make_engine, make_prompts, serve, tokens
from tests.serving import generate as task_of
from tests.tiny import make_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["good", "bad"]},
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 99}, "maxItems": 3},
        "note": {"type": ["string", "null"], "maxLength": 5},
    },
    "required": ["label", "numbers", "note"],
}
ANSWERS = {
    "schema": StructuredMode(json_schema=json.dumps(SCHEMA)),
    "regex": StructuredMode(regex=r"(ab|cd)+-[0-9]{2,4}(, and so on)?"),
    "grammar": StructuredMode(grammar='start: sum "."\nsum: NUMBER | sum "+" NUMBER\nNUMBER: /[1-9][0-9]?/'),
}
MAX_NEW_TOKENS = 80
"""Enough for all but rows that repeat (ab|cd) or + for ever."""

DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0, "seed": 3},
    "top_p": {"temperature": 1.5, "top_p": 0.9, "seed": 3},
    "penalty": {"repetition_penalty": 1.7},
}


@cache
def grammar_of(name: str) -> Grammar:
    return ANSWERS[name].compiled(Tokenizer(make_tokenizer()))


def texts_of(generations: list[Generation]) -> list[str]:
    return [make_tokenizer().decode(list(g.token_ids), skip_special_tokens=True) for g in generations]


def is_valid(name: str, text: str) -> bool:
    """Judge by something that is not llguidance."""
    if name == "schema":
        try:
            jsonschema.validate(json.loads(text), {**SCHEMA, "additionalProperties": False})
            return True
        except (ValueError, jsonschema.ValidationError):
            return False
    pattern = ANSWERS["regex"].regex if name == "regex" else r"[1-9]\d?(\+[1-9]\d?)*\."
    return re.fullmatch(str(pattern), text) is not None


def check(name: str, generations: list[Generation]) -> None:
    """Every row that has finished is valid, and most have."""
    texts = texts_of(generations)
    reasons = [generation.finish_reason for generation in generations]
    assert {generation.error for generation in generations} == {None}
    for text, reason, generation in zip(texts, reasons, generations, strict=True):
        assert is_valid(name, text) == (reason == "stop"), (text, reason)
        assert reason == "stop" or len(generation.token_ids) == MAX_NEW_TOKENS
    assert reasons.count("stop") > len(reasons) / 3


def task(name: str, **params: Any) -> Generate:
    return task_of(grammar_of(name), **{"max_new_tokens": MAX_NEW_TOKENS, **params})


def generate(model_dir: Path, name: str, mode: str = "all rows", **params: Any) -> list[Generation]:
    engine = make_engine(serve(model_dir), **{**MODES[mode], "num_pages": 20})
    return complete(engine, make_prompts(), task(name, **params))


@cache
def oracle(model_dir: Path, name: str) -> list[list[int]]:
    """Return what plain transformers say, one row and one token at a time, with the mask of a matcher of its own."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    rows = []
    for prompt in make_prompts():
        matcher, ids = grammar_of(name).compile(), list(prompt)
        while len(ids) - len(prompt) < MAX_NEW_TOKENS and not matcher.is_stopped() and ids[-1] != 1:
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -1]
            allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
            ids.append(max(allowed, key=logits.tolist().__getitem__))
            assert ids[-1] == 1 or matcher.consume_token(ids[-1])
        rows.append(ids[len(prompt) :])
    return rows


@pytest.mark.parametrize("mode", ["all rows", "chunks", "few pages and chunks"])
@pytest.mark.parametrize("name", ANSWERS)
def test_completions_match_and_equal_a_plain_loop(
    tiny_model: Callable[..., Path], observed: Observed, name: str, mode: str
) -> None:
    generations = generate(tiny_model(), name, mode)
    check(name, generations)
    assert tokens(generations) == oracle(tiny_model(), name)


def test_rows_that_are_preempted_go_on_where_they_were(tiny_model: Callable[..., Path], observed: Observed) -> None:
    served = serve(tiny_model())
    engine = make_engine(served, num_pages=9)
    assert tokens(complete(engine, make_prompts(), task("schema"))) == oracle(tiny_model(), "schema")
    assert max(observed.put_back) > 5, "rows lose their pages in mid completion"


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", ANSWERS)
def test_the_static_engine_gives_the_same(tiny_model: Callable[..., Path], name: str, draw: str) -> None:
    model, replica = load(tiny_model())
    engine = StaticEngine(model, EngineConfig(max_batch_rows=6), replica)
    static = complete(engine, make_prompts(), task(name, **DRAWS[draw]))
    check(name, static)
    paged = generate(tiny_model(), name, "few pages and chunks", **DRAWS[draw])
    assert [(g.token_ids, g.finish_reason) for g in static] == [(g.token_ids, g.finish_reason) for g in paged]


def test_samples_of_a_row_differ_and_all_match(tiny_model: Callable[..., Path]) -> None:
    asked = task("schema", temperature=2.0)
    requests = [ask([5, 6, 7], asked, row_idx=2, sample_idx=sample_idx) for sample_idx in range(30)]
    generations = finish(make_engine(serve(tiny_model())), requests)
    check("schema", generations)
    assert len(set(texts_of(generations))) > 20


@pytest.mark.parametrize("draw", ["greedy", "temperature"])
def test_log_probabilities_are_the_models_own_and_change_no_token(tiny_model: Callable[..., Path], draw: str) -> None:
    """Those of tokens that the grammar forces, too: they are computed one by one then."""
    plain = generate(tiny_model(), "schema", **DRAWS[draw])
    scored = generate(tiny_model(), "schema", logprobs=True, **DRAWS[draw])
    assert tokens(scored) == tokens(plain)
    for prompt, generation in list(zip(make_prompts(), scored, strict=True))[:4]:
        expected = logprobs_of(tiny_model(), prompt, list(generation.token_ids))
        assert generation.logprobs == pytest.approx(expected, abs=1e-4)


def test_forced_tokens_cost_no_steps(tiny_model: Callable[..., Path]) -> None:
    engine = make_engine(serve(tiny_model()))
    engine.submit(ask([5, 6], task("schema")))
    num_steps, generations = 0, []
    while engine.num_pending:
        generations += engine.step()
        num_steps += 1
    assert num_steps < len(generations[0].token_ids) / 2


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("most", [1, 5, 26])
def test_no_more_tokens_than_allowed_also_if_they_are_forced(
    tiny_model: Callable[..., Path], most: int, logprobs: bool
) -> None:
    """At exactly as many as the text has, it has ended; before, it was cut."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    grammar = StructuredMode(regex=alphabet).compiled(Tokenizer(make_tokenizer()))
    asked = task_of(grammar, max_new_tokens=most, logprobs=logprobs)
    [generation] = complete(make_engine(serve(tiny_model())), [[5, 6]], asked)
    assert texts_of([generation]) == [alphabet[:most]]
    assert generation.finish_reason == ("stop" if most == 26 else "length")


def test_a_step_that_fails_changes_no_row(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its masks were being computed; its rows are computed again, in smaller steps."""
    largest, calls = pipeline.largest, []

    def broken(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(logits))
        if len(calls) % 5 == 0 and len(logits) > 1:
            raise ValueError("odd logits") if len(calls) % 2 else torch.OutOfMemoryError("CUDA out of memory")
        return largest(logits)

    monkeypatch.setattr(pipeline, "largest", broken)
    assert tokens(generate(tiny_model(), "schema")) == oracle(tiny_model(), "schema")
    assert len(calls) > 50


def test_a_grammar_that_grows_too_complex_is_an_error_of_the_row(tiny_model: Callable[..., Path]) -> None:
    """With limits so narrow that they are met; in truth they are wide."""
    readable = from_tokenizer(make_tokenizer())
    limits = LLParserLimits(max_lexer_states=20)
    grammar = Grammar(
        compile=lambda: LLMatcher(readable, "start: /[a-z0-9]{40}/", log_level=0, limits=limits),
        vocab_size=readable.vocab_size,
        eos_token_id=readable.eos_token,
    )
    model, replica = load(tiny_model())
    for engine in (make_engine(serve(tiny_model())), StaticEngine(model, EngineConfig(), replica)):
        generations = complete(engine, [[5, 6], [7, 8]], task_of(grammar, max_new_tokens=60))
        assert [str(g.error).partition(": ")[0] for g in generations] == ["constraint_failed"] * 2
        assert all("too many states" in str(g.error) and g.finish_reason is None for g in generations)


def test_the_grammar_is_compiled_anew_now_and_then(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What copies of a matcher share only grows, up to a limit of llguidance's."""
    monkeypatch.setattr(constraint, "RENEW_ROWS", 5)
    compiled = []
    grammar = grammar_of("schema")
    counted = dataclasses.replace(grammar, compile=lambda: compiled.append(1) or grammar.compile())
    engine = make_engine(serve(tiny_model()))
    asked = task_of(counted, max_new_tokens=MAX_NEW_TOKENS)
    assert tokens(complete(engine, make_prompts(), asked)) == oracle(tiny_model(), "schema")
    assert len(compiled) == -(-len(make_prompts()) // 5)


@pytest.fixture(scope="module")
def on_two_ranks(tiny_model: Callable[..., Path], two_ranks: Ranks) -> dict[str, Any]:
    """Run everything that is to run on two ranks."""
    jobs = {
        f"{engine} {draw}": {
            "model": str(tiny_model()),
            "prompts": make_prompts(),
            "params": {"max_new_tokens": MAX_NEW_TOKENS, **DRAWS[draw]},
            "answer": {"json_schema": json.dumps(SCHEMA)},
            **({"engine": "static"} if engine == "static" else {**MODES["few pages and chunks"], "num_pages": 9}),
        }
        for engine in ("paged", "static")
        for draw in ("greedy", "temperature")
    }
    return two_ranks.run(jobs)


@pytest.mark.parametrize("draw", ["greedy", "temperature"])
@pytest.mark.parametrize("engine", ["paged", "static"])
def test_two_ranks_give_the_same(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any], engine: str, draw: str
) -> None:
    """The leader knows the grammar; its follower need not."""
    output = on_two_ranks[f"{engine} {draw}"]
    expected = generate(tiny_model(), "schema", **DRAWS[draw])
    assert [ids for _, ids, _, _ in output["generations"]] == tokens(expected)
    assert [reason for _, _, reason, _ in output["generations"]] == [g.finish_reason for g in expected]
    assert (output["num_preempted"] > 0) == (engine == "paged")


@pytest.mark.slow
@pytest.mark.skipif("JOB_TEST_MODEL" not in os.environ, reason="JOB_TEST_MODEL names no model; scripts/test sets it")
def test_a_real_model_whose_tokens_are_words_writes_valid_json() -> None:
    """Here what is forced is several bytes a token, and text is split as the tokenizer would split it."""
    model_dir = Path(os.environ["JOB_TEST_MODEL"])
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    grammar = ANSWERS["schema"].compiled(Tokenizer(tokenizer))
    texts = [f"Write JSON with label, numbers and note about {topic}:" for topic in ("rain", "a ü", "\n{", "7", '"')]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    model, replica = load(model_dir)
    asked = task_of(grammar, max_new_tokens=48)
    static = complete(StaticEngine(model, EngineConfig(), replica), prompts, asked)
    paged = complete(make_engine(serve(model_dir)), prompts, asked)
    assert tokens(static) == tokens(paged)
    completions = [tokenizer.decode(list(g.token_ids), skip_special_tokens=True) for g in paged]
    assert all(is_valid("schema", completion) for completion in completions)
    assert all(ids[:2] == tokenizer('{"label')["input_ids"] for ids in tokens(paged)), "forced as it would be split"

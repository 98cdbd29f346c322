"""Completions that end in a loop: where they are noticed, in both engines, and what a run makes of them."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.engine.logits.loops import EVERY_TOKENS, MAX_PATTERN_TOKENS, MIN_LOOP_TOKENS, is_looping
from job.errors import UsageError
from job.tasks import SamplingParams
from tests.conftest import Result
from tests.serving import ask, finish, generate, make_prompts
from tests.test_mixed_tasks import ENGINES, ends_at, engine_of, grammar_of
from tests.test_run import read_output

NUM_CASES = int(os.environ.get("JOB_TEST_CASES", "100"))


def loops(ids: list[int], num_repeats: int) -> bool:
    """Return the definition: the last tokens are some pattern, as often as is wanted and as long as a loop must be."""
    for size in range(1, MAX_PATTERN_TOKENS + 1):
        num_tokens = max(num_repeats * size, MIN_LOOP_TOKENS)
        if num_tokens <= len(ids):
            pattern = ids[-size:]
            if all(ids[-1 - at] == pattern[-1 - at % size] for at in range(num_tokens)):
                return True
    return False


def test_a_loop_is_what_its_definition_says() -> None:
    rng, num_found = random.Random(3), 0
    for _ in range(NUM_CASES):
        size, num_repeats = rng.choice([1, 2, 3, 7, 16, 63, 64, 65]), rng.randrange(2, 10)
        pattern = [rng.randrange(4) for _ in range(size)]
        ids = [rng.randrange(4) for _ in range(rng.randrange(40))]
        ids += (pattern * 700)[
            : rng.choice([num_repeats * size, num_repeats * size - 1, 64, 63, rng.randrange(1, 600)])
        ]
        ids += [rng.randrange(4)] * (rng.random() < 0.3)
        ids = ids[: len(ids) // EVERY_TOKENS * EVERY_TOKENS] if rng.random() < 0.9 else ids
        prompt = [rng.randrange(4) for _ in range(5)] + pattern
        expected = bool(ids) and len(ids) % EVERY_TOKENS == 0 and loops(ids, num_repeats)
        assert is_looping(prompt + ids, len(ids), num_repeats) == expected
        num_found += expected
    assert NUM_CASES / 20 < num_found < NUM_CASES


@pytest.mark.parametrize("name", ENGINES)
def test_completions_end_where_they_loop(tiny_model: Callable[..., Path], name: str) -> None:
    """Also where the grammar forces the tokens of the loop, and beside rows that look for none."""
    [prompt, *_] = make_prompts()
    loop: dict[str, Any] = {"max_new_tokens": 130, "biases": ((70, 100.0),)}
    tasks = {
        generate(**loop, repetition_detection=8): (64, "repetition"),
        generate(**loop): (130, "length"),
        generate(**{**loop, "max_new_tokens": 64}, repetition_detection=2): (64, "repetition"),
        generate(**loop, repetition_detection=80): (80, "repetition"),
        generate(**loop, repetition_detection=8, ends_text=ends_at(70), min_new_tokens=63): (64, "stop"),
        generate(grammar_of("(abcdefghi)+"), max_new_tokens=130, min_new_tokens=130, repetition_detection=8): (
            80,
            "repetition",
        ),
        generate(grammar_of("[0-9]{120}"), max_new_tokens=130, repetition_detection=65): (120, "stop"),
    }
    asked = [ask(prompt, task, row_idx=row_idx) for row_idx, task in enumerate(tasks)]
    found = [
        (len(made.token_ids), made.finish_reason) for made in finish(engine_of(name, tiny_model(), "all rows"), asked)
    ]
    assert found == list(tasks.values())


@pytest.mark.parametrize("num_repeats", [-1, 1])
def test_once_is_no_loop(num_repeats: int) -> None:
    with pytest.raises(UsageError, match=r"repetition-detection is .*; it must be 0"):
        SamplingParams(repetition_detection=num_repeats)


def test_a_run_counts_loops_as_cut(
    run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"q": f"Say {n}"}) + "\n" for n in range(3)))
    command = ["run", "--model", tiny_model(), "--dataset", tmp_path / "q.jsonl", "--prompt-column", "q"]
    command += ["--output", tmp_path / "out", "--dtype", "float32", "--max-new-tokens", 90]
    command += ["--logit-bias", '{"a": 100}', "--repetition-detection", 8]
    told = run_job(*command)
    assert told.exit_code == 0 and "3 ended in a loop" in told.stdout
    table = read_output(tmp_path / "out")
    assert set(table["finish_reason"].to_pylist()) == {"repetition"}
    assert set(table["completion"].to_pylist()) == {"a" * 64}
    assert run_job("verify", tmp_path / "out").exit_code == 0
    assert "repetition" in run_job("show", tmp_path / "out", "--cut").stdout
    marked = run_job("retry", tmp_path / "out", "--cut", "--seed", 5, "--temperature", 1)
    assert marked.exit_code == 0 and "3" in marked.stdout
    assert run_job(*command).exit_code == 0
    assert run_job("export", tmp_path / "out", "--format", "openai-batch", "--to", tmp_path / "o.jsonl").exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert {line["response"]["body"]["choices"][0]["finish_reason"] for line in lines} == {"length"}

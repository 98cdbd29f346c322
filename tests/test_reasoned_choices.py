"""Choices after reasoning: first the reasoning within its budget, then the scores of all choices behind it."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.config import EngineConfig
from job.engine.protocol import Engine
from job.engine.reasoned_scores import ReasonedScores
from job.engine.static.engine import StaticEngine
from job.records import Generation
from job.tasks import Score
from tests.conftest import Result, start_processes
from tests.conftest import finish as wait_for
from tests.oracle import choice_logprobs, greedy
from tests.serving import MODES, Observed, Served, ask, finish, load, make_engine, make_prompts, serve
from tests.test_openai_batch import chat
from tests.test_reasoning import ONE, task
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]

CHOICES = [[7], [8], [7, 9, 10], [30, 31], [30, 32, 33]]
"""Single tokens, one that begins another, and two that branch."""
GAP, CLOSING = [40, 41], [210, 201]


def asked(budget: int, choices: Sequence[Sequence[int]] = CHOICES, **params: Any) -> Score:
    thinking = task(budget, closing=tuple(CLOSING), **{"max_new_tokens": budget + 2, **params})
    reason = replace(thinking, ends_at_answer=True)
    return Score(choice_ids=tuple(map(tuple, choices)), reason=reason, gap_ids=tuple(GAP))


def thoughts_of(model_dir: Path, prompts: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Return what plain transformers reason, closed: at the marker, at an end of sequence, or at the budget."""
    thoughts = []
    for thought in greedy(model_dir, prompts, budget) if budget else [[] for _ in prompts]:
        if 201 in thought:
            thoughts.append(thought[: thought.index(201) + 1])
        else:
            thoughts.append([*(thought[: thought.index(1)] if 1 in thought else thought), *CLOSING])
    return thoughts


def assert_as_transformers(model_dir: Path, prompts: list[list[int]], budget: int, found: list[Generation]) -> None:
    thoughts = thoughts_of(model_dir, prompts, budget)
    assert [list(generation.token_ids) for generation in found] == thoughts
    behind = [[*prompt, *thought, *GAP] for prompt, thought in zip(prompts, thoughts, strict=True)]
    expected = choice_logprobs(model_dir, behind, CHOICES)
    assert np.abs(np.array([generation.numbers for generation in found]) - expected).max() < 1e-4
    assert [generation.request.prompt_ids for generation in found] == prompts


def complete(engine: Engine, prompts: list[list[int]], score: Score) -> list[Generation]:
    return finish(ReasonedScores(engine), [ask(prompt, score, row_idx=idx) for idx, prompt in enumerate(prompts)])


@pytest.mark.parametrize("mode", MODES)
def test_scores_equal_transformers_after_the_same_reasoning(tiny_model: Callable[..., Path], mode: str) -> None:
    """Whatever the shape of the engine; one of the prompts leads to an end of sequence within the budget."""
    model_dir, prompts = tiny_model(), make_prompts()[::2]
    assert any(1 in thought for thought in greedy(model_dir, prompts, 9))
    for overlap in (False, True):
        shape = {**MODES[mode], "config": {**MODES[mode]["config"], "overlap": overlap}}
        engine = make_engine(serve(model_dir), **shape)
        assert_as_transformers(model_dir, prompts, 9, complete(engine, prompts, asked(9)))
        assert engine.num_pending == 0 and not engine.scheduler.running
        retained = set(engine.scheduler._retained)
        assert engine.scheduler.pages.num_free == engine.scheduler.pages.num_pages - len(retained)


@pytest.mark.parametrize("budget", range(4))
def test_static_batches_give_the_same(tiny_model: Callable[..., Path], budget: int) -> None:
    model, replica = load(tiny_model())
    engine = StaticEngine(model, EngineConfig(max_batch_rows=64), replica)
    prompts = make_prompts()[:6]
    assert_as_transformers(tiny_model(), prompts, budget, complete(engine, prompts, asked(budget)))


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    return serve(tiny_model())


@pytest.mark.parametrize("overlap", [False, True])
def test_nothing_is_computed_twice(served: Served, observed: Observed, overlap: bool) -> None:
    """Choices are scored on the cache of the reasoning. Copied pages hold the rest, so branches compute their own."""
    prompts = [[row_idx + 2] * 40 for row_idx in range(5)]
    engine = make_engine(served, config={"max_batch_rows": 32, "overlap": overlap})
    found = complete(engine, prompts, asked(20))
    lengths = [len(generation.request.prompt_ids) + len(generation.token_ids) + len(GAP) for generation in found]
    # Each branch has at most two tokens of its own and computes again the one before them; with overlap, the step
    # after a row's end has been launched before the end was known.
    assert observed.num_tokens <= sum(lengths) + len(prompts) * (3 * 3 + overlap)
    assert observed.num_tokens >= sum(lengths)


def test_a_model_that_does_not_reason_is_scored_after_its_prompt(
    served: Served, tiny_model: Callable[..., Path]
) -> None:
    score = asked(5)
    assert score.reason is not None
    never = replace(ONE, start_ids=(0,), max_tokens=5)
    score = replace(score, reason=replace(score.reason, reasoning=never))
    [generation] = complete(make_engine(served), [[5, 6, 7]], score)
    assert list(generation.token_ids) == [] and generation.error is None
    assert generation.numbers == pytest.approx(choice_logprobs(tiny_model(), [[5, 6, 7]], CHOICES)[0], abs=1e-4)


def test_a_loop_in_the_reasoning_is_told(served: Served, tiny_model: Callable[..., Path]) -> None:
    """The reasoning is closed where it was found, and the choices are scored."""
    looping = asked(100, repetition_detection=8, biases=((70, 100.0),))
    [generation] = complete(make_engine(served), [[5, 6, 7]], looping)
    thought = [*[70] * 64, *CLOSING]
    assert list(generation.token_ids) == thought and generation.finish_reason == "repetition"
    [expected] = choice_logprobs(tiny_model(), [[5, 6, 7, *thought, *GAP]], CHOICES)
    assert generation.numbers == pytest.approx(expected, abs=1e-4)


def test_what_is_kept_is_counted_once(served: Served) -> None:
    engine = make_engine(served, config={"overlap": False})
    [generation] = complete(engine, [[5, 6, 7]], asked(6, [[7], [8]]))
    assert engine.num_computed_tokens == 3 + len(generation.token_ids) + len(GAP)


def test_samples_reason_by_themselves(served: Served) -> None:
    score = asked(8, temperature=1.5)
    assert not score.is_deterministic and asked(8).is_deterministic
    requests = [ask([5, 6, 7], score, sample_idx=idx) for idx in range(6)]
    once = finish(ReasonedScores(make_engine(served, config={"max_batch_rows": 2})), requests)
    again = finish(ReasonedScores(make_engine(served, config={"overlap": True})), requests[::-1])
    assert [generation.token_ids for generation in once] == [generation.token_ids for generation in again]
    assert len({tuple(generation.token_ids) for generation in once}) > 3
    assert np.abs(np.array([g.numbers for g in once]) - [g.numbers for g in again]).max() < 1e-4


def test_a_row_that_fails_in_its_reasoning_is_an_error_row(served: Served) -> None:
    prompts = [[5, 6], [7] * 90]
    found = complete(make_engine(served, num_pages=3), prompts, asked(40))
    assert found[0].error is None and found[0].numbers
    assert found[1].error is not None and found[1].error.kind == "kv_cache_full"
    assert [list(generation.request.prompt_ids) for generation in found] == prompts


@pytest.mark.parametrize("error", [KeyError("odd"), MemoryError("not enough memory")])
def test_what_a_failed_step_was_to_cache_is_computed(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """With overlap, the last token of the reasoning is computed before the host knows that it is the last one. If that
    step failed, the row's scores were read from a place where nothing had been written."""
    prompts = [[5, 6, 7], [9, 8]]
    expected = complete(make_engine(served, config={"overlap": False}), prompts, asked(3))
    forward, steps = served.model.module.forward, Counter[int]()
    for failing in range(1, 8):

        def once(failing: int = failing, **kwargs: Any) -> Any:
            steps[failing] += 1
            if steps[failing] == failing:
                raise error
            return forward(**kwargs)

        engine = make_engine(served, config={"overlap": True})
        complete(engine, [[50, 51, 52], [60, 61]], asked(3))  # so that what is not written is not right by chance
        monkeypatch.setattr(served.model.module, "forward", once)
        found = complete(engine, prompts, asked(3))
        monkeypatch.setattr(served.model.module, "forward", forward)
        assert [generation.token_ids for generation in found] == [generation.token_ids for generation in expected]
        assert np.abs(np.array([g.numbers for g in found]) - [g.numbers for g in expected]).max() < 1e-4


@pytest.fixture
def start(run_job: RunJob, r1: Path, tmp_path: Path) -> Callable[..., Result]:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(4)])

    def run(*options: object, output: str = "out") -> Result:
        common = ("--model", r1, "--dataset", data, "--output", tmp_path / output, "--dtype", "float32")
        choices = ("--choices", "yes", "--choices", "no", "--choices", "perhaps")
        return run_job("run", *common, *choices, *options)

    return run


def test_a_label_has_its_reasoning_beside_it(start: Callable[..., Result], run_job: RunJob, tmp_path: Path) -> None:
    result = start("--max-reasoning-tokens", 5)
    assert result.exit_code == 0, result.stderr
    rows = read_output(tmp_path / "out").to_pylist()
    assert {row["num_reasoning_tokens"] for row in rows} <= {0, 1, 2, 3, 4, 5}
    for row in rows:
        assert row["completion"] in ("yes", "no", "perhaps") and row["finish_reason"] == "stop"
        assert row["completion"] == ["yes", "no", "perhaps"][int(np.argmax(row["choice_probs"]))]
        assert row["num_completion_tokens"] > row["num_reasoning_tokens"] and row["reasoning_cut"] is not None
    assert run_job("verify", tmp_path / "out").exit_code == 0
    assert "reasoning" in result.stdout and "labels" in result.stdout


def test_without_a_budget_max_new_tokens_is_one(start: Callable[..., Result], tmp_path: Path) -> None:
    assert start("--reasoning", "--max-new-tokens", 6).exit_code == 0
    rows = read_output(tmp_path / "out").to_pylist()
    assert "reasoning_cut" not in rows[0]
    is_cut = [row["num_reasoning_tokens"] == 6 for row in rows]
    assert [row["finish_reason"] for row in rows] == ["length" if cut else "stop" for cut in is_cut]
    assert "length" in {row["finish_reason"] for row in rows}


def test_probabilities_are_averaged_over_lines_of_thought(
    start: Callable[..., Result], run_job: RunJob, tmp_path: Path
) -> None:
    options = ("--max-reasoning-tokens", 6, "--num-samples", 3, "--temperature", 1.3, "--choice-mean")
    assert start(*options).exit_code == 0
    rows = read_output(tmp_path / "out").to_pylist()
    for row_idx in range(4):
        samples = [row for row in rows if row["row_idx"] == row_idx]
        mean = np.mean([sample["choice_probs"] for sample in samples], axis=0)
        assert len({sample["reasoning"] for sample in samples}) > 1
        for sample in samples:
            assert sample["mean_choice_probs"] == pytest.approx(mean.tolist())
            assert sample["mean_choice"] == ["yes", "no", "perhaps"][int(mean.argmax())]
            assert sample["completion"] == ["yes", "no", "perhaps"][int(np.argmax(sample["choice_probs"]))]
    assert run_job("verify", tmp_path / "out").exit_code == 0


def test_choices_are_scored_without_reasoning_unless_it_is_asked_for(
    start: Callable[..., Result], tmp_path: Path
) -> None:
    assert start().exit_code == 0
    assert "reasoning" not in read_output(tmp_path / "out").column_names


def test_a_minimum_length_may_exceed_the_budget(start: Callable[..., Result], tmp_path: Path) -> None:
    """It counts for all that is generated, and the request for the reasoning may have fewer tokens than that."""
    assert start("--max-reasoning-tokens", 5, "--min-new-tokens", 20).exit_code == 0
    rows = read_output(tmp_path / "out").to_pylist()
    assert all(row["error"] is None and row["num_completion_tokens"] > row["num_reasoning_tokens"] for row in rows)


def test_a_run_that_grew_and_lost_a_part_equals_one_that_did_not(
    start: Callable[..., Result], run_job: RunJob, tmp_path: Path
) -> None:
    options = ("--max-reasoning-tokens", 5, "--rows-per-shard", 2)
    assert start(*options).exit_code == 0
    assert start(*options, "--limit", 3, output="grown").exit_code == 0
    assert start(*options, output="grown").exit_code == 0
    (tmp_path / "grown/data/part-00001.parquet").unlink()
    assert start(*options, output="grown").exit_code == 0
    assert run_job("verify", tmp_path / "grown").exit_code == 0
    whole, grown = (read_output(tmp_path / name).to_pylist() for name in ("out", "grown"))
    for row, other in zip(whole, grown, strict=True):
        for name in ("choice_logprobs", "choice_probs", "choice_margin"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-4)
        assert row == other


def test_requests_of_a_batch_reason_with_the_settings_of_the_run(
    start: Callable[..., Result], run_job: RunJob, tmp_path: Path
) -> None:
    """Their length does not matter, since the budget is the limit; what changes the reasoning does."""
    bodies = [chat(max_tokens=9), chat(temperature=0.7), chat(presence_penalty=1), chat(top_p=0.5)]
    write_jsonl(tmp_path / "d.jsonl", [{"custom_id": f"r{idx}", "body": body} for idx, body in enumerate(bodies)])
    result = start("--max-reasoning-tokens", 5, "--max-error-rate", 1)
    assert result.exit_code == 0, result.stderr
    rows = read_output(tmp_path / "out").to_pylist()
    assert [row["error_kind"] for row in rows] == [None, "parameter_mismatch", "parameter_mismatch", None]
    assert rows[0]["num_reasoning_tokens"] > 0
    lines = run_job("export", tmp_path / "out", "--format", "openai-batch").stdout.splitlines()
    [choice] = json.loads(lines[0])["response"]["body"]["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": rows[0]["completion"],
        "reasoning_content": rows[0]["reasoning"],
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--reasoning", "--choice-calibration", "N/A"), "--choice-calibration and reasoning were asked for together"),
        (("--choice-mean",), "--choice-mean needs several lines of thought"),
        (("--reasoning", "--choice-mean"), "--choice-mean needs several lines of thought"),
        (("--choice-mean", "--num-samples", 2, "--temperature", 1), "--choice-mean needs several lines of thought"),
        (("--max-new-tokens", 5), "--max-new-tokens has no effect"),
        (("--max-reasoning-tokens", 5, "--max-new-tokens", 50), "--max-new-tokens has no effect: --max-reasoning-tok"),
        (("--reasoning", "--max-new-tokens", 100_000), "--max-new-tokens with the longest of --choices"),
    ],
)
def test_what_cannot_work_is_refused(start: Callable[..., Result], options: tuple[Any, ...], reason: str) -> None:
    result = start(*options)
    assert result.exit_code == 2 and reason in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_two_ranks_give_the_same(run_job: RunJob, start: Callable[..., Result], r1: Path, tmp_path: Path) -> None:
    """With tensor parallelism, only the leader knows of the reasoning."""
    options = ("--max-reasoning-tokens", 5)
    assert start(*options).exit_code == 0
    args = [
        "-m", "job", "run", "--model", r1, "--dataset", tmp_path / "d.jsonl", "--output", tmp_path / "two",
        "--dtype", "float32", "--choices", "yes", "--choices", "no", "--choices", "perhaps", *options,
        "--tensor-parallel-size", 2,
    ]  # fmt: skip
    assert [result.exit_code for result in wait_for(start_processes(args, 2))] == [0, 0]
    names = ["row_idx", "reasoning", "completion", "choice_probs"]
    one, two = (read_output(tmp_path / name).select(names).to_pylist() for name in ("out", "two"))
    for left, right in zip(one, two, strict=True):
        assert left.pop("choice_probs") == pytest.approx(right.pop("choice_probs"), abs=1e-5) and left == right

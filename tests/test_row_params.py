"""Parameters of rows: what a row brings holds for it and for no other row; what it cannot bring is an error row."""

import json
import os
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job.config import DataConfig, EngineConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.tokenizer import Tokenizer
from job.engine.static.engine import StaticEngine
from job.errors import UsageError
from job.modes.aggregate import AggregateMode
from job.modes.bound import BoundModes
from job.modes.choices import ChoicesMode
from job.modes.completion import CompletionMode
from job.modes.mode import Mode, Setting
from job.modes.row_params import RowParamsMode
from job.modes.stop_texts import StopTexts
from job.modes.structured import StructuredMode
from job.output.parts.manifest import read_manifest
from job.output.store.local import LocalStore
from job.records import Completion, Request, RowRejected
from job.tasks import Generate, SamplingParams
from tests.conftest import Result
from tests.serving import ask, finish, load, make_engine, serve
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_tokenizer

RunJob = Callable[..., Result]

OBJECT = RowParamsMode(params_column="params")


def config_of(*modes: Mode, **sampling: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(),
        sampling=SamplingConfig(**sampling),
        output=OutputConfig(output="out"),
        modes=modes,
    )


def bound(*modes: Mode, **sampling: Any) -> BoundModes:
    config = config_of(*modes, **sampling)
    setting = Setting(tokens=Tokenizer(make_tokenizer()), sampling=config.sampling, prompt_suffix="")
    return BoundModes.of(config, setting)


def task_of(modes: BoundModes, values: Mapping[str, Any]) -> Generate:
    task = modes.task_of(values)
    assert isinstance(task, Generate)
    return task


def error_of(params: Any, *modes: Mode) -> str:
    with pytest.raises(RowRejected) as caught:
        bound(OBJECT, *modes).task_of({"params": params})
    return str(caught.value.row_error)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, {}),
        ({}, {}),
        ("{}", {}),
        ("null", {}),
        ({"temperature": None, "max_new_tokens": None}, {}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ('{"temperature": 1, "top_p": 0.5}', {"temperature": 1.0, "top_p": 0.5}),
        ({"max_new_tokens": 7.0, "top_k": 3, "min_p": 0.25}, {"max_new_tokens": 7, "top_k": 3, "min_p": 0.25}),
        ({"seed": 2**62 + 1, "repetition_penalty": 2}, {"seed": 2**62 + 1, "repetition_penalty": 2.0}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"stop_token_ids": [7, 8.0], "bad_words": []}, {"stop_token_ids": (7, 8)}),
        ({"stop_token_ids": 7}, {"stop_token_ids": (7,)}),
        ({"logit_bias": '{"7": 1}', "top_logprobs": 0}, {"biases": ((7, 1.0),)}),
    ],
    ids=str,
)
def test_what_a_row_brings_takes_the_place_of_the_options(params: Any, expected: Mapping[str, Any]) -> None:
    usual = {"max_new_tokens": 9, "temperature": 0.5}
    task = task_of(bound(OBJECT, CompletionMode(logprobs=True), **usual), {"params": params})
    wanted = SamplingParams(**{**usual, "logprobs": True, **expected})
    assert task == Generate(params=wanted) and repr(task.params) == repr(wanted), "1.0 is not 1"


def test_columns_of_single_parameters_win() -> None:
    mode = RowParamsMode(params_column="params", row_params=("top-p=p", "max_new_tokens = length, stop=end"))
    assert mode.columns() == ("params", "p", "length", "end")
    values = {"params": {"top_p": 0.5, "top_k": 2}, "p": 0.25, "length": None, "end": "x"}
    task = task_of(bound(mode, max_new_tokens=9), values)
    assert task.params == SamplingParams(top_p=0.25, top_k=2, max_new_tokens=9)
    assert isinstance(task.ends_text, StopTexts) and task.ends_text.texts == ("x",)


def test_rows_with_equal_parameters_share_their_objects() -> None:
    """The engine looks at each distinct object once."""
    modes = bound(OBJECT, stop=("z",))
    first, second = (task_of(modes, {"params": {"top_k": 3, "temperature": 1, "stop": ["x"]}}) for _ in range(2))
    assert first.params is second.params and first.ends_text is second.ends_text
    plain = [task_of(modes, {"params": params}) for params in (None, {}, {"temperature": 0})]
    assert len({id(task.params) for task in plain}) == 1 and len({id(task.ends_text) for task in plain}) == 1


@pytest.mark.parametrize(
    ("stop", "texts"), [(None, ("z",)), ("x", ("x",)), (["x", "yy"], ("x", "yy")), ([], None)], ids=str
)
def test_stop_texts_of_a_row(stop: Any, texts: Any) -> None:
    """An empty list takes those of the run away."""
    found = task_of(bound(OBJECT, stop=("z",)), {"params": {"stop": stop}}).ends_text
    assert (found.texts if isinstance(found, StopTexts) else found) == texts


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"temperature": "hot"}, 'temperature is "hot"; it must be a number'),
        ({"temperature": -1}, "temperature is -1; it must be 0 (greedy) or more"),
        ({"temperature": float("nan")}, "temperature is NaN; it must be a number"),
        ({"temperature": True}, "temperature is true; it must be a number"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; it must be a whole number"),
        ({"max_new_tokens": float("inf")}, "max_new_tokens is Infinity; it must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be between 0 and 2**63 - 1"),
        ({"ignore_eos": 1}, "ignore_eos is 1; it must be true or false"),
        ({"stop": ["a", 1]}, 'stop is ["a", 1]; it must be a non-empty text or a list of such texts'),
        ({"stop": ""}, 'stop is ""; it must be a non-empty text or a list of such texts'),
        ({"stop_token_ids": ["7"]}, 'stop_token_ids is ["7"]; it must be the id of a token or a list of ids'),
        ({"stop_token_ids": [7.5]}, "stop_token_ids is [7.5]; it must be the id of a token or a list of ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids is -1; it must be an id, 0 or more"),
        ({"stop_token_ids": [999]}, "stop_token_ids names the token 999; the last one of this model is 257"),
        ({"bad_words": ["a", ""]}, 'bad_words is ["a", ""]; it must be a non-empty text or a list of such texts'),
        ({"logit_bias": {"abc": 1}}, "logit_bias: 'abc' is not one token of this model but 3: "),
        ({"logit_bias": {"7": float("nan")}}, "logit_bias of '7' is nan; it must be a number from -100 to 100"),
        ({"logit_bias": "7"}, 'logit_bias is "7"; it must be an object of biases by token'),
        ({"top_logprobs": 2}, "top_logprobs is 2; it must be left out, or 0: the run has no --top-logprobs"),
        ({"tempature": 1}, "tempature is 1, but rows have no such parameter; did you mean temperature?"),
        ({"num_samples": 2}, "num_samples is 2, but rows have no such parameter"),
        ([1], "column 'params' is not a JSON object: [1]"),
        ("{torn", "column 'params' is not a JSON object: \"{torn\""),
        ("7", "column 'params' is not a JSON object: \"7\""),
    ],
    ids=str,
)
def test_what_a_row_cannot_bring_is_an_error_with_the_key_and_the_value(params: Any, error: str) -> None:
    assert error_of(params).startswith(f"invalid_parameter: {error}")


def test_a_constraint_of_the_run_decides_where_its_rows_end() -> None:
    error = 'invalid_parameter: stop is ["x"]; it must be left out: the schema, regex or grammar decides'
    assert error_of({"stop": "x"}, StructuredMode(regex="a+")).startswith(error)
    assert error_of({"ignore_eos": True}, StructuredMode(regex="a+")).startswith(
        "invalid_parameter: ignore_eos is true"
    )
    assert task_of(bound(OBJECT, StructuredMode(regex="a+")), {"params": {"stop": []}}).grammar is not None


CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 4}}, "required": ["city"]}


def test_rows_with_equal_schemas_share_one_grammar() -> None:
    """It is compiled once, whether it comes as an object or as text, and with the nulls that Parquet adds."""
    modes = bound(OBJECT, stop=("z",))
    padded = {**CITY, "items": None, "properties": {**CITY["properties"], "street": None}}
    tasks = [task_of(modes, {"params": {"json_schema": schema}}) for schema in (CITY, padded, json.dumps(CITY))]
    assert len({id(task.grammar) for task in tasks}) == 1 and tasks[0].grammar is not None
    assert {task.ends_text for task in tasks} == {None}, "a text that follows a schema ends where that ends"
    assert task_of(modes, {"params": {"regex": "[0-9]+"}}).grammar is not None
    assert task_of(modes, {"params": {"grammar": 'start: "a" | "b"'}}).grammar is not None
    assert task_of(modes, {"params": {"json_schema": None}}).grammar is None


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"json_schema": "{torn"}, "json_schema is not JSON: "),
        ({"json_schema": "[1]"}, "json_schema is a JSON list; a schema must be an object."),
        ({"json_schema": 5}, "json_schema is not an object, or its JSON text"),
        ({"json_schema": {"type": "any"}}, "json_schema cannot be compiled: "),
        ({"regex": "(?=x)"}, "regex '(?=x)' cannot be compiled: regex parse error: "),
        ({"regex": ""}, "regex is not a non-empty text"),
        ({"grammar": "start: x"}, "grammar cannot be compiled: "),
        (
            {"regex": "a", "json_schema": CITY},
            'regex is "a"; it must be left out: a completion has one schema, regex or ',
        ),
        ({"regex": "a", "stop_token_ids": 7}, "stop_token_ids is [7]; it must be left out: the schema, regex or"),
        ({"regex": "a", "stop": "b"}, 'stop is ["b"]; it must be left out: the schema, regex or grammar decides'),
    ],
    ids=str,
)
def test_what_cannot_constrain_a_row_is_an_error(params: Any, error: str) -> None:
    assert error_of(params).startswith(f"invalid_parameter: {error}")
    with pytest.raises(RowRejected):
        bound(OBJECT).task_of({"params": json.dumps(params)})


def test_the_schema_of_the_run_is_that_of_all_its_rows() -> None:
    """Its columns have the types of one schema."""
    error = error_of({"json_schema": CITY}, StructuredMode(json_schema=json.dumps(CITY)))
    assert error.endswith("it must be left out: a completion has one schema, regex or grammar")


def test_completions_follow_the_schemas_of_their_rows(tiny_model: Any) -> None:
    modes = bound(OBJECT, max_new_tokens=40, temperature=1, ignore_eos=False)
    patterns = ["[0-9]{3}", "yes|no", None, "[a-c]{5}", "[0-9]{3}"]
    tasks = [modes.task_of({"params": {"regex": pattern}}) for pattern in patterns]
    tasks.append(modes.task_of({"params": {"json_schema": CITY}}))
    requests = [ask([40, 41, 42], task, row_idx=row_idx) for row_idx, task in enumerate(tasks)]
    rows = completed(tiny_model(), "paged", modes, requests)
    for row, pattern in zip(rows, patterns, strict=False):
        assert pattern is None or (row.finish_reason == "stop" and re.fullmatch(pattern, row.completion or "")), row
    assert list(json.loads(rows[-1].completion or "")) == ["city"] and rows[-1].error is None


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ([RowParamsMode(row_params=("length",))], "--row-params is 'length'; it must be NAME=COLUMN"),
        ([RowParamsMode(row_params=("=length",))], "--row-params is '=length'; it must be NAME=COLUMN"),
        (
            [RowParamsMode(row_params=("size=length",))],
            "--row-params: rows have no parameter 'size'; there are max_new",
        ),
        ([RowParamsMode(row_params=("top_logprobs=k",))], "--row-params top_logprobs needs --top-logprobs K"),
        ([RowParamsMode(row_params=("seed=a", "seed=b"))], "--row-params names two columns for seed."),
        ([OBJECT, ChoicesMode(choices=("a", "b"))], "--params-column and --choices were given together."),
        (
            [RowParamsMode(row_params=("stop=a",)), StructuredMode(regex="a")],
            "--row-params stop and --regex were given together.",
        ),
        (
            [RowParamsMode(row_params=("json_schema=a",)), StructuredMode(regex="a")],
            "--row-params json_schema and --regex were given together.",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(modes: list[Mode], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(*modes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


NUM_CASES = int(os.environ.get("JOB_TEST_CASES", "8"))


def any_params(rng: random.Random) -> dict[str, Any]:
    """Return some of the parameters that a row may bring."""
    params = {
        "max_new_tokens": rng.randrange(1, 12),
        "temperature": rng.choice([0, 0.5, 1.5]),
        "top_p": rng.choice([0.3, 0.9]),
        "top_k": rng.choice([1, 5, 40]),
        "min_p": 0.05,
        "repetition_penalty": rng.choice([0.8, 1.5]),
        "presence_penalty": 1,
        "frequency_penalty": -0.5,
        "seed": rng.randrange(9),
        "ignore_eos": True,
        "stop": rng.choice(["e", ["a", "\x00"], []]),
        "stop_token_ids": rng.sample(range(2, 258), 30),
        "bad_words": rng.sample(string.printable.strip(), 70),
        "logit_bias": {str(token): rng.choice([-100, 3]) for token in rng.sample(range(2, 258), 60)},
        "top_logprobs": rng.choice([0, 1, 3]),
    }
    return dict(rng.sample(sorted(params.items()), rng.randrange(len(params))))


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_each_row_gets_what_a_run_with_its_parameters_as_options_gives(tiny_model: Any, engine: str) -> None:
    """Whatever the other rows of the batch have. Two samples each."""
    usual: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.8, "num_samples": 2}
    rng = random.Random(7)
    sets = [{}, *(any_params(rng) for _ in range(NUM_CASES))]
    prompts = [[rng.randrange(2, 250) for _ in range(rng.randrange(1, 30))] for _ in sets]
    mixed = bound(OBJECT, CompletionMode(top_logprobs=3), **usual)
    tasks = [mixed.task_of({"params": json.dumps(params)}) for params in sets]
    requests = [
        ask(prompt, task, row_idx=row_idx, sample_idx=sample_idx)
        for row_idx, (prompt, task) in enumerate(zip(prompts, tasks, strict=True))
        for sample_idx in range(2)
    ]
    found = completed(tiny_model(), engine, mixed, requests)
    for row_idx, params in enumerate(sets):
        own_params = {name: tuple(value) if isinstance(value, list | str) else value for name, value in params.items()}
        number = own_params.pop("top_logprobs", 3)
        if "logit_bias" in params:
            own_params["logit_bias"] = json.dumps(params["logit_bias"])
        alike = bound(CompletionMode(logprobs=True, top_logprobs=number), **usual | own_params)
        own = slice(2 * row_idx, 2 * row_idx + 2)
        alone = [replace(request, task=alike.task) for request in requests[own]]
        expected = completed(tiny_model(), engine, alike, alone)
        for row, of_option in zip(found[own], expected, strict=True):
            tops = [values.pop("top_token_ids", None) for values in (row.values, of_option.values)]
            assert row == of_option, params
            padded = [[*ids, *[None] * (3 - number)] for ids in ([] if tops[1] is None else tops[1].tolist())]
            assert tops[0].tolist() == (padded or [[None] * 3] * len(tops[0])), params
            assert len(tops[0]) == row.num_completion_tokens
    assert {row.error for row in found} == {None} and len({row.completion for row in found}) > len(sets)


def completed(model: Path, engine: str, modes: BoundModes, requests: Sequence[Request]) -> list[Completion]:
    """Return the rows of requests, without log probabilities, which may be rounded otherwise in another batch."""
    generations = finish(make_engine(serve(model)) if engine == "paged" else static_engine(model), requests)
    texts = Tokenizer(make_tokenizer()).decode([generation.token_ids for generation in generations])
    rows = modes.complete(generations, texts, [None] * len(texts))
    kept = ("token_ids", "top_token_ids")
    return [replace(row, values={name: row.values[name] for name in kept if name in row.values}) for row in rows]


@cache
def static_engine(model: Path) -> StaticEngine:
    loaded, replica = load(model)
    return StaticEngine(loaded, EngineConfig(), replica)


@pytest.fixture
def run_fake(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> RunJob:
    """Return a function that runs over rows with FakeEngine, into ``out``."""

    def run(rows: list[Any], *options: Any) -> Result:
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        args = ["--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
        return run_job("run", *args, "--max-error-rate", 1, *options)

    return run


def test_rows_with_a_length_of_their_own_have_room_for_their_prompts(run_fake: RunJob, tmp_path: Path) -> None:
    """The tiny model has room for 512 tokens, prompt included; a prompt is cut to what its own answer leaves."""
    lengths = [None, 12, 412, 511, 512, 0]
    rows = [{"prompt": "x" * 400, "most": length} for length in lengths]
    options = ["--row-params", "max_new_tokens=most", "--max-new-tokens", 212, "--keep-columns", "most"]
    result = run_fake(rows, *options)
    assert result.exit_code == 0, result.stderr
    found = read_output(tmp_path / "out").to_pylist()
    assert [row["error"] for row in found] == [
        "prompt_too_long: 400 tokens, the limit is 300",
        None,
        "prompt_too_long: 400 tokens, the limit is 100",
        "prompt_too_long: 400 tokens, the limit is 1",
        "invalid_parameter: max_new_tokens is 512; the model has room for 512 tokens, prompt included",
        "invalid_parameter: max_new_tokens is 0; it must be at least 1",
    ]
    assert found[1]["num_completion_tokens"] == 12 and [row["most"] for row in found] == lengths
    assert "1 of 1 completions reached --max-new-tokens 212 or a limit of their own" in result.stdout
    assert run_fake(rows, *options, "--on-long-prompt", "truncate-left").exit_code == 2, "another run"


def test_truncation_knows_the_length_of_each_row(run_fake: RunJob, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 400, "most": length} for length in (None, 12, 412)]
    options = ["--row-params", "max_new_tokens=most", "--max-new-tokens", 212, "--on-long-prompt", "truncate-left"]
    assert run_fake(rows, *options).exit_code == 0
    assert read_output(tmp_path / "out")["num_prompt_tokens"].to_pylist() == [300, 400, 100]


def test_the_columns_of_parameters_are_part_of_what_a_run_is(run_fake: RunJob, tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "params": {"max_new_tokens": 1}, "p": 1}]
    options = ["--temperature", 1, "--row-params", "top_p=p,top_k=p"]
    assert run_fake(rows, *options[:2], "--params-column", "params", "--row-params", "top_p=p,seed=p").exit_code == 0
    manifest = read_manifest(LocalStore(tmp_path / "out"))
    assert manifest is not None
    recorded = {"params_column": "params", "row_params": ["seed=p", "top_p=p"]}
    assert manifest.identity["modes"]["row_params"] == recorded
    again = ["--params-column", "params", "--row-params", "seed = p", "--row-params", "top-p=p"]
    assert run_fake(rows, *options[:2], *again).exit_code == 0, "the same, written otherwise"
    assert "--row-params was ['seed=p', 'top_p=p'], now [" in run_fake(rows, *options).stderr


def test_special_tokens_may_end_completions_where_prompts_may_have_none(run_fake: RunJob, tmp_path: Path) -> None:
    rows = [{"prompt": text, "stop": "<eos>"} for text in ("hi", "<eos>")]
    options = ["--row-params", "stop=stop", "--special-tokens-in-text", "error"]
    assert run_fake(rows, *options).exit_code == 0
    assert read_output(tmp_path / "out")["error_kind"].to_pylist() == [None, "special_token"]


def test_a_column_that_is_missing_is_named_before_anything_is_started(run_fake: RunJob, tmp_path: Path) -> None:
    result = run_fake([{"prompt": "hi", "length": 3}], "--row-params", "max_new_tokens=lenght")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "no column 'lenght'. Did you mean 'length'?" in result.stderr.splitlines()[-1]


def test_a_run_whose_every_row_has_a_wrong_parameter_is_refused(run_fake: RunJob, tmp_path: Path) -> None:
    result = run_fake([{"prompt": "hi", "params": {"max_tokens": 3}}] * 3, "--params-column", "params")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "Row 0: invalid_parameter: max_tokens is 3, but rows have no such parameter" in result.stderr


def test_what_draws_need_may_come_from_rows(run_fake: RunJob, tmp_path: Path) -> None:
    """Options without an effect are refused, but a row may give them one."""
    rows = [{"prompt": "hi", "params": json.dumps({"temperature": 1})}]
    assert run_fake(rows, "--seed", 3, "--num-samples", 2).exit_code == 2
    assert run_fake(rows, "--seed", 3, "--num-samples", 2, "--params-column", "params").exit_code == 0
    assert len(read_output(tmp_path / "out")) == 2


def test_samples_vote_with_parameters_of_rows() -> None:
    modes = bound(OBJECT, AggregateMode(aggregate="majority"), num_samples=2)
    assert task_of(modes, {"params": {"temperature": 1}}).params.temperature == 1


def test_a_row_may_not_be_shorter_than_the_minimum_of_the_run() -> None:
    with pytest.raises(RowRejected) as caught:
        bound(OBJECT, min_new_tokens=9).task_of({"params": {"max_new_tokens": 4}})
    expected = "invalid_parameter: min_new_tokens is 9; it must be between 0 and --max-new-tokens 4"
    assert str(caught.value.row_error) == expected

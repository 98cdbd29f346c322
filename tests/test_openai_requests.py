"""Requests to OpenAI's API as their users write them: each runs with what it says, or its error says why not."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.openai_batch import BODY_COLUMN, Requests
from job.data.tokenizer import Tokenizer
from job.modes.bound import BoundModes
from job.modes.completion import CompletionMode
from job.modes.mode import Mode, Setting
from job.modes.row_params import RowParamsMode
from job.modes.stop_texts import StopTexts
from job.modes.structured import StructuredMode
from job.output.parts.manifest import read_manifest
from job.output.store.local import LocalStore
from job.records import RowRejected
from job.run.older_runs import with_requests
from job.tasks import Generate
from tests.conftest import Result
from tests.test_openai_batch import COLUMNS, chat, request, rows_of
from tests.test_run import write_jsonl
from tests.tiny import make_tokenizer

RunJob = Callable[..., Result]

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TOKENIZER = Tokenizer(make_tokenizer())
USUAL = {"max_new_tokens": 64, "temperature": 0.0, "num_samples": 2}
"""The run's own settings, for what a request leaves open."""


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def served(body: Any, *modes: Mode, **prompt: Any) -> Generate | str:
    """Return the task of a request, or its error."""
    config = RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(**prompt),
        sampling=SamplingConfig(**USUAL),
        output=OutputConfig(output="out"),
        modes=(RowParamsMode(), *modes),
    )
    config = with_requests(config, BODY_COLUMN, None)

    def serves(answer_format: Mapping[str, Any]) -> bool:
        return any(mode.serves(answer_format) for mode in config.active_modes)

    setting = Setting(tokens=TOKENIZER, sampling=config.sampling, prompt_suffix="", serves=serves)
    try:
        Requests(config, COLUMNS, chat=True).content_of({"body": body})
        task = BoundModes.of(config, setting).task_of({"body": body})
    except RowRejected as rejected:
        return str(rejected.row_error)
    assert isinstance(task, Generate)
    return task


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chat(), {}),
        (chat(temperature=None, max_tokens=None, stop=None, seed=None, response_format=None), {}),
        (chat(max_tokens=5), {"max_new_tokens": 5}),
        (chat(max_completion_tokens=6), {"max_new_tokens": 6}),
        (chat(max_tokens=5, max_completion_tokens=6), {"max_new_tokens": 6}),
        (chat(temperature=0.7, top_p=0.9), {"temperature": 0.7, "top_p": 0.9}),
        (chat(temperature=0), {}),
        (chat(temperature=1, seed=3), {"temperature": 1.0, "seed": 3}),
        (chat(seed=-5), {"seed": 2**63 - 5}),
        (chat(presence_penalty=0.5, frequency_penalty=-2), {"presence_penalty": 0.5, "frequency_penalty": -2.0}),
        (chat(top_k=-1, min_p=0, repetition_penalty=1.2), {"repetition_penalty": 1.2}),
        (chat(top_k=40), {"top_k": 40}),
        (chat(stop="END"), {"stop": ("END",)}),
        (chat(stop=["\n", "END"]), {"stop": ("\n", "END")}),
        (chat(stop=[]), {}),
        (chat(stop=""), {}),
        (chat(n=2), {}),
        (json.dumps(chat(max_tokens=5, stop=["x"])), {"max_new_tokens": 5, "stop": ("x",)}),
        (chat(response_format={"type": "text"}), {}),
        (chat(response_format={"type": "json_object"}), {"grammar": True}),
        (chat(response_format=format_of(SCHEMA)), {"grammar": True}),
        (chat(response_format=format_of(SCHEMA), max_tokens=9), {"grammar": True, "max_new_tokens": 9}),
        (chat(guided_json=SCHEMA), {"grammar": True}),
        (chat(guided_regex="[0-9]+"), {"grammar": True}),
        (chat(model="any", user="me", metadata={"a": "b"}, store=True, service_tier="flex"), {}),
        (chat(stream=True, stream_options={"include_usage": True}), {}),
        (chat(tools=[], tool_choice="auto", logit_bias={}, logprobs=False, top_logprobs=0), {}),
        (chat(messages=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}]), {}),
        (chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]), {}),
        (chat(max_tokens=0), "invalid_parameter: max_tokens is 0; it must be at least 1"),
        (chat(max_completion_tokens=-1), "invalid_parameter: max_completion_tokens is -1; it must be at least 1"),
        (chat(max_tokens="5"), 'invalid_parameter: max_tokens is "5"; it must be a whole number'),
        (chat(temperature="hot"), 'invalid_parameter: temperature is "hot"; it must be a number'),
        (chat(temperature=-1), "invalid_parameter: temperature is -1; it must be 0 (greedy) or more"),
        (chat(top_p=1.5), "invalid_parameter: top_p is 1.5; it must be above 0 and at most 1"),
        (chat(presence_penalty=3), "invalid_parameter: presence_penalty is 3; it must be between -2 and 2"),
        (chat(stop=5), "invalid_parameter: stop is 5; it must be a non-empty text or a list of such texts"),
        (
            chat(stop="x", response_format=format_of(SCHEMA)),
            'invalid_parameter: stop is ["x"]; it must be left out: the',
        ),
        (chat(response_format=format_of({"type": "any"})), "invalid_parameter: response_format cannot be compiled: "),
        (chat(response_format=format_of("{torn")), "invalid_parameter: response_format is not JSON: "),
        (chat(response_format=format_of(None)), "unsupported_parameter: response_format is {"),
        (chat(response_format={"type": "json_schema"}), "unsupported_parameter: response_format is {"),
        (chat(response_format={"type": "grammar"}), 'unsupported_parameter: response_format is {"type": "grammar"}'),
        (chat(n=1), "parameter_mismatch: n is 1, the run's is 2"),
        (chat(logprobs=True, top_logprobs=2), "parameter_mismatch: top_logprobs is 2, the run's is 0"),
        (chat(logprobs=True), "parameter_mismatch: logprobs is true, the run's is false"),
        (chat(top_logprobs=2), "invalid_parameter: top_logprobs is 2; it must be left out: logprobs is not true"),
        (chat(logit_bias={"70": -100, "7": 2, "9": None}), {"biases": ((7, 2.0), (70, -100.0))}),
        (chat(logit_bias={"50256": -100}), "invalid_parameter: logit_bias names the token 50256; the last one of this"),
        (chat(logit_bias={"70": 101}), "invalid_parameter: logit_bias of '70' is 101; it must be a number from -100"),
        (chat(logit_bias=[70]), "invalid_parameter: logit_bias is [70]; it must be an object of biases by token"),
        (chat(stop_token_ids=[7, 8], bad_words="a"), {"stop_token_ids": (7, 8), "bad_token_ids": ((66,), (222, 66))}),
        (chat(min_tokens=2), {"min_new_tokens": 2}),
        (chat(tools=[{"type": "function"}]), 'unsupported_parameter: tools is [{"type": "function"}]'),
        (chat(reasoning_effort="low"), 'unsupported_parameter: reasoning_effort is "low"'),
        (chat(unheard_of=1), "unsupported_parameter: unheard_of is 1"),
        (chat(messages=[]), "invalid_messages: body.messages is not a list of messages: []"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "unsupported_content: body.messages has a part of type image_url; this run reads text",
        ),
        ({"model": "m"}, "invalid_messages: body.messages is not a list of messages: None"),
        ("{torn", "invalid_request: column 'body' is not a JSON object"),
        (None, "null_prompt: column 'body' is null"),
    ],
    ids=lambda value: "" if isinstance(value, str) and ": " in value[:40] else str(value)[-70:],
)
def test_a_request_runs_with_what_it_says_or_its_error_says_why_not(body: Any, expected: Any) -> None:
    task = served(body)
    if isinstance(expected, str) or isinstance(task, str):
        assert isinstance(task, str) and isinstance(expected, str) and task.startswith(expected)
        return
    stop = task.ends_text.texts if isinstance(task.ends_text, StopTexts) else None
    found = {name: getattr(task.params, name) for name in type(task.params).__dataclass_fields__}
    found |= {"stop": stop, "grammar": task.grammar is not None}
    usual = {**found, "max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0}
    usual |= {
        "biases": (),
        "bad_token_ids": (),
        "stop_token_ids": (),
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_new_tokens": 0,
    }
    assert found == {**usual, "logprobs": False, "stop": None, "grammar": False, **expected}


def test_settings_of_the_run_may_be_asked_for() -> None:
    """What it does anyway is no parameter of the row."""
    own = StructuredMode(json_schema=json.dumps(SCHEMA))
    task = served(chat(response_format=format_of(dict(reversed(SCHEMA.items())))), own)
    assert isinstance(task, Generate) and task.grammar is not None
    assert str(served(chat(response_format=format_of({"type": "object"})), own)).startswith(
        "invalid_parameter: response_format is {"
    )
    assert isinstance(served(chat(logprobs=True), CompletionMode(logprobs=True)), Generate)
    tops = CompletionMode(top_logprobs=5)
    for body, number in [(chat(), 5), (chat(logprobs=True), 5), (chat(logprobs=True, top_logprobs=2), 2)]:
        task = served(body, tops)
        assert isinstance(task, Generate) and task.params.num_top_logprobs == number and task.params.scores_tokens
    more = served(chat(logprobs=True, top_logprobs=6), tops)
    assert more == "parameter_mismatch: top_logprobs is 6, the run's is 5"
    assert isinstance(served(chat(reasoning_effort="low"), reasoning_effort="low"), Generate)


@pytest.fixture
def run_batch(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> RunJob:
    """Return a function that runs a batch on a chat model with FakeEngine, into ``out``."""

    def run(data: Path, *options: Any) -> Result:
        args = ["--engine", "fake", "--model", tiny_model(chat=True), "--dataset", data, "--output", tmp_path / "out"]
        return run_job("run", *args, "--max-error-rate", 1, *options)

    return run


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text"])
def test_lengths_and_stop_texts_of_a_batch(run_batch: RunJob, tmp_path: Path, kind: str) -> None:
    """The fake engine answers with the prompt, reversed. In Parquet, all bodies have all names, mostly null."""
    developer = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    rows = [request(0, max_tokens=3), request(1, stop=["ss"]), request(2, messages=developer, max_tokens=None)]
    if kind == "jsonl":
        data = write_jsonl(tmp_path / "batch.jsonl", rows)
        data.write_bytes(data.read_bytes().replace(b"\n", b"\n\n"))  # blank lines are no requests
    else:
        rows = [row | {"body": json.dumps(row["body"])} for row in rows] if kind == "text" else rows
        data = tmp_path / "batch.parquet"
        datasets.Dataset.from_list(rows).to_parquet(data)
    assert run_batch(data).exit_code == 0
    found = rows_of(tmp_path / "out")
    assert [row["error"] for row in found] == [None] * 3
    assert [row["completion"] for row in found][:2] == [">tn", ">tnatsi"]
    assert [row["finish_reason"] for row in found] == ["length", "stop", "stop"]
    assert found[2]["prompt"] == "<system>Be kind.<eos><user>hi<eos><assistant>"
    manifest = read_manifest(LocalStore(tmp_path / "out"))
    assert manifest is not None and manifest.identity["modes"] == {"row_params": {"request_column": "body"}}
    assert "are already done" in run_batch(data).stderr


def test_the_first_request_says_what_the_run_must_have(run_batch: RunJob, tmp_path: Path) -> None:
    body = {"n": 2, "temperature": 0.5, "max_tokens": 8}
    data = write_jsonl(tmp_path / "batch.jsonl", [request(0, **body), request(1, **body, logprobs=True)])
    result = run_batch(data)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    options = "--num-samples 2 --temperature 0.5"
    assert result.stderr.endswith(
        f"asks for n 2 (the run has 1). Give {options}; all requests of a run share these settings.\n"
    )
    tops = write_jsonl(tmp_path / "tops.jsonl", [request(0, logprobs=True, top_logprobs=2)])
    advice = "top_logprobs 2 (the run has 0). Give --top-logprobs 2; no request of the run may ask for more.\n"
    assert run_batch(tops).stderr.endswith(advice)
    assert run_batch(data, *shlex.split(options)).exit_code == 0
    errors = [row["error"] for row in rows_of(tmp_path / "out")]
    assert errors == [None] * 2 + ["parameter_mismatch: logprobs is true, the run's is false"] * 2


def test_scored_choices_have_no_parameters_of_requests(run_batch: RunJob, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "batch.jsonl", [request(0, max_tokens=5), request(1, temperature=1)])
    assert run_batch(data, "--choices", "a", "--choices", "b").exit_code == 0
    errors = [row["error"] for row in rows_of(tmp_path / "out")]
    assert errors == [None, "parameter_mismatch: temperature is 1, the run's is 0.0"]


def test_a_run_that_an_older_version_began_goes_on_by_its_rules(run_batch: RunJob, tmp_path: Path) -> None:
    """Its manifest names no column of requests that have parameters of their own."""
    rows = [request(number) for number in range(3)] + [request(3, max_tokens=3)]
    data = write_jsonl(tmp_path / "batch.jsonl", rows)
    assert run_batch(data, "--rows-per-shard", 2).exit_code == 0
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["identity"]["modes"]["row_params"]
    path.write_text(json.dumps(manifest))
    (tmp_path / "out/data/part-00001.parquet").unlink()
    result = run_batch(data, "--rows-per-shard", 2)
    assert result.exit_code == 0, result.stderr
    assert rows_of(tmp_path / "out")[3]["error"] == "parameter_mismatch: max_tokens is 3, the run's is 256"

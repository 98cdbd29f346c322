"""Batches of requests to OpenAI's API as input: recognized, served, and never answered as they were not asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.openai_batch import Requests, open_requests, recognizes_requests
from job.data.opening import open_dataset
from job.errors import UsageError
from job.modes.structured import StructuredMode
from job.records import RowRejected
from job.run.resolved import ResolvedRun
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]


def request(number: int, url: str | None = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    """Return a line of a batch; ``body`` over a conversation."""
    default = {"model": "gpt-4o-mini", "messages": MESSAGES}
    return {"custom_id": f"request-{number}", "method": "POST", "url": url, "body": default | body}


@pytest.fixture
def run_batch(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> RunJob:
    """Return a function that runs a batch on a chat model with FakeEngine, into ``out``."""

    def run(rows: list[Any], *options: Any, chat: bool = True, name: str = "batch.jsonl") -> Result:
        data = write_jsonl(tmp_path / name, rows)
        return run_job(
            *["run", "--engine", "fake", "--model", tiny_model(chat=chat), "--dataset", data],
            *["--output", tmp_path / "out", "--max-error-rate", 1, *options],
        )

    return run


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_output(output).to_pylist()
    return rows


def test_a_batch_is_recognized_and_its_ids_are_kept(run_batch: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Also ids that are no text, and another kind far behind; one line says what was recognized."""
    rows = [request(number) | {"custom_id": number} for number in range(1101)]
    rows[1100] = request(1100)
    result = run_batch(rows)
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table.column_names[:4] == ["row_idx", "sample_idx", "custom_id", "prompt"]
    assert set(table["error"].to_pylist()) == {None}
    assert table["prompt"][0].as_py() == "<system>Be kind.<eos><user>hi<eos><assistant>"
    assert [table["custom_id"][idx].as_py() for idx in (0, 1099, 1100)] == ["0", "1099", "request-1100"]
    note = (
        f"{tmp_path / 'batch.jsonl'} is a batch of requests to OpenAI's API: prompts come from body, custom_id is "
        f"kept, and {tiny_model(chat=True)} answers, whichever model the requests name"
    )
    assert result.stderr.count(note) == 1


def test_what_goes_in_as_a_batch_comes_out_as_one(run_batch: RunJob, run_job: RunJob, tmp_path: Path) -> None:
    """Lines in, lines out, an error among them."""
    options = ["--num-samples", 2, "--temperature", 1]
    assert run_batch([request(0, n=2), request(1, url="/v1/embeddings"), b"torn"], *options).exit_code == 0
    result = run_job("export", tmp_path / "out", "--format", "openai-batch", "--to", tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["request-0", "request-1", "row-2"]
    assert [choice["index"] for choice in lines[0]["response"]["body"]["choices"]] == [0, 1]
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"].startswith(">tnatsissa<")
    assert lines[1]["error"] == {
        "code": "unsupported_url",
        "message": "/v1/embeddings; this run serves /v1/chat/completions",
    }
    assert lines[2]["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("as_text", [False, True])
def test_a_batch_in_parquet_is_recognized_too(run_job: RunJob, tiny_model: Any, tmp_path: Path, as_text: bool) -> None:
    """There every body has every key, mostly null; or bodies are JSON text."""
    rows = [request(0, temperature=0), request(1, tools=[{"type": "function"}]), request(2, logprobs=False)]
    if as_text:
        rows = [row | {"body": json.dumps(row["body"])} for row in rows]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "batch.parquet")
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(chat=True), "--dataset", tmp_path / "batch.parquet"],
        *["--output", tmp_path / "out", "--max-error-rate", 1],
    )
    assert result.exit_code == 0, result.stderr
    found = rows_of(tmp_path / "out")
    assert [row["custom_id"] for row in found] == ["request-0", "request-1", "request-2"]
    errors = [row["error"] for row in found]
    assert (errors[0], errors[2]) == (None, None)
    assert errors[1].startswith('unsupported_parameter: tools is [{"type": "function"')


COLUMNS = ("custom_id", "method", "url", "body")


@pytest.mark.parametrize(
    ("prompt", "columns"),
    [
        ({}, ("custom_id", "text")),
        ({}, ("body",)),
        ({}, (*COLUMNS, "prompt")),
        ({"prompt_column": "custom_id"}, COLUMNS),
        ({"messages_column": "body"}, COLUMNS),
        ({"prompt_template": "{{ body }}"}, COLUMNS),
    ],
    ids=str,
)
def test_what_names_its_prompt_or_looks_otherwise_is_no_batch(prompt: dict[str, Any], columns: tuple[str, ...]) -> None:
    assert not recognizes_requests(PromptConfig(**prompt), columns)


@pytest.mark.parametrize(
    ("data", "id_column", "named"),
    [
        ({}, "custom_id", ("custom_id",)),
        ({"id_column": "custom_id"}, "custom_id", ("custom_id",)),
        ({"id_column": "url"}, "url", ("url", "custom_id")),
        ({"id_column": "url", "keep_columns": ("custom_id",)}, "url", ("url", "custom_id")),
        ({"keep_columns": ("method",)}, "custom_id", ("custom_id", "method")),
    ],
    ids=str,
)
def test_ids_are_kept_beside_what_the_user_keeps(data: dict[str, Any], id_column: str, named: tuple[str, ...]) -> None:
    config = RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d", **data),
        prompt=PromptConfig(),
        sampling=SamplingConfig(),
        output=OutputConfig(output=Path("out")),
    )
    assert recognizes_requests(config.prompt, COLUMNS)
    run = ResolvedRun(config=config, chat=True, batch_id_column="custom_id")
    run = run.with_columns(COLUMNS)
    assert (run.id_column, [column for column, _ in run.named_columns]) == (id_column, [*named])
    assert run.request_column == "body" and run.text_column is None


SAMPLING = SamplingConfig(max_new_tokens=64, temperature=0.7, top_p=0.9, seed=3, stop=("\n", "END"), num_samples=2)


def error_of(
    body: Any, sampling: SamplingConfig = SAMPLING, *, chat: bool = True, schema: str | None = None, **line: Any
) -> str | None:
    """Return the error that a request becomes; None if it is served."""
    config = RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(),
        sampling=sampling,
        output=OutputConfig(output=Path("out")),
        modes=(StructuredMode(json_schema=schema),),
    )
    try:
        Requests(config, COLUMNS, chat=chat).content_of({"body": body, **line})
    except RowRejected as rejected:
        return str(rejected.row_error)
    return None


def chat(**body: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": MESSAGES, **body}


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat(max_tokens=64, temperature=0.7, top_p=0.9, seed=3, stop=["\n", "END"], n=2),
        chat(max_completion_tokens=64, max_tokens=None, top_k=-1, min_p=0, repetition_penalty=1.0),
        chat(tools=[], tool_choice="auto", logit_bias={}, presence_penalty=0, frequency_penalty=0.0, logprobs=False),
        chat(user="me", metadata={"a": "b"}, stream=True, stream_options={"include_usage": True}, store=True),
        chat(response_format={"type": "text"}, modalities=["text"], stop=[], top_logprobs=0),
        chat(response_format={"type": "text", "json_schema": None}),
    ],
    ids=str,
)
def test_what_a_run_does_anyway_may_be_asked_for(body: dict[str, Any]) -> None:
    assert error_of(body) is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (chat(max_tokens=65), "parameter_mismatch: max_tokens is 65, the run's is 64"),
        (chat(max_completion_tokens=1), "parameter_mismatch: max_completion_tokens is 1, the run's is 64"),
        (chat(temperature=0), "parameter_mismatch: temperature is 0, the run's is 0.7"),
        (chat(top_p=1), "parameter_mismatch: top_p is 1, the run's is 0.9"),
        (chat(seed=0), "parameter_mismatch: seed is 0, the run's is 3"),
        (chat(presence_penalty=0.5), "parameter_mismatch: presence_penalty is 0.5, the run's is 0.0"),
        (chat(n=1), "parameter_mismatch: n is 1, the run's is 2"),
        (chat(stop="END"), 'parameter_mismatch: stop is ["END"], the run\'s is ["\\n", "END"]'),
        (chat(stop=5), "parameter_mismatch: stop is 5, the run's is "),
        (chat(logprobs=True), "unsupported_parameter: logprobs is true"),
        (chat(tools=[{"type": "function"}]), 'unsupported_parameter: tools is [{"type": "function"}]'),
        (chat(tool_choice="required"), 'unsupported_parameter: tool_choice is "required"'),
        (chat(logit_bias={"5": 1}), "parameter_mismatch: logit_bias is "),
        (chat(top_logprobs=5), "unsupported_parameter: top_logprobs is 5"),
        (chat(reasoning_effort="x" * 100), f'unsupported_parameter: reasoning_effort is "{"x" * 76}...'),
        (chat(response_format={"type": "json_object"}), "unsupported_parameter: response_format is {"),
        (
            chat(response_format={"type": "json_schema", "json_schema": {}}),
            "unsupported_parameter: response_format is ",
        ),
        (chat(response_format="text"), 'unsupported_parameter: response_format is "text"'),
        (chat(messages=None), "invalid_messages: body.messages is not a list of messages: None"),
        (chat(messages=[{"role": "user"}]), "invalid_messages: body.messages, message 0 has no content"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "unsupported_content: body.messages has a part of type image_url; this run reads text",
        ),
        (None, "null_prompt: column 'body' is null"),
        ([1], "invalid_request: column 'body' is not a JSON object"),
        ("{torn", "invalid_request: column 'body' is not a JSON object"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:60],
)
def test_what_would_be_answered_otherwise_is_an_error(body: Any, error: str) -> None:
    assert str(error_of(body)).startswith(error)


def test_greedy_runs_do_not_mind_how_draws_would_be_made() -> None:
    body = chat(temperature=0, top_p=0.5, seed=99)
    assert error_of(body, SamplingConfig()) is None
    assert error_of(chat(top_p=0.5, seed=99), SamplingConfig()) is None
    assert error_of(chat(temperature=1, seed=99), SamplingConfig()) == (
        "parameter_mismatch: temperature is 1, the run's is 0.0"
    )


def test_the_schema_of_the_run_may_be_asked_for_and_no_other() -> None:
    def asking(schema: Any) -> dict[str, Any]:
        return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})

    own = '{"type": "object", "required": []}'
    assert error_of(asking({"required": [], "type": "object"}), SamplingConfig(), schema=own) is None
    for wrong, schema in (({"type": "array"}, own), (None, None), (None, own)):
        error = error_of(asking(wrong), SamplingConfig(), schema=schema)
        assert str(error).startswith("unsupported_parameter: response_format is ")


def test_parts_of_text_become_one_text(run_batch: RunJob, tmp_path: Path) -> None:
    """Chat templates would print the list as Python does."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert run_batch([request(0, messages=[{"role": "user", "content": parts}])]).exit_code == 0
    assert rows_of(tmp_path / "out")[0]["prompt"] == "<user>one\ntwo<eos><assistant>"


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/chat/completions", None])
def test_urls_of_conversations(url: str | None) -> None:
    assert error_of(chat(), url=url) is None


def test_texts_are_served_without_a_chat_template(run_batch: RunJob, run_job: RunJob, tmp_path: Path) -> None:
    """As /v1/completions does: the text as it is. Then conversations are the error rows."""
    bodies: list[Any] = ["once upon", "", ["a", "b"], "END"]
    rows = [request(number, "/v1/completions", prompt=text, messages=None) for number, text in enumerate(bodies)]
    rows.append(request(4))
    result = run_batch(rows)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "the first request is for /v1/completions, but this run serves /v1/chat/completions. Give --no-chat.\n"
    )
    assert run_batch(rows, "--no-chat").exit_code == 0
    found = rows_of(tmp_path / "out")
    assert [row["error"] for row in found] == [
        *[None, "empty_prompt: body.prompt is empty", "invalid_request: body.prompt is not a single string", None],
        "unsupported_url: /v1/chat/completions; this run serves /v1/completions",
    ]
    assert (found[0]["prompt"], found[0]["completion"]) == ("once upon", "nopu ecno")
    exported = run_job("export", tmp_path / "out", "--format", "openai-batch").stdout.splitlines()
    body = json.loads(exported[0])["response"]["body"]
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "nopu ecno", "finish_reason": "stop", "logprobs": None}]


@pytest.mark.parametrize(
    ("options", "chat", "advice"),
    [(["--no-chat"], True, "Remove --no-chat."), ([], False, "Use a model whose tokenizer has a chat template.")],
    ids=["asked", "none there"],
)
def test_conversations_without_a_chat_template_are_refused(
    run_batch: RunJob, options: list[str], chat: bool, advice: str
) -> None:
    result = run_batch([request(0)], *options, chat=chat)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        f"the first request is for /v1/chat/completions, but this run serves /v1/completions. {advice}\n"
    )


def test_a_first_request_that_is_none_is_an_error_row(run_batch: RunJob, tmp_path: Path) -> None:
    rows = [request(0) | {"body": None}, b"torn", request(2, n=2)]
    assert run_batch(rows).exit_code == 0
    kinds = [row["error"].partition(":")[0] for row in rows_of(tmp_path / "out")]
    assert kinds == ["null_prompt", "invalid_json", "parameter_mismatch"]


def test_a_restart_is_the_same_run_and_other_ways_to_a_prompt_are_not(run_batch: RunJob, tmp_path: Path) -> None:
    """What was recognized is in the manifest, like all that makes a prompt."""
    assert run_batch([request(0)]).exit_code == 0
    assert "already done" in run_batch([request(0)]).stderr
    result = run_batch([request(0)], "--prompt-column", "custom_id", "--id-column", "custom_id")
    assert result.exit_code == 2
    assert 'the column of an OpenAI batch\'s requests was "body", now not set' in result.stderr


def test_content_free_prompts_have_no_place_in_a_request(run_batch: RunJob) -> None:
    result = run_batch([request(0)], "--choices", "a", "--choices", "b", "--choice-calibration", "N/A")
    assert result.exit_code == 2
    assert "--choice-calibration 'N/A': invalid_messages: a text cannot replace messages" in result.stderr


def test_ids_that_do_not_identify_are_noted(run_batch: RunJob, tmp_path: Path) -> None:
    rows = [{**request(0), "custom_id": custom_id} for custom_id in ("a", "a", None, "", 7, "b")]
    result = run_batch(rows)
    note = "custom_id does not identify every request: 1 repeats an earlier one (such as 'a'), 2 are null or empty"
    assert result.exit_code == 0 and note in result.stderr
    assert "does not identify" not in run_batch([request(0), request(1)], "--output", tmp_path / "out2").stderr


def test_an_older_run_of_requests_with_a_schema_goes_on(tmp_path: Path) -> None:
    """Versions up to 0.2 made an error row of each such request; a restart of their runs was refused."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    data = DataConfig(dataset=str(write_jsonl(tmp_path / "batch.jsonl", [request(0, response_format=wanted)])))
    source = open_dataset(data).source
    older, new = (
        RunConfig(
            model=ModelConfig(model="m"),
            data=data,
            prompt=prompt,
            sampling=SamplingConfig(),
            output=OutputConfig(output=Path("out")),
        )
        for prompt in (PromptConfig(text_rules=1), PromptConfig())
    )
    assert open_requests(older, source, chat=True).columns == ["body", "url"]
    with pytest.raises(UsageError, match="Give --json-schema"):
        open_requests(new, source, chat=True)

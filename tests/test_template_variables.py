"""Variables for chat templates, and templates in place of the tokenizer's."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.config import PromptConfig
from job.data.chat_template import ModelChatTemplate
from job.data.template_variables import variables_of
from job.errors import UsageError
from tests.conftest import Result
from tests.test_run import read_output
from tests.tiny import TEMPLATES_DIR, make_chat_model, make_chat_tokenizer, make_model, make_tokenizer

RunJob = Callable[..., Result]
DAY = datetime.date(2024, 2, 29)
ASK = [{"role": "user", "content": "Hi?"}]


def variables(family: str, effort: str | None = None, **given: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    config = PromptConfig(chat_template_kwargs=json.dumps(given) if given else None, reasoning_effort=effort)
    found, notes = variables_of(config, ModelChatTemplate(make_chat_tokenizer(family)))
    return dict(found), notes


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("qwen3", {}),
        ("qwen3", {"enable_thinking": False}),
        ("qwen3", {"enable_thinking": True}),
        ("deepseek_r1", {}),
        ("gpt_oss", {"reasoning_effort": "high"}),
        ("gemma", {}),
        ("mistral", {}),
        ("llama3", {"date_string": "1 Jan 2000"}),
    ],
)
def test_prompts_are_those_of_transformers(family: str, given: dict[str, Any]) -> None:
    tokenizer = make_chat_tokenizer(family)
    own = ModelChatTemplate(tokenizer).of_run(DAY, given, continues=False)
    text = own(ASK)
    assert text == tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, **given)
    assert all(str(value) in text for value in given.values() if isinstance(value, str))


@pytest.mark.parametrize(
    ("family", "effort", "given", "expected"),
    [
        ("qwen3", "none", {}, {"enable_thinking": False}),
        ("qwen3", "high", {}, {"enable_thinking": True}),
        ("qwen3", "high", {"enable_thinking": False}, {"enable_thinking": False}),
        ("gpt_oss", "low", {}, {"reasoning_effort": "low"}),
        ("gpt_oss", "none", {}, {"reasoning_effort": "none"}),
        ("gpt_oss", None, {"reasoning_effort": "extreme"}, {"reasoning_effort": "extreme"}),
    ],
)
def test_what_reasoning_effort_means_to_a_template(
    family: str, effort: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """What the user sets by name wins."""
    found, notes = variables(family, effort, **given)
    assert found == expected
    assert bool(notes) == (family == "qwen3" and effort == "high")


def test_a_template_that_reads_both_is_switched_off_by_its_switch() -> None:
    tokenizer = make_chat_tokenizer("qwen3")
    tokenizer.chat_template = "{{ messages[0].content }}{{ thinking }}{{ reasoning_effort }}"
    template = ModelChatTemplate(tokenizer)
    assert variables_of(PromptConfig(reasoning_effort="none"), template) == ({"thinking": False}, ())
    both = {"thinking": True, "reasoning_effort": "low"}
    assert variables_of(PromptConfig(reasoning_effort="low"), template) == (both, ())


REFUSED: list[tuple[str, str | None, dict[str, Any], str]] = [
    (
        "qwen3",
        None,
        {"enable_thinkin": False},
        "--chat-template-kwargs has 'enable_thinkin', which the chat template never reads. It reads: enable_thinking.",
    ),
    ("gemma", None, {"enable_thinking": False}, "never reads. It has no variables to set."),
    ("llama3", None, {"bos_token": ""}, "never reads. It reads: date_string."),
    ("qwen3", None, {"messages": []}, "has 'messages', which the run itself sets. Leave it out."),
    ("qwen3", None, {"tools": []}, "has 'tools', which the run itself sets"),
    ("qwen3", None, {"add_generation_prompt": False}, "has 'add_generation_prompt', which the run itself sets"),
    ("qwen3", None, {"tokenize": True}, "has 'tokenize', which the run itself sets"),
    ("gemma", "low", {}, "--reasoning-effort has no effect: the chat template reads neither reasoning_effort nor"),
    ("gpt_oss", "low", {"reasoning_effort": "high"}, "--reasoning-effort and reasoning_effort in"),
]


@pytest.mark.parametrize(("family", "effort", "given", "message"), REFUSED)
def test_a_variable_without_an_effect_is_refused(
    family: str, effort: str | None, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        variables(family, effort, **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_variables_need_a_chat_template() -> None:
    for options in ({"chat_template_kwargs": '{"a": 1}'}, {"reasoning_effort": "low"}):
        with pytest.raises(UsageError, match=r"needs a chat template, but the tokenizer has none. Give --chat-temp"):
            variables_of(PromptConfig(**options), None)
        with pytest.raises(UsageError, match="needs the chat template, but --no-chat was given"):
            PromptConfig(chat=False, **options)


@pytest.fixture
def run(run_job: RunJob, tmp_path: Path) -> Callable[..., Result]:
    """Run a tiny model, without its weights, over a row."""
    (tmp_path / "q.jsonl").write_text('{"prompt": "Hi?"}\n')

    def call(model: Path, *more: object, output: str = "out") -> Result:
        common = ["--dataset", tmp_path / "q.jsonl", "--output", tmp_path / output, "--max-new-tokens", 2]
        return run_job("run", "--engine", "fake", "--model", model, *common, *more)

    return call


def prompts_in(output: Path) -> list[str]:
    return list(read_output(output)["prompt"].to_pylist())


def test_variables_are_part_of_a_run(run: Callable[..., Result], tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model", "qwen3")
    off = ["--chat-template-kwargs", '{"enable_thinking": false}']
    assert run(model, *off).exit_code == 0
    [prompt] = prompts_in(tmp_path / "out")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["identity"]["prompt"]["chat_template_kwargs"] == '{"enable_thinking": false}'
    assert run(model, "--chat-template-kwargs", '{"enable_thinking":false}').exit_code == 0
    other = run(model)
    assert other.exit_code == 2 and "--chat-template-kwargs was" in other.stderr


def test_a_table_of_a_config_file_is_an_object(run: Callable[..., Result], tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model", "qwen3")
    for idx, text in enumerate(
        (
            "[chat-template-kwargs]\nenable_thinking = false\n",
            "[prompt]\nchat_template_kwargs.enable_thinking = false\n",
        )
    ):
        (tmp_path / "run.toml").write_text(text)
        assert run(model, "--config", tmp_path / "run.toml", output=f"out{idx}").exit_code == 0
        assert prompts_in(tmp_path / f"out{idx}")[0].endswith("</think>\n\n")
    for text, message in (
        ("chat-template-kwargs = 3", "must be a table, or a string with a JSON object"),
        ("chat-template-kwargs = {day = 2024-01-01}", "cannot be written as JSON"),
    ):
        (tmp_path / "run.toml").write_text(text)
        result = run(model, "--config", tmp_path / "run.toml", output="out3")
        assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("enable_thinking=False", """Write '{"enable_thinking": false}'."""),
        ("{enable_thinking: false}", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"x": NaN}', "cannot be written as JSON"),
    ],
)
def test_what_is_not_an_object_is_refused(run_job: RunJob, tmp_path: Path, value: str, message: str) -> None:
    result = run_job("run", "--model", "m", "--dataset", "d", "--output", "o", "--chat-template-kwargs", value)
    assert result.exit_code == 2 and message in result.stderr


def test_a_template_takes_the_place_of_the_tokenizers(run: Callable[..., Result], tmp_path: Path) -> None:
    """Also of a tokenizer without one; it is what the date, the check and the identity go by."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<eos>"
    model = make_model(tmp_path / "model", tokenizer=tokenizer)
    file = TEMPLATES_DIR / "llama3.jinja"
    assert run(model, "--chat-template", file, "--date", "2024-02-29").exit_code == 0
    assert "Today Date: 29 Feb 2024" in prompts_in(tmp_path / "out")[0]
    assert run(model, "--chat-template", file).exit_code == 0
    other = run(model, "--chat-template", "<u>{{ messages[0].content }}")
    assert other.exit_code == 2 and "--chat-template was" in other.stderr
    assert run(model, "--chat-template", "<u>{{ messages[0].content }}", output="typed").exit_code == 0
    assert prompts_in(tmp_path / "typed") == ["<u>Hi?"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("chatml", "--chat-template 'chatml' is neither a file nor a chat template, which has {{ ... }} in it."),
        (
            "a\n{% if %}{{ messages }}",
            "Line 2: Expected an expression, got 'end of statement block'. The line is: {% if",
        ),
        ("{{ messages | tojsn }}", "No filter named 'tojsn'"),
        ("{{ messages | random }}", "The chat template draws at random"),
    ],
)
def test_what_is_not_a_template_is_refused(
    run: Callable[..., Result], tmp_path: Path, value: str, message: str
) -> None:
    result = run(make_model(tmp_path / "model"), "--chat-template", value)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr

"""Chat templates: nothing of a conversation is lost, one date per run, and how a conversation ends."""

import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from job.config import PromptConfig
from job.data.chat_template import ModelChatTemplate
from job.data.prompts import PromptRenderer
from job.errors import UsageError
from job.records import Prompt, Row
from tests import chat_templates
from tests.conftest import Result
from tests.test_run import read_output
from tests.tiny import TEMPLATES_DIR, make_chat_model, make_chat_tokenizer, make_model, make_tokenizer

RunJob = Callable[..., Result]
DAY = datetime.date(2024, 2, 29)


def template(text: str, *, continues: bool = False) -> ModelChatTemplate:
    tokenizer = make_tokenizer()
    tokenizer.bos_token, tokenizer.chat_template = "<eos>", text
    return ModelChatTemplate(tokenizer, DAY, continues=continues)


def render(text: str, messages: list[dict[str, Any]], **options: Any) -> Prompt:
    config = PromptConfig(messages_column="m", **options)
    return render_with(template(text, continues=config.continues_last_turn), messages, config)


def render_with(
    chat_template: ModelChatTemplate, messages: list[dict[str, Any]], config: PromptConfig | None = None
) -> Prompt:
    renderer = PromptRenderer(config or PromptConfig(messages_column="m"), chat_template, ["m"])
    return renderer.render(Row(row_idx=0, values={"m": messages}))


def say(*turns: str) -> list[dict[str, Any]]:
    """Return messages, each given as ``role: content``."""
    pairs = [turn.partition(": ") for turn in turns]
    return [{"role": role, "content": content} for role, _, content in pairs]


TEXT_CALL = {"name": "weather", "arguments": '{"city": "Rome"}'}
WEATHER = {"name": "weather", "arguments": {"city": "Rome"}}


@pytest.mark.parametrize(
    ("text", "messages", "what"),
    [
        (chat_templates.PHI3, say("developer: Answer in French only.", "user: Hello?"), "message 0 (developer)"),
        (
            chat_templates.PHI3,
            say("user: a", "assistant: b", "tool: It is 31 degrees.", "user: so?"),
            "message 2 (tool)",
        ),
        (chat_templates.PHI3, say("user: weather?", "function: 31"), "message 1 (function)"),
        # Its text stands elsewhere in the prompt by chance.
        (chat_templates.PHI3, say("tool: 31", "user: Is 31 prime?"), "message 0 (tool)"),
        (chat_templates.LLAMA_32, [{**say("user: hi")[0], "name": "Ann"}], "the name of message 0 (user)"),
        (
            chat_templates.PHI3,
            [
                *say("user: a"),
                {"role": "assistant", "content": "b", "tool_calls": [{"function": WEATHER}]},
                *say("user: c"),
            ],
            "the tool calls of message 1 (assistant)",
        ),
        (
            "{% for m in messages %}{{ m.content ~ (m.tool_calls or []) | map(attribute='name') | join }}{% endfor %}",
            [*say("user: a"), {**say("assistant: b")[0], "tool_calls": [WEATHER]}, *say("user: c")],
            "the tool calls of message 1 (assistant)",
        ),
        (chat_templates.SMOLLM3, say("user: a", "system: Be brief.", "user: b"), "message 1 (system)"),
        (
            "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}",
            say("user: a", "assistant: b", "user: c"),
            "message 0 (user)",
        ),
    ],
)
def test_what_a_template_leaves_out_is_a_row_error(text: str, messages: Any, what: str) -> None:
    """The prompt of "Answer in French only." was without it, and the model answered in English."""
    assert str(render(text, messages).error) == f"dropped_message: the chat template leaves out or changes {what}"


@pytest.mark.parametrize("name", ["name", "function_call"])
def test_what_openai_took_earlier_is_a_part_of_a_message_as_well(name: str) -> None:
    value = WEATHER if name == "function_call" else "Kim"
    messages = [*say("user: a"), {"role": "assistant", "content": "b", name: value}, *say("user: c")]
    what = "the name of" if name == "name" else "the function call of"
    assert str(render(chat_templates.PHI3, messages).error) == (
        f"dropped_message: the chat template leaves out or changes {what} message 1 (assistant)"
    )
    assert render("{{ messages | tojson }}", messages).error is None


@pytest.mark.parametrize("change", ["[:9]", ".upper()", ".replace('o', '0')"])
def test_a_template_that_changes_the_users_text_is_a_row_error(change: str) -> None:
    text = "{% for m in messages %}{{ m.content" + change + " }}{% endfor %}"
    assert str(render(text, say("user: a long text of many words")).error) == (
        "dropped_message: the chat template leaves out or changes message 0 (user)"
    )


CONVERSATIONS = [
    say("user:  spaces kept? "),
    say("user: a", "assistant: b", "user: c"),
    say("user: <s>[INST] fake [/INST]"),
    say("user: é\u2028x"),
    say("user: two\n\nlines  and\tmore"),
]


@pytest.mark.parametrize("text", [value for name, value in vars(chat_templates).items() if name.isupper()])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_real_templates_lose_nothing(text: str, messages: Any) -> None:
    """The prompt is transformers' own, without an error."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token, tokenizer.chat_template = "<eos>", text
    prompt = render(text, messages)
    assert prompt.error is None
    if "strftime_now" not in text:
        assert prompt.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


FAMILIES = sorted(path.stem for path in TEMPLATES_DIR.glob("*.jinja"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_templates_of_all_families_lose_nothing(family: str, messages: Any) -> None:
    tokenizer = make_chat_tokenizer(family)
    prompt = render_with(ModelChatTemplate(tokenizer, DAY), messages)
    assert prompt.error is None
    assert prompt.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_tiny_chat_model_has_its_markers_as_tokens(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model", "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert len(tokenizer.encode("<|im_start|><think></think>")) == 3
    assert json.loads((model / "config.json").read_text())["vocab_size"] == len(tokenizer)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (chat_templates.QWEN3, say("user: a", "assistant: <think>\nHm.\n</think>\n\nb", "user: c")),
        (
            chat_templates.QWEN3,
            [*say("user: a"), {**say("assistant: ")[0], "tool_calls": [WEATHER]}, *say("tool: 31")],
        ),
        (
            chat_templates.QWEN3,
            [*say("user: a"), {**say("assistant: ")[0], "tool_calls": [{"function": TEXT_CALL}]}, *say("tool: ")],
        ),
        (chat_templates.SMOLLM3, say("system: Be brief. /no_think", "user: hi")),
        (chat_templates.LLAMA_3, say("system: S ", "developer: D", "user: u")),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", say('user: "quoted"\nétwo')),
        ("{% for m in messages %}{{ m.content | e }}{% endfor %}", say("user: 1 < 2 & 'so'")),
        ("{% for m in messages %}{{ m.content.split() | join(' ') }}{% endfor %}", say("user: a\n\n  b")),
    ],
)
def test_what_templates_rewrite_is_no_error(text: str, messages: Any) -> None:
    assert render(text, messages).error is None


def test_an_empty_last_message_is_a_row_error() -> None:
    error = str(render(chat_templates.PHI3, say("user: a", "assistant: b", "user:  ")).error)
    assert error == "empty_prompt: column 'm', message 2 is empty"


def test_a_form_of_conversation_is_tried_once() -> None:
    """Rows of one form cost no second rendering."""
    rendered: list[Any] = []
    own = template(chat_templates.PHI3)

    def count(messages: Any) -> str:
        rendered.append(messages)
        return own(messages)

    renderer = PromptRenderer(PromptConfig(messages_column="m"), count, ["m"])
    before = len(rendered)
    for row in range(10):
        renderer.render(Row(row_idx=row, values={"m": say(f"system: {row}", f"user: {row}")}))
    assert len(rendered) - before == 10 + 1


def test_a_run_of_an_older_version_goes_on_without_the_checks() -> None:
    assert (
        render(chat_templates.PHI3, say("developer: D", "user: u"), text_rules=1).text
        == "<|user|>\nu<|end|>\n<|assistant|>\n"
    )
    assert render(chat_templates.PHI3, say("user: u", "assistant: a"), text_rules=1).error is None


ENDS = say("user: Capital of France?", "assistant: Paris.", "user: And Italy?", "assistant: The capital of Italy is ")


@pytest.mark.parametrize("name", ["PHI3", "QWEN3", "MISTRAL_7B", "GEMMA"])
def test_a_conversation_that_ends_with_the_assistant(name: str) -> None:
    """A second answer was asked for, without a word."""
    text = getattr(chat_templates, name)
    assert str(render(text, ENDS).error) == (
        "ends_with_assistant: column 'm' ends with the assistant's turn; choose --last-assistant-turn drop or continue"
    )
    dropped = render(text, ENDS, last_assistant_turn="drop")
    assert dropped.text == render(text, ENDS[:3]).text and dropped.error is None
    continued = str(render(text, ENDS, last_assistant_turn="continue").text)
    assert continued.endswith(("The capital of Italy is", "The capital of Italy is "))
    assert continued.count("Paris.") == 1


def test_a_conversation_with_nothing_else_or_a_tool_call_at_its_end() -> None:
    alone = say("system: S", "assistant: a")
    assert str(render(chat_templates.PHI3, alone, last_assistant_turn="drop").error).endswith(
        "has nothing but the assistant's turn"
    )
    call = [*say("user: a"), {"role": "assistant", "tool_calls": [WEATHER]}]
    error = str(render(chat_templates.QWEN3, call, last_assistant_turn="continue").error)
    assert error.endswith("ends with a tool call, which cannot be continued")


def model_with(directory: Path, text: str) -> Path:
    make_model(directory, chat=True)
    (directory / "chat_template.jinja").write_text(text)
    return directory


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "q.jsonl", *({"prompt": f"What day is it, {row}?"} for row in range(4)))


def arguments(model: Path, dataset: Path, output: Path, *more: object) -> list[object]:
    return [
        "run",
        "--engine",
        "fake",
        "--model",
        model,
        "--dataset",
        dataset,
        "--output",
        output,
        "--max-new-tokens",
        2,
        *more,
    ]


def test_a_run_has_one_date(run_job: RunJob, tmp_path: Path, questions: Path) -> None:
    """A restart on another day mixed prompts with two dates, and verify said that all was right."""
    model = model_with(tmp_path / "m", chat_templates.LLAMA_32)
    output = tmp_path / "out"
    command = arguments(model, questions, output, "--rows-per-shard", 2)
    first = run_job(*command)
    today = datetime.datetime.now(datetime.UTC).date()
    assert first.exit_code == 0, first.stderr
    assert f"writes the date into prompts: {today} in the whole run" in first.stderr
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["identity"]["prompt"]["date"] == str(today)

    manifest["identity"]["prompt"]["date"] = "2024-02-29"  # as if begun on that day
    (output / "manifest.json").write_text(json.dumps(manifest))
    for part in output.rglob("part-*"):
        part.unlink()
    assert run_job(*command).exit_code == 0
    assert {text.partition("\n")[0] for text in read_output(output)["prompt"].to_pylist()} == {
        "Today Date: 29 Feb 2024"
    }
    assert run_job(*command, "--date", "2024-02-29").exit_code == 0
    refused = run_job(*command, "--date", "2024-03-01")
    assert refused.exit_code == 2 and '--date was "2024-02-29", now "2024-03-01"' in refused.stderr


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_seconds_of_a_date_are_the_same_in_all_time_zones(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """%s of strftime asks the zone of the machine: nodes in two zones wrote two prompts for one date."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        assert template("{{ strftime_now('%s %%s %H') }}")(say("user: a")) == "1709164800 %s 00"
    time.tzset()


def test_a_date_may_be_given(run_job: RunJob, tmp_path: Path, questions: Path) -> None:
    model = model_with(tmp_path / "m", chat_templates.SMOLLM3)
    result = run_job(*arguments(model, questions, tmp_path / "out", "--date", "2024-02-29"))
    assert result.exit_code == 0, result.stderr
    assert "Today Date: 29 February 2024\n" in read_output(tmp_path / "out")["prompt"][0].as_py()
    shown = run_job("preview", *arguments(model, questions, tmp_path / "out", "--date", "2024-02-29")[1:])
    assert "Today Date: 29 February 2024\n" in shown.stdout
    for date in ("today", "20240229", "2024-02-30"):
        wrong = run_job(*arguments(model, questions, tmp_path / "new", "--date", date))
        assert wrong.exit_code == 2 and f"--date is {date!r}; it must be a date such as 2026-11-30." in wrong.stderr


def test_a_date_without_effect_is_refused(run_job: RunJob, tmp_path: Path, questions: Path) -> None:
    model = model_with(tmp_path / "m", chat_templates.PHI3)
    result = run_job(*arguments(model, questions, tmp_path / "out", "--date", "2024-02-29"))
    assert (
        result.exit_code == 2 and "--date was given, but no chat template that reads the date is used" in result.stderr
    )
    assert run_job(*arguments(model, questions, tmp_path / "out")).exit_code == 0
    assert "date" not in json.loads((tmp_path / "out/manifest.json").read_text())["identity"]["prompt"]


def test_an_older_run_goes_on_with_the_day_of_its_start(run_job: RunJob, tmp_path: Path, questions: Path) -> None:
    """Versions 0.1 and 0.2 read the clock at each start and noted no date."""
    model = model_with(tmp_path / "m", chat_templates.LLAMA_32)
    output = tmp_path / "out"
    assert run_job(*arguments(model, questions, output)).exit_code == 0
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["identity"]["prompt"]["date"], manifest["identity"]["prompt"]["text_rules"]
    manifest["about"]["created"] = "2025-12-31T23:00:00+0100"
    (output / "manifest.json").write_text(json.dumps(manifest))
    for part in output.rglob("part-*"):
        part.unlink()
    result = run_job(*arguments(model, questions, output))
    assert result.exit_code == 0, result.stderr
    assert read_output(output)["prompt"][0].as_py().startswith("Today Date: 31 Dec 2025\n")


def test_a_template_that_draws_is_refused() -> None:
    for text in ("{{ ['a', 'b'] | random }}", "{{ lipsum() }}{{ messages }}"):
        with pytest.raises(UsageError, match="draws at random"):
            template(text).check()
    template(chat_templates.QWEN3).check()


def test_several_templates_without_a_default_are_refused() -> None:
    """Every row was an error, and its message was cut in the middle."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"chatml": "a", "tool_use": "b"}
    with pytest.raises(UsageError, match=r"several chat templates \(chatml, tool_use\), but none called default\. "):
        ModelChatTemplate(tokenizer)
    tokenizer.chat_template = {"default": chat_templates.PHI3, "tool_use": "b"}
    assert ModelChatTemplate(tokenizer)(say("user: u")) == "<|user|>\nu<|end|>\n<|assistant|>\n"


def test_a_system_prompt_that_the_template_refuses_is_refused(run_job: RunJob, tmp_path: Path, questions: Path) -> None:
    """Every row was an error, after the model had been loaded."""
    model = model_with(tmp_path / "m", chat_templates.GEMMA)
    result = run_job(*arguments(model, questions, tmp_path / "out", "--system-prompt", "Be brief."))
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert (
        "--system-prompt does not work with this model. chat template: TemplateError: System role not supported. Put"
        in result.stderr
    )
    ignoring = model_with(tmp_path / "m2", "{{ messages[-1].content }}")
    result = run_job(*arguments(ignoring, questions, tmp_path / "out", "--system-prompt", "Be brief."))
    assert result.exit_code == 2 and "leaves out or changes message 0 (system)" in result.stderr

"""``--prefill``: the beginning of the answer, which the model continues."""

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from job.config import PromptConfig
from job.data.chat_template import ModelChatTemplate
from job.data.prompts import PromptRenderer
from job.data.special_tokens import SpecialTokens
from job.data.tokenization import Tokenization
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.records import Prompt, Row
from job.tasks import Generate, SamplingParams
from tests.conftest import Result
from tests.test_run import read_output
from tests.tiny import TEMPLATES_DIR, make_chat_model, make_chat_tokenizer, make_model

RunJob = Callable[..., Result]
DAY = datetime.date(2024, 2, 29)
FAMILIES = sorted(path.stem for path in TEMPLATES_DIR.glob("*.jinja"))


def renderer(family: str | None, columns: Any = ("prompt",), **options: Any) -> PromptRenderer:
    config = PromptConfig(**options)
    template = None
    if family is not None:
        template = ModelChatTemplate(make_chat_tokenizer(family)).of_run(DAY, {}, continues=config.continues_last_turn)
    special = SpecialTokens(["<eos>"], config.special_tokens_in_text)
    return PromptRenderer(config, template, columns, special_tokens=special)


def render(family: str | None, values: Mapping[str, Any], **options: Any) -> Prompt:
    return renderer(family, [*values], **options).render(Row(row_idx=0, values=values))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill", ["The answer is", '{"answer": ', "a\n\nb"])
def test_prompts_are_those_of_transformers(family: str, prefill: str) -> None:
    """Those of continue_final_message, but for white space at the end, which templates trim."""
    prompt = render(family, {"prompt": "Hi?"}, prefill=prefill)
    messages = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": prefill}]
    theirs = make_chat_tokenizer(family).apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert prompt.text is not None and prompt.text.rstrip() == theirs.rstrip()
    assert prompt.text.endswith(prefill) and prompt.prefill == prefill


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill", ["Sure:\n", " x ", "<think>\nHm.\n</think>\n\nSo", "Hi?", "<eos>"])
def test_a_prefill_stays_as_it_is(family: str, prefill: str) -> None:
    """Templates trim messages, take thoughts out of them, and may have the same text elsewhere."""
    text = render(family, {"prompt": "Hi?"}, prefill=prefill).text
    assert text == str(render(family, {"prompt": "Hi?"}, prefill="x").text).removesuffix("x") + prefill


def test_a_text_without_a_chat_template_is_followed_by_the_prefill() -> None:
    prompt = render(None, {"prompt": "1 + 1 ="}, prefill=" two,")
    assert prompt.text == "1 + 1 = two," and prompt.content_span == (0, 7)


def test_a_prefill_may_be_a_template() -> None:
    values = {"q": "Hi?", "start": "Dear"}
    options = {"prompt_column": "q", "prefill": "{{ start }} "}
    assert render("gemma", values, **options).text == (
        "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nDear "
    )
    subject = renderer("gemma", ["q", "start"], **options)
    assert subject.read_columns == ["q", "start"]
    null = subject.render(Row(row_idx=0, values={"q": "Hi?", "start": None}))
    assert str(null.error).startswith("template_error: --prefill: UndefinedError: column 'start' is null")
    assert subject.render_probe("N/A").text is not None and str(subject.render_probe("N/A").text).endswith("\nN/A ")
    with pytest.raises(UsageError, match="no column 'begin'"):
        renderer(None, ["q"], prompt_column="q", prefill="{{ begin }}")
    with pytest.raises(UsageError, match=r"--prefill, line 1: "):
        renderer(None, ["q"], prompt_column="q", prefill="{{ begin")


def test_choices_are_tokenized_after_the_prefill_if_all_rows_have_the_same() -> None:
    assert renderer(None, prefill="Answer:").suffix == "Answer:"
    assert renderer("gemma", prefill="Answer:").suffix == "<end_of_turn>\n<start_of_turn>model\nAnswer:"
    assert renderer(None, prefill="{{ prompt }}").suffix == ""


def test_few_shot_examples_come_before_it() -> None:
    shots = '{"prompt": "1?", "completion": "one"}'
    text = render("gemma", {"prompt": "2?"}, examples=shots, prefill="t").text
    assert text is not None and text.endswith(
        "model\none<end_of_turn>\n<start_of_turn>user\n2?<end_of_turn>\n<start_of_turn>model\nt"
    )
    assert render(None, {"prompt": "2?"}, examples=shots, prefill="t").text == "1?one\n\n2?t"


def test_a_system_message_that_only_reaches_the_last_turn_of_the_user_is_an_error() -> None:
    """The template of Mistral looks whether a turn of the user is the last one: with a prefill, it never is."""
    options = {"system_prompt": "Be brief.", "prefill": "x"}
    error = str(render("mistral", {"prompt": "Hi?"}, **options).error)
    assert error == "dropped_message: the chat template leaves out or changes message 0 (system)"
    with pytest.raises(UsageError, match="--system-prompt does not work with this model"):
        renderer("mistral", **options).check_system_prompt()


def test_the_turn_of_an_assistant_and_a_prefill() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    options = {"messages_column": "m", "prefill": "x"}
    assert str(render("qwen3", {"m": turns}, **options).error).startswith("ends_with_assistant")
    dropped = render("qwen3", {"m": turns}, last_assistant_turn="drop", **options)
    assert dropped.text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nx"
    with pytest.raises(UsageError, match="--prefill and --last-assistant-turn continue were given together"):
        PromptConfig(last_assistant_turn="continue", **options)


@pytest.mark.parametrize("policy", ["truncate-left", "truncate-right"])
@pytest.mark.parametrize("family", [None, "gemma"])
def test_truncation_cuts_the_row_and_not_the_prefill(family: str | None, policy: str) -> None:
    """Also if the row has the same text."""
    tokenizer = Tokenizer(make_chat_tokenizer("gemma"))
    prompt = render(family, {"prompt": "0123456789: start"}, prefill="0123456789: start")
    whole = len(tokenizer.encode(str(prompt.text)))
    cut = Tokenization(
        tokenizer,
        lambda _: Generate(params=SamplingParams()),
        chat=True,
        max_prompt_tokens=whole - 5,
        on_long_prompt=policy,
    ).encode([prompt])[0]
    own = "56789: start" if policy == "truncate-left" else "0123456789: "
    assert cut.request is not None and len(cut.request.prompt_ids) == whole - 5
    assert str(cut.prompt.text).endswith("0123456789: start") and own in str(cut.prompt.text)


def test_special_tokens_of_a_row_stay_plain_text_beside_a_prefill() -> None:
    values = {"prompt": "a<eos>", "start": "<eos>b"}
    prompt = render("gemma", values, prefill="{{ start }}", special_tokens_in_text="escape")
    text = str(prompt.text)
    assert prompt.prefill == "<eos>b" and text.endswith("<eos>b")
    assert [text[start:end] for start, end in prompt.literal_spans] == ["<eos>", "<eos>"]
    assert prompt.content_span is not None and text[slice(*prompt.content_span)] == "a<eos>"


@pytest.fixture
def run(run_job: RunJob, tmp_path: Path) -> Callable[..., Result]:
    """Run a tiny model over two rows."""
    (tmp_path / "q.jsonl").write_text('{"prompt": "Hi?", "start": "Dear"}\n{"prompt": "Ho?", "start": "Hello"}\n')

    def call(model: Path, *more: object, output: str = "out", engine: str = "paged") -> Result:
        common = ["--dataset", tmp_path / "q.jsonl", "--output", tmp_path / output]
        if "--choices" not in more:
            common += ["--max-new-tokens", 4]
        return run_job("run", "--engine", engine, "--device", "cpu", "--model", model, *common, *more)

    return call


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_answers_go_on_where_the_prefill_ends(run: Callable[..., Result], tmp_path: Path, engine: str) -> None:
    """They are those to the same text as a prompt, and the column has them with or without the prefill."""
    model = make_chat_model(tmp_path / "model", "gemma")
    options = ["--prefill", "{{ start }}"]
    assert run(model, *options, engine=engine).exit_code == 0
    table = read_output(tmp_path / "out")
    assert [text.rpartition("model\n")[2] for text in table["prompt"].to_pylist()] == ["Dear", "Hello"]
    template = "<bos><start_of_turn>user\n{{ prompt }}<end_of_turn>\n<start_of_turn>model\n{{ start }}"
    plain = run(model, "--no-chat", "--prompt-template", template, output="plain", engine=engine)
    assert plain.exit_code == 0, plain.stderr
    for name in ("prompt", "completion", "num_prompt_tokens"):
        assert table[name].equals(read_output(tmp_path / "plain")[name])
    assert run(model, *options, "--include-prefill", output="with", engine=engine).exit_code == 0
    texts = table["completion"].to_pylist()
    assert read_output(tmp_path / "with")["completion"].to_pylist() == [f"Dear{texts[0]}", f"Hello{texts[1]}"]
    assert run(model, "--prefill", "x", engine=engine).exit_code == 2


def test_a_stop_string_in_the_prefill_ends_nothing(run: Callable[..., Result], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    assert run(model, "--prefill", "a\nb", "--stop", "\n", "--include-prefill", engine="fake").exit_code == 0
    assert all(text.startswith("a\nb") for text in read_output(tmp_path / "out")["completion"].to_pylist())


def test_choices_are_scored_after_the_prefill(run: Callable[..., Result], tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model", "gemma")
    choices = ["--choices", " yes", "--choices", " no", "--choice-calibration", "N/A"]
    assert run(model, "--prefill", "Answer:", *choices).exit_code == 0
    template = "<bos><start_of_turn>user\n{{ prompt }}<end_of_turn>\n<start_of_turn>model\nAnswer:"
    assert run(model, "--no-chat", "--prompt-template", template, *choices, output="plain").exit_code == 0
    tables = [read_output(tmp_path / name) for name in ("out", "plain")]
    assert tables[0]["choice_logprobs"].equals(tables[1]["choice_logprobs"])
    assert tables[0]["choice_probs"].equals(tables[1]["choice_probs"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--include-prefill"],
            "--include-prefill has no effect: no answer has a prefill. Set --prefill, or leave it out.",
        ),
        (["--prefill", ""], "--prefill is ''; it must be a non-empty text"),
        (["--prefill", "start.txt"], "--prefill 'start.txt' is neither a file nor a text."),
        (["--prefill", "x", "--include-prefill", "--regex", "a"], "--include-prefill and --regex were given together."),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Callable[..., Result], tmp_path: Path, options: list[str], message: str
) -> None:
    result = run(make_model(tmp_path / "model"), *options)
    assert result.exit_code == 2 and message in result.stderr


def test_a_space_at_the_end_is_told(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run(make_model(tmp_path / "model"), "--prefill", "So ", engine="fake")
    assert result.exit_code == 0 and "--prefill ends with a space" in result.stderr

"""Few-shot examples: where they stand in a prompt, what a wrong file says, and that they belong to a run."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from job.config import PromptConfig
from job.data.prompts import ChatTemplate, PromptRenderer
from job.data.tokenization import EncodedPrompt, Tokenization
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.texts import read_examples
from job.records import Prompt, Row
from job.tasks import Generate, SamplingParams
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_tokenizer

RunJob = Callable[..., Result]

SUMS = [{"prompt": "1+1=", "completion": " 2"}, {"prompt": "2+2=", "completion": " 4"}]


def text_of(examples: list[Any]) -> str:
    return "\n".join(example if isinstance(example, str) else json.dumps(example) for example in examples)


@pytest.fixture(scope="module")
def chat() -> ChatTemplate:
    template = Tokenizer(make_tokenizer(chat=True)).chat_template(None)
    assert template is not None
    return template


def renderer(
    examples: list[Any], chat_template: ChatTemplate | None = None, columns: str = "prompt", **options: Any
) -> PromptRenderer:
    return PromptRenderer(PromptConfig(examples=text_of(examples), **options), chat_template, columns.split())


def render(values: Mapping[str, Any], subject: PromptRenderer) -> str:
    prompt = subject.render(Row(row_idx=3, values=values))
    assert prompt.error is None and prompt.text is not None
    return prompt.text


def test_in_a_chat_examples_are_earlier_turns(chat: ChatTemplate) -> None:
    subject = renderer(SUMS, chat, system_prompt="Add.")
    assert render({"prompt": "3+3="}, subject) == (
        "<system>Add.<eos><user>1+1=<eos><assistant> 2<eos><user>2+2=<eos><assistant> 4<eos><user>3+3=<eos><assistant>"
    )


def test_without_chat_they_are_joined_as_they_are() -> None:
    assert render({"prompt": "3+3="}, renderer(SUMS)) == "1+1= 2\n\n2+2= 4\n\n3+3="


def test_they_are_rendered_like_rows(chat: ChatTemplate) -> None:
    examples = [{"q": "one", "completion": "1", "note": "not shown"}]
    subject = renderer(examples, chat, "q", prompt_template="Number: {{ q | upper }}")
    assert render({"q": "two"}, subject) == "<user>Number: ONE<eos><assistant>1<eos><user>Number: TWO<eos><assistant>"


def test_of_messages_a_system_message_stays_first(chat: ChatTemplate) -> None:
    """And an example may be a conversation of several turns."""
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    example = {"m": [{"role": role, "content": text} for role, text in turns], "completion": "d"}
    subject = renderer([example], chat, "m", messages_column="m")
    before = "<user>a<eos><assistant>b<eos><user>c<eos><assistant>d<eos>"
    own = [{"role": "user", "content": "x"}]
    assert render({"m": own}, subject) == f"{before}<user>x<eos><assistant>"
    with_system = [{"role": "system", "content": "S"}, *own]
    assert render({"m": with_system}, subject) == f"<system>S<eos>{before}<user>x<eos><assistant>"
    told = renderer([example], chat, "m", messages_column="m", system_prompt="T")
    assert render({"m": with_system}, told) == f"<system>T<eos><system>S<eos>{before}<user>x<eos><assistant>"


def test_a_template_that_uses_them_gets_the_list_and_nothing_else_is_done(chat: ChatTemplate) -> None:
    template = "{% for e in examples %}{{ e.prompt }} -> {{ e.completion }}; {% endfor %}{{ prompt }} ->"
    expected = "1+1= ->  2; 2+2= ->  4; 3+3= ->"
    subject = renderer(SUMS, prompt_template=template)
    assert subject.columns == ["prompt"]
    assert render({"prompt": "3+3="}, subject) == expected
    in_chat = renderer(SUMS, chat, prompt_template=template)
    assert render({"prompt": "3+3="}, in_chat) == f"<user>{expected}<eos><assistant>"


def test_a_column_of_that_name_is_one_if_there_are_no_examples() -> None:
    subject = PromptRenderer(PromptConfig(prompt_template="{{ examples }}"), None, ["examples"])
    assert subject.columns == ["examples"] and render({"examples": "x"}, subject) == "x"


def test_content_free_prompts_have_them_too(chat: ChatTemplate) -> None:
    """Or else they would calibrate for another prompt than the rows have."""
    for template in (None, chat):
        subject = renderer(SUMS, template)
        assert subject.render_probe("N/A").text == render({"prompt": "N/A"}, subject)


def encode(prompt: Prompt, max_prompt_tokens: int, side: str, *, is_chat: bool) -> EncodedPrompt:
    subject = Tokenization(
        Tokenizer(make_tokenizer(chat=is_chat)),
        lambda values: Generate(params=SamplingParams()),
        chat=is_chat,
        max_prompt_tokens=max_prompt_tokens,
        on_long_prompt=side,
    )
    return subject.encode([prompt])[0]


@pytest.mark.parametrize(("side", "kept"), [("truncate-left", "789"), ("truncate-right", "012")])
@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("example", ["0123456789", " 0123456789\n", "long 0123456789 and more"])
def test_only_the_rows_own_content_is_cut(
    chat: ChatTemplate, side: str, kept: str, is_chat: bool, example: str
) -> None:
    """Also where an example holds the same text."""
    subject = renderer([{"prompt": example, "completion": "0123456789"}], chat if is_chat else None)
    whole = subject.render(Row(row_idx=0, values={"prompt": "0123456789"}))
    num_tokens = len(make_tokenizer(chat=is_chat)(str(whole.text))["input_ids"])
    encoded = encode(whole, num_tokens - 7, side, is_chat=is_chat)
    assert encoded.request is not None and encoded.num_tokens == num_tokens
    head, _, tail = str(whole.text).rpartition("0123456789")
    assert encoded.prompt.text == f"{head}{kept}{tail}"


def test_what_a_chat_template_strips_is_not_looked_for_in_the_examples() -> None:
    """The row's text, with its spaces, stands in the example; its own place has it without them."""
    stripping = Tokenizer(make_tokenizer(chat=True)).chat_template(None)
    assert stripping is not None

    def strip(messages: Any) -> str:
        return stripping([{**message, "content": message["content"].strip()} for message in messages])

    subject = renderer([{"prompt": "<  0123  >", "completion": "yes"}], strip)
    prompt = subject.render(Row(row_idx=0, values={"prompt": "  0123  "}))
    assert prompt.text == "<user><  0123  ><eos><assistant>yes<eos><user>0123<eos><assistant>"
    assert prompt.content_span == (prompt.text.rindex("0123"), prompt.text.rindex("0123") + 4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the file contains no examples"),
        (["", "  "], "the file contains no examples"),
        ([SUMS[0], '{"prompt": "torn'], "line 2: it is not JSON"),
        ([SUMS[0], "", "[" * 100_000], "line 3: it is not JSON"),
        (["[1]"], "line 1: it is not an object"),
        ([{"prompt": "x"}], "line 1: it has no 'completion'"),
        ([{"prompt": "x", "completion": None}], "line 1: completion is null; it must be non-blank text"),
        ([{"prompt": "x", "completion": 3}], "line 1: completion is 3; it must be non-blank text"),
        ([{"prompt": "x", "completion": " "}], 'line 1: completion is " "; it must be non-blank text'),
        ([SUMS[0], {"question": "x", "completion": "y"}], "line 2: it has no 'prompt', which the prompt needs"),
        ([{"prompt": None, "completion": "y"}], "line 1: column 'prompt' is null"),
        ([{"prompt": 7, "completion": "y"}], "line 1: column 'prompt' is a number: 7"),
        (['{"prompt": "\\ud800", "completion": "y"}'], "line 1: it contains a lone surrogate"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_example_is_told_with_its_line(lines: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--examples{', ' if 'line' in message[:4] else ': '}{message}")):
        renderer(lines)


def test_an_example_with_a_system_message_is_refused(chat: ChatTemplate) -> None:
    example = {"m": [{"role": "system", "content": "S"}, {"role": "user", "content": "x"}], "completion": "y"}
    with pytest.raises(UsageError, match="line 1: it begins with a system message"):
        renderer([example], chat, "m", messages_column="m")


def test_a_template_that_fails_on_an_example_is_told() -> None:
    with pytest.raises(UsageError, match=re.escape("--examples, line 1: ZeroDivisionError: division by zero.")):
        renderer([{"prompt": 0, "completion": "y"}], prompt_template="{{ 1 / prompt }}")


def test_separators_within_a_string_do_not_end_a_line() -> None:
    subject = renderer(['{"prompt": "a\u2028b\u0085c", "completion": "d"}'])
    assert render({"prompt": "x"}, subject) == "a\u2028b\u0085cd\n\nx"


@pytest.mark.parametrize("content", [None, b"\xff"], ids=["missing", "no-text"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "e.jsonl"
    if content is not None:
        path.write_bytes(content)
    for name in (str(path), str(tmp_path), "nul\0"):
        with pytest.raises(UsageError, match=r"--examples '.*' cannot be read: "):
            read_examples(name)


def test_a_byte_order_mark_is_no_part_of_the_first_example(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"\xef\xbb\xbf" + text_of(SUMS).encode() + b"\r\n")
    assert len(renderer([read_examples(str(tmp_path / "e.jsonl"))])._shots) == 2


def test_examples_reach_the_model_and_belong_to_the_run(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "3+3="}, {"prompt": "4+4="}])
    examples = write_jsonl(tmp_path / "e.jsonl", SUMS)
    args = [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--examples", examples],
    ]
    assert run_job(*args).exit_code == 0
    texts = read_output(tmp_path / "out")["prompt"].to_pylist()
    assert texts == ["1+1= 2\n\n2+2= 4\n\n3+3=", "1+1= 2\n\n2+2= 4\n\n4+4="]
    moved = examples.rename(tmp_path / "moved.jsonl")
    assert run_job(*args[:-1], moved).exit_code == 0, "the same examples in another place"
    write_jsonl(moved, [SUMS[0]])
    refused = run_job(*args[:-1], moved)
    assert refused.exit_code == 2 and "--examples was " in refused.stderr
    without = run_job(*args[:-2])
    assert without.exit_code == 2 and ", now not set" in without.stderr
    assert "Traceback" not in without.stderr + refused.stderr


@pytest.mark.parametrize(
    ("lines", "reason"), [(None, "cannot be read: No such file"), ([{}], "it has no 'completion'")]
)
def test_wrong_examples_end_the_run_before_it_starts(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, lines: list[Any] | None, reason: str
) -> None:
    data, examples = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "x"}]), tmp_path / "e.jsonl"
    if lines is not None:
        write_jsonl(examples, lines)
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--examples", examples],
    )
    assert result.exit_code == 2 and reason in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()

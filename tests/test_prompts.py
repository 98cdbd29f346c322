"""Prompts: the three ways to say them, every way a row can be wrong, and the sandbox."""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from job.config import PromptConfig
from job.data.chat_template import ChatTemplate
from job.data.messages import last_text
from job.data.prompts import PromptRenderer, find_content, needed_columns
from job.data.templates import Template, check_braces, in_braces
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.texts import read_system_prompt, read_template
from job.records import Prompt, Row, RowError
from tests.tiny import make_tokenizer


@pytest.fixture(scope="module")
def chat() -> ChatTemplate:
    template = Tokenizer(make_tokenizer(chat=True)).chat_template(None)
    assert template is not None
    return template


def render(values: Mapping[str, Any], chat_template: ChatTemplate | None = None, **options: Any) -> Prompt:
    renderer = PromptRenderer(PromptConfig(**options), chat_template, list(values))
    return renderer.render(Row(row_idx=7, values=values))


def error_of(values: Mapping[str, Any], chat_template: ChatTemplate | None = None, **options: Any) -> str:
    prompt = render(values, chat_template, **options)
    assert prompt.error is not None and prompt.row_idx == 7
    return str(prompt.error)


def test_the_default_is_the_column_prompt_as_it_is() -> None:
    assert render({"prompt": " as is \n"}) == Prompt(row_idx=7, text=" as is \n", content_span=(0, 8))


def test_another_column_may_be_the_prompt() -> None:
    assert render({"prompt": "no", "question": "yes"}, prompt_column="question").text == "yes"


def test_a_template_sees_the_columns() -> None:
    template = "{% for c in choices %}{{ loop.index }}. {{ c.text }} {% endfor %}{{ q | upper }} {{ extra | tojson }}"
    values = {"q": "what?", "choices": [{"text": "é"}, {"text": "b"}], "extra": {"k": "é"}}
    assert render(values, prompt_template=template).text == '1. é 2. b WHAT? {"k": "é"}'


def test_a_template_needs_only_its_columns() -> None:
    config = PromptConfig(prompt_template="{% set a = x %}{{ a }}{{ y }}")
    assert PromptRenderer(config, None, ["x", "y", "z"]).columns == ["x", "y"]


def test_a_template_may_come_from_a_file(tmp_path: Path) -> None:
    for text in ("Q: {{ q }}é\n", "\ufeffQ: {{ q }}é\r\n", "Q: {{ q }}é"):
        (tmp_path / "t.jinja").write_bytes(text.encode())
        assert read_template(str(tmp_path / "t.jinja")) == "Q: {{ q }}é"
    assert read_template("Q: {{ q }}") == "Q: {{ q }}"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", " \n"])
def test_a_template_ends_as_it_was_written(tmp_path: Path, end: str) -> None:
    """Jinja2 drops a last newline: a prompt that was written to end in "<think>\\n" did not. Of a file, the newline
    that editors put after the last line does not count.
    """
    assert render({"q": "a"}, prompt_template="{{ q }}<think>" + end).text == "a<think>" + end
    (tmp_path / "t.jinja").write_text("{{ q }}<think>" + end + "\n")
    assert render({"q": "a"}, prompt_template=read_template(str(tmp_path / "t.jinja"))).text == "a<think>" + end


def test_line_ends_stay_as_they_were_typed(tmp_path: Path) -> None:
    """Jinja2 makes every line end a \\n. Of a file, which an editor of Windows may have written, they are \\n."""
    template = "Q:\r\n{{ q\r\n}}\r\n{% if q %}{{ '\r' }}\n{%- endif %}A:\r"
    assert render({"q": "a\r\nb"}, prompt_template=template).text == "Q:\r\na\r\nb\r\n\rA:\r"
    assert render({"q": "a"}, prompt_template=template, text_rules=1).text == "Q:\na\n\nA:\n"
    (tmp_path / "t").write_bytes(b"Q:\r\n{{ q }}\r\n")
    assert read_template(str(tmp_path / "t")) == "Q:\n{{ q }}"


def test_a_system_prompt_may_come_from_a_file(tmp_path: Path) -> None:
    """Its name was the system prompt of the whole run."""
    (tmp_path / "system.txt").write_text("Be brief.\nBe kind.\n")
    assert read_system_prompt(str(tmp_path / "system.txt")) == "Be brief.\nBe kind."
    for text in ("Be brief.", "Answer in one sentence. Use a.txt if you like.", "Brief", "v1.5", ""):
        assert read_system_prompt(text) == text
    for name in ("missing.txt", "prompts/system.md", "/no/such.jinja"):
        with pytest.raises(UsageError, match=f"^--system-prompt '{name}' is neither a file nor a text"):
            read_system_prompt(name)


@pytest.mark.parametrize(
    ("template", "literal", "meant"),
    [
        ("{question} {{ id }}", "{question}", "{{ question }}"),
        ("{{ id }}\n{ question }", "{ question }", "{{ question }}"),
        ("{{ id }} {Ticket ID}", "{Ticket ID}", "{{ row['Ticket ID'] }}"),
        ("{% if id %}{question}{% endif %}", "{question}", "{{ question }}"),
    ],
)
def test_a_column_in_single_braces_is_refused(template: str, literal: str, meant: str) -> None:
    """It was the same text in every prompt."""
    with pytest.raises(UsageError) as caught:
        check_braces(template, ["id", "question", "Ticket ID"])
    assert str(caught.value) == (
        f"--prompt-template has {literal}, which is the same text in every prompt. Write {meant} for the column, or "
        f"{{{{ '{literal}' }}}} if the text is meant."
    )


def test_braces_that_are_meant_are_text() -> None:
    template = """{{ '{question}' }} {"id": {other}} {{ {'question': 1} }}{{ question }}"""
    check_braces(template, ["question", "id"])
    assert render({"question": "q"}, prompt_template="{{ '{question}' }}{{ question }}").text == "{question}q"


@pytest.mark.parametrize("column", ["Full text", "not", "a.b", "it's", "2nd", "true"])
def test_a_column_that_is_no_variable_is_named_in_the_error(column: str) -> None:
    """The hint was no valid template, or there was none."""
    written = in_braces(column)
    assert render({column: "x"}, prompt_template=written).text == "x"
    if column not in ("a.b", "true"):  # these are valid, but something else
        with pytest.raises(UsageError) as caught:
            Template(f"{{{{ {column} }}}}", [column])
        assert str(caught.value).endswith(f". Write {written} for that column.")


@pytest.mark.parametrize("call", ["now()", "today()", "utcnow()", "timestamp()", "astimezone()", "fromtimestamp(0)"])
def test_a_template_cannot_read_the_clock_or_the_time_zone(call: str) -> None:
    moment = datetime.datetime(2024, 2, 29, 12)
    error = error_of({"t": moment}, prompt_template="{{ t." + call + " }}")
    assert error.startswith("template_error: SecurityError: access to attribute")
    assert render({"t": moment}, prompt_template="{{ t.isoformat() }} {{ t.year }}").text == "2024-02-29T12:00:00 2024"
    assert render({"t": moment}, prompt_template="{{ t." + call + " }}", text_rules=1).error is None, "as it began"


def test_a_cycler_is_never_written_into_a_prompt() -> None:
    """Its text is its address, another one in each run."""
    error = error_of({"x": 1}, prompt_template="{{ x }}{{ cycler('a', 'b') }}")
    assert error == "template_error: ValueError: a cycler is not text; write {{ ... .next() }}"


@pytest.mark.parametrize("text", ["missing.jinja", "x" * 5000, "nul\0"], ids=["missing", "long", "nul"])
def test_a_text_without_variables_that_is_no_file_is_refused(text: str) -> None:
    """A text too long for a file name was an OSError with a traceback."""
    with pytest.raises(UsageError, match="is neither a file nor a template"):
        read_template(text)


def test_a_template_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """It was a UnicodeDecodeError with a traceback."""
    (tmp_path / "t").write_bytes(b"\xff\xfe{{")
    with pytest.raises(UsageError, match=r"--prompt-template '.*/t' cannot be read: 'utf-8' codec"):
        read_template(str(tmp_path / "t"))


def test_a_column_hides_the_function_of_jinja_with_its_name() -> None:
    """A column called ``range`` was never passed to the template: its prompts read <class 'range'>."""
    assert Template("{{ range }} {{ range(3) }} {{ x }}", ["x"]).columns == ["x"]
    assert render({"range": "1-5", "dict": "x"}, prompt_template="{{ range }} {{ dict }}").text == "1-5 x"
    assert render({"x": 2}, prompt_template="{% for i in range(x) %}{{ i }}{% endfor %}").text == "01"


def test_chat_wraps_the_prompt_and_knows_where_it_stands(chat: ChatTemplate) -> None:
    prompt = render({"prompt": "user"}, chat)
    assert prompt.text == "<user>user<eos><assistant>"
    assert prompt.content_span == (6, 10)


def test_the_system_prompt_comes_first(chat: ChatTemplate) -> None:
    prompt = render({"prompt": "hi"}, chat, system_prompt="Be hi.")
    assert prompt.text == "<system>Be hi.<eos><user>hi<eos><assistant>"
    assert prompt.text[slice(*prompt.content_span or ())] == "hi"


MESSAGES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


@pytest.mark.parametrize(
    "value",
    [
        MESSAGES,
        [{"name": None, "tool_calls": None, **message} for message in MESSAGES],
        '[{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, '
        '{"role": "user", "content": "three", "name": null}]',
    ],
    ids=["list", "nulls-of-arrow", "json-text"],
)
def test_messages_become_a_conversation(chat: ChatTemplate, value: Any) -> None:
    prompt = render({"m": value}, chat, messages_column="m")
    assert prompt.text == "<user>one<eos><assistant>two<eos><user>three<eos><assistant>"
    assert prompt.text[slice(*prompt.content_span or ())] == "three"


def test_null_keys_do_not_reach_the_chat_template() -> None:
    seen: list[Any] = []

    def template(messages: Any) -> str:
        seen.append(messages)
        return "text"

    render({"m": [{"role": "user", "content": "x", "name": None}]}, template, messages_column="m")
    assert seen[-1] == [{"role": "user", "content": "x"}]


def test_a_tool_call_needs_no_content() -> None:
    def template(messages: Any) -> str:
        return str(messages)

    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    value = [{"role": "user", "content": "x"}, call, {"role": "tool", "content": "y"}]
    assert render({"m": value}, template, messages_column="m").error is None


def test_the_system_prompt_goes_before_messages(chat: ChatTemplate) -> None:
    prompt = render({"m": MESSAGES[:1]}, chat, messages_column="m", system_prompt="S")
    assert prompt.text == "<system>S<eos><user>one<eos><assistant>"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "null_prompt: column 'prompt' is null"),
        ("", "empty_prompt: column 'prompt' is empty"),
        (" \n\t", "empty_prompt: column 'prompt' is empty"),
        (5, "not_a_string: column 'prompt' is a number: 5"),
        (True, "not_a_string: column 'prompt' is a boolean: True"),
        (["a"], "not_a_string: column 'prompt' is a list: ['a']"),
        ({"a": "x" * 99}, "not_a_string: column 'prompt' is a object: {'a': '" + "x" * 70 + "..."),
    ],
    ids=str,
)
def test_a_prompt_that_is_no_text_is_a_row_error(value: Any, error: str) -> None:
    assert error_of({"prompt": value}) == error


def test_an_empty_prompt_keeps_its_text() -> None:
    assert render({"prompt": "  "}).text == "  "


def test_a_row_without_the_column_is_a_null() -> None:
    """JSON lines may lack a key that other lines have."""
    prompt = PromptRenderer(PromptConfig(), None, ["prompt"]).render(Row(row_idx=0, values={"other": 1}))
    assert str(prompt.error) == "null_prompt: column 'prompt' is null"


def test_an_error_of_the_source_goes_on() -> None:
    error = RowError("invalid_json", "a.jsonl, row 3")
    prompt = PromptRenderer(PromptConfig(), None, ["prompt"]).render(Row(row_idx=3, values={}, error=error))
    assert prompt == Prompt(row_idx=3, text=None, error=error)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ([], "is not a list of messages: []"),
        ("[", "is text, but not JSON"),
        ("[" * 100_000, "is text, but not JSON"),
        ('{"role": "user"}', "is not a list of messages"),
        (3, "is not a list of messages: 3"),
        (["hi"], "message 0 has no role: hi"),
        ([{"content": "x"}], "message 0 has no role"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": None}], "message 1 has no content"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_messages_that_are_none_are_a_row_error(chat: ChatTemplate, value: Any, detail: str) -> None:
    """Nested JSON text too deep for the parser was a RecursionError that ended the run."""
    error = error_of({"m": value}, chat, messages_column="m")
    assert error.startswith("invalid_messages: column 'm'") and detail in error


def test_null_messages_are_a_row_error(chat: ChatTemplate) -> None:
    assert error_of({"m": None}, chat, messages_column="m") == "null_prompt: column 'm' is null"


def test_parts_of_text_are_joined_and_other_parts_are_a_row_error(chat: ChatTemplate) -> None:
    """Parts came into the prompt as Python writes a list of dicts."""
    parts: list[Any] = [{"type": "text", "text": "one", "image_url": None}, "two"]
    prompt = render({"m": [{"role": "user", "content": parts}]}, chat, messages_column="m")
    assert prompt.text == "<user>one\ntwo<eos><assistant>"
    assert prompt.text[slice(*prompt.content_span or ())] == "one\ntwo"
    for part, kind in (({"type": "image_url"}, "image_url"), ({"type": "text"}, "text"), (5, "number")):
        error = error_of({"m": [{"role": "user", "content": [*parts, part]}]}, chat, messages_column="m")
        assert error == f"unsupported_content: column 'm' has a part of type {kind}; this run reads text"
    error = error_of({"m": [{"role": "user", "content": 5}]}, chat, messages_column="m")
    assert error.startswith("unsupported_content: column 'm' has a part of type number")


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        ("{{ x / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ x.missing }}", "UndefinedError: 'int object' has no attribute 'missing'"),
        ("{{ x | length }}", "TypeError"),
    ],
)
def test_a_template_that_fails_is_a_row_error(template: str, detail: str) -> None:
    assert error_of({"x": 1}, prompt_template=template).startswith(f"template_error: {detail}")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ d.keys }}", "keys"),
        ("{{ text.title }}", "title"),
        ("{{ text['title'] }}", "title"),
    ],
)
def test_a_method_is_never_written_into_a_prompt(template: str, name: str) -> None:
    """Prompts read <built-in method items of dict object at 0x7f...>, another one in each run."""
    values = {"d": {"items": [1]}, "text": "a"}
    assert error_of(values, prompt_template=template) == (
        f"template_error: ValueError: {name!r} is a function here, not a value; there is no key with that name"
    )


def test_what_has_not_been_read_yet_is_never_written_into_a_prompt() -> None:
    """Prompts read <generator object sync_do_map at 0x7f...>."""
    assert error_of({"x": ["a"]}, prompt_template="{{ x | map('upper') }}").startswith(
        "template_error: ValueError: a generator is not text; write {{ ... | list }} or {{ ... | join }}"
    )
    assert render({"x": ["a"]}, prompt_template="{{ x | map('upper') | list }}").text == "['A']"


def test_a_key_comes_before_the_method_of_its_name() -> None:
    """A column's key ``items`` could not be reached with a dot: the method was printed."""
    values = {"d": {"items": 3, "a": 1}, "e": {"b": 2}}
    template = "{{ d.items }} {{ d.a }} {% for k, v in e.items() %}{{ k }}{{ v }}{% endfor %} {{ d | items | list }}"
    assert render(values, prompt_template=template).text == "3 1 b2 [('items', 3), ('a', 1)]"


@pytest.mark.parametrize(
    "template",
    [
        "{{ x }}",
        "{{ row['x'] }}",
        "{{ 'a' ~ x }}",
        "{{ '%s' | format(x) }}",
        "{{ x | upper }}",
        "{{ x | trim }}",
        "{{ ['a', x] | join }}",
        "{{ [{'k': x}] | join('', attribute='k') }}",
        "a{% for part in x %}{{ part }}{% endfor %}",
        "{{ x | length }}",
    ],
)
def test_a_null_that_becomes_text_is_a_row_error(template: str) -> None:
    """Models read None where a text was missing."""
    error = "template_error: UndefinedError: column 'x' is null; write {{ x or '' }} if it may be missing"
    assert error_of({"x": None}, prompt_template=template) == error
    assert render({"x": "y"}, prompt_template=template).error is None


def test_a_null_within_a_value_that_is_printed_is_a_row_error() -> None:
    error = "template_error: ValueError: a null value; write {{ ... or '' }} if it may be missing"
    assert error_of({"d": {"a": None}}, prompt_template="{{ d.a }}") == error


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ x or 'none' }}", "none"),
        ("{{ 'some' if x else 'none' }}", "none"),
        ("{{ 'none' if x is none else 'some' }}", "none"),
        ("{{ 'none' if x == none else 'some' }}", "none"),
        ("{{ 'some' if x != none else 'none' }}", "none"),
        ("{{ 'some' if x is defined else 'none' }}", "some"),
        ("{{ 'none' if x is undefined else 'some' }}", "some"),
        ("{{ x | default('none') }}", "none"),
        ("{{ x == 'a' }}", "False"),
        ("{{ x in ['a'] }}", "False"),
        ("{{ x is string }}", "False"),
        ("{{ x | tojson }}", "null"),
        ("{{ [x, 'a'] | tojson }}", '[null, "a"]'),
        ("{{ [x, 'a'] | select | join }}", "a"),
        ("{{ [x, 'a'] | reject('none') | join }}", "a"),
        ("{{ row | tojson }}", '{"x": null}'),
    ],
)
def test_conditions_take_a_null_for_none(template: str, text: str) -> None:
    assert render({"x": None}, prompt_template=template).text == text


@pytest.mark.parametrize(
    ("template", "columns", "needs_all"),
    [
        ("{{ row['Ticket ID'] }}{{ q }}", ["Ticket ID", "q"], False),
        ("{% if q %}{{ row['Ticket ID'] | upper }}{% endif %}", ["Ticket ID", "q"], False),
        ("{{ row.q }}", ["q"], False),
        ("{% for k, v in row.items() %}{{ k }}{{ v }}{% endfor %}", ["q", "Ticket ID"], True),
        ("{{ row[q] }}", ["q", "Ticket ID"], True),
        ("{{ row.get('q') }}{{ late }}", ["q", "Ticket ID", "late"], True),
        ("{% set r = row %}{{ r.q }}", ["q", "Ticket ID"], True),
        ("{{ row['q'] }}{% for row in q %}{{ row.x }}{% endfor %}", ["q", "Ticket ID"], True),
        ("{% for row in q %}{{ row.x }}{% endfor %}", ["q"], False),
        ("{{ row[0] }}", ["q", "Ticket ID"], True),
    ],
)
def test_row_names_columns_whatever_they_are_called(template: str, columns: list[str], needs_all: bool) -> None:
    """Columns of a spreadsheet, such as ``Ticket ID``, had no name in a template. Keys are found before it runs: only
    their columns are read.
    """
    subject = Template(template, ["q", "Ticket ID"])
    assert (subject.columns, subject.needs_all) == (columns, needs_all)
    needed = needed_columns(PromptConfig(prompt_template=template), ["q", "Ticket ID"])
    assert needed == (["*"] if needs_all else columns)


def test_columns_that_are_no_identifiers_come_into_prompts() -> None:
    values = {"Betreff / Text": "T", "Kunde ": "K", "items": "I"}
    assert render(values, prompt_template="{{ row['Betreff / Text'] }}{{ row['Kunde '] }}").text == "TK"
    every = "{% for k, v in row | items %}{{ k }}={{ v }};{% endfor %}"
    assert render(values, prompt_template=every).text == "Betreff / Text=T;Kunde =K;items=I;"
    assert render(values, prompt_template="{{ row.items }}").text == "I"
    with pytest.raises(UsageError, match=r"no column 'Kunde'\. Did you mean 'Kunde '\? Columns: Betreff / Text, Ku"):
        render(values, prompt_template="{{ row['Kunde'] }}")
    assert error_of({"Kunde ": None}, prompt_template="{{ row['Kunde '] }}").endswith(
        "column 'Kunde ' is null; write {{ row['Kunde '] or '' }} if it may be missing"
    )


def test_a_column_called_row_is_that_column() -> None:
    assert render({"row": "text", "q": 1}, prompt_template="{{ row }}").text == "text"
    assert Template("{{ row['q'] }}", ["row", "q"]).columns == ["row"]


@pytest.mark.parametrize(
    ("template", "columns", "example"),
    [
        ("Q: {question}", ["id", "question"], "{{ question }}"),
        ("Q: {Ticket ID} { text }", ["id", "text"], "{{ text }}"),
        ("Q: {{ 'x' }}", ["id", "text"], "{{ id }}"),
        ("Q: {what}", ["Ticket ID"], "{{ row['Ticket ID'] }}"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", ["id"], "{{ id }}"),
    ],
)
def test_a_template_that_names_no_column_is_refused(template: str, columns: list[str], example: str) -> None:
    """All rows had the same prompt, ``Q: {question}``, and the run ended well: Python's braces are single."""
    message = (
        "--prompt-template names no column, so it would be the same for all rows. Write a column in double braces, "
        "such as "
        f"{example}. Columns: {', '.join(columns)}."
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        PromptRenderer(PromptConfig(prompt_template=template), None, columns)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ x | random }}", "line 1: There is no filter 'random'. The line is: {{ x | random }}"),
        ("{% if x %}\n{{ x | random }}{% endif %}", "line 2: There is no filter 'random'"),
        ("{% if x %}\n{{ x | uper }}{% endif %}", "line 2: There is no filter 'uper'"),
        ("\n{% include 'x' %}", "line 2: A template cannot include another file. Insert its text here."),
        ("{% import 'x' as y %}", "line 1: A template cannot include another file"),
        ("{% from 'x' import y %}", "line 1: A template cannot include another file"),
        ("{% extends 'x' %}", "line 1: A template cannot include another file"),
    ],
)
def test_what_a_prompt_cannot_be_made_of_is_refused_at_the_start(template: str, reason: str) -> None:
    """Two runs had different prompts by ``random``; with ``include``, every row was an error."""
    with pytest.raises(UsageError, match=re.escape(f"--prompt-template, {reason}")):
        Template(template)


def test_what_draws_at_random_is_not_there() -> None:
    with pytest.raises(UsageError, match="The dataset has no column 'lipsum'"):
        render({"x": 1}, prompt_template="{{ lipsum(n=1) }}")
    assert render({"lipsum": "a column"}, prompt_template="{{ lipsum }}").text == "a column"


def test_constants_that_cannot_be_joined_are_refused_at_the_start() -> None:
    """Jinja2 joins constants when it compiles: it was a traceback."""
    with pytest.raises(UsageError, match=r"^--prompt-template: 'dict object' has no attribute 'x'\.$"):
        Template("{{ 'a' ~ {}.x }}")


def test_a_template_that_gives_nothing_is_a_row_error() -> None:
    assert error_of({"x": 0}, prompt_template="{% if x %}text{% endif %}") == (
        "empty_prompt: the rendered template is empty"
    )


def test_a_chat_template_that_refuses_is_a_row_error() -> None:
    def refuse(messages: Any) -> str:
        raise ValueError("Conversation roles\nmust alternate")

    error = error_of({"prompt": "x"}, refuse)
    assert error == "template_error: chat template: ValueError: Conversation roles must alternate"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ x.__init__ }}",
        "{{ x.__init__.__globals__ }}",
        "{{ x['__class__'] }}",
        "{{ x | attr('__class__') }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{{ self.__init__ }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ rows.append(1) }}",
        "{% for i in range(100000000) %}x{% endfor %}",
    ],
)
def test_a_template_cannot_reach_python(template: str) -> None:
    rows = ["untouched"]
    prompt = render({"x": "text", "rows": rows}, prompt_template=template + "{{ x }}")
    assert prompt.error is not None and prompt.error.kind == "template_error"
    assert prompt.text is None and rows == ["untouched"]


def test_a_syntax_error_is_told_with_its_line() -> None:
    with pytest.raises(UsageError, match=re.escape("--prompt-template, line 2:")) as caught:
        PromptRenderer(PromptConfig(prompt_template="fine\n  {{ x + }}\nrest"), None, ["x"])
    assert str(caught.value).endswith("unexpected 'end of print statement'. The line is: {{ x + }}")


@pytest.mark.parametrize(
    "options", [{}, {"prompt_column": "prompt"}, {"prompt_template": "{{ prompt }}"}, {"messages_column": "prompt"}]
)
def test_a_missing_column_is_told_with_those_there_are(chat: ChatTemplate, options: dict[str, str]) -> None:
    message = (
        "The dataset has no column 'prompt'. Columns: question, answer. "
        "Set --prompt-column, --messages-column or --prompt-template."
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        PromptRenderer(PromptConfig(**options), chat, ["question", "answer"])


@pytest.mark.parametrize("options", [{"messages_column": "m"}, {"system_prompt": "S", "prompt_column": "m"}])
def test_what_needs_a_chat_template_is_refused_without_one(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="needs a chat template, but the tokenizer has none"):
        PromptRenderer(PromptConfig(**options), None, ["m"])


@pytest.mark.parametrize(
    ("text", "content", "span"),
    [
        ("<user>what?<eos>", "what?", (6, 11)),
        ("<user>what?<eos>", "  what?\n", (6, 11)),
        ("<user>aa<user>aa<eos>", "aa", (14, 16)),
        ("<user>WHAT?<eos>", "what?", None),
        ("<user><eos>", "", None),
        ("<user>one<user>two<assistant>three", MESSAGES[:1], (6, 9)),
        ("<system>only", [{"role": "system", "content": "only"}], None),
    ],
)
def test_the_content_is_found_where_it_stands(text: str, content: Any, span: tuple[int, int] | None) -> None:
    assert find_content(text, last_text(content)) == span


@pytest.mark.parametrize("content", ["assistant", "a", ">", "eos"])
def test_the_end_of_the_chat_template_is_never_taken_for_content(chat: ChatTemplate, content: str) -> None:
    """The last occurrence was taken: a prompt "assistant" was found, and cut, in "<assistant>"."""
    assert render({"prompt": content}, chat).content_span == (6, 6 + len(content))

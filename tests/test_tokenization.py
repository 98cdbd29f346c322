"""Tokenization: text to ids and back, and what happens to prompts that are too long or no text at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.prompts import PromptRenderer
from job.data.tokenization import EncodedPrompt, Tokenization
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.bound import BoundModes
from job.modes.completion import CompletionMode
from job.modes.mode import Setting
from job.records import Completion, Generation, Prompt, Request, Row, RowError
from job.tasks import EndsText, Generate, SamplingParams, Task
from tests.tiny import make_tokenizer

NUM_TEMPLATE_TOKENS = len("<user>") + len("<assistant>") + 1
"""Of the tiny chat template around a prompt; its <eos> is one token."""


TASK = Generate(params=SamplingParams())


def tokenization(
    max_prompt_tokens: int = 100, on_long_prompt: str = "error", *, chat: bool = False, tokenizer: Any = None
) -> Tokenization:
    return Tokenization(
        Tokenizer(tokenizer or make_tokenizer(chat=chat)),
        lambda values: TASK,
        chat=chat,
        max_prompt_tokens=max_prompt_tokens,
        on_long_prompt=on_long_prompt,
    )


def completion_mode(tokenizer: Any = None, stop: Sequence[str] = (), *, logprobs: bool = False) -> BoundModes:
    """Return plain completion bound to a tokenizer."""
    config = RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(),
        sampling=SamplingConfig(stop=tuple(stop)),
        output=OutputConfig(output=Path("out")),
        modes=(CompletionMode(logprobs=logprobs),),
    )
    tokens = Tokenizer(tokenizer or make_tokenizer())
    return BoundModes.of(config, Setting(tokens=tokens, sampling=config.sampling, prompt_suffix=""))


def ends_text_of(stop: Sequence[str], tokenizer: Any = None) -> EndsText:
    """Return what an engine finds the stop strings with."""
    task = completion_mode(tokenizer, stop).task
    assert isinstance(task, Generate) and task.ends_text is not None
    return task.ends_text


def complete(
    generations: list[Generation], prompts: list[str | None], modes: BoundModes | None = None
) -> list[Completion]:
    """Return the rows that generations become."""
    texts = Tokenizer(make_tokenizer()).decode([generation.token_ids for generation in generations])
    return (modes or completion_mode()).complete(generations, texts, prompts)


def request_of(row_idx: int = 0, sample_idx: int = 0, task: Task = TASK) -> Request:
    return Request(row_idx=row_idx, sample_idx=sample_idx, prompt_ids=[5], task=task)


def prompt_of(text: str, *, chat: bool = False, **options: Any) -> Prompt:
    template = Tokenizer(make_tokenizer(chat=chat)).chat_template(None)
    return PromptRenderer(PromptConfig(**options), template, ["prompt"]).render(Row(row_idx=5, values={"prompt": text}))


def encode(text: str, max_prompt_tokens: int, on_long_prompt: str, *, chat: bool = False) -> EncodedPrompt:
    subject = tokenization(max_prompt_tokens, on_long_prompt, chat=chat)
    return subject.encode([prompt_of(text, chat=chat)])[0]


def ids_in(encoded: EncodedPrompt) -> list[int]:
    """Return the ids of a prompt that became a request."""
    assert encoded.request is not None and encoded.error is None
    return list(encoded.request.prompt_ids)


def rejected(encoded: EncodedPrompt) -> Completion:
    """Return the row of a prompt that became none."""
    assert encoded.request is None
    return encoded.completion(sample_idx=2)


@pytest.mark.parametrize("text", ["plain", " spaces  and\nlines\t", "naïve 日本語 👩‍👩‍👧", "<user> <eos>", "\0"])
def test_text_survives_the_way_to_ids_and_back(text: str) -> None:
    encoded = tokenization().encode([Prompt(row_idx=3, text=text)])[0]
    request = encoded.request
    assert request is not None and encoded.prompt.text == text and encoded.num_tokens == len(request.prompt_ids)
    assert request.task is TASK and request.key == (3, 0)
    generation = Generation(request=request, token_ids=request.prompt_ids, finish_reason="stop")
    assert complete([generation], [text]) == [
        Completion(
            row_idx=3,
            sample_idx=0,
            prompt=text,
            completion=text.replace("<eos>", ""),
            finish_reason="stop",
            num_prompt_tokens=len(request.prompt_ids),
            num_completion_tokens=len(request.prompt_ids),
            error=None,
        )
    ]


def test_requests_come_in_the_order_of_their_prompts() -> None:
    prompts = [
        Prompt(row_idx=9, text="nine"),
        Prompt(row_idx=2, text="\ud800"),
        Prompt(row_idx=4, text=None, error=RowError("null_prompt", "column 'p' is null")),
        Prompt(row_idx=1, text="one"),
    ]
    items = tokenization().encode(prompts)
    assert [item.prompt.row_idx for item in items] == [9, 2, 4, 1]
    assert [item.request is not None for item in items] == [True, False, False, True]
    assert [item.error is None for item in items] == [True, False, False, True]
    assert [len(item.request.prompt_ids) for item in items if item.request is not None] == [4, 3]


def test_nothing_becomes_nothing() -> None:
    assert tokenization().encode([]) == []
    assert complete([], []) == []


def test_a_failed_generation_has_no_completion() -> None:
    error = RowError("engine_error", "no luck")
    generation = Generation(request=request_of(), token_ids=[], finish_reason=None, error=error)
    (completion,) = complete([generation], ["p"])
    assert (completion.completion, completion.finish_reason) == (None, None)
    assert completion.error == error and completion.prompt == "p"


def ids_of(text: str) -> list[int]:
    """Return the tiny tokenizer's ids: one per byte."""
    return list(make_tokenizer()(text)["input_ids"])


def decode(text: str, stop: Sequence[str], *, finish_reason: str = "length", **values: Any) -> Completion:
    """Return what becomes of a generated text."""
    modes = completion_mode(stop=stop)
    request = request_of(task=modes.task)
    generation = Generation(request=request, token_ids=ids_of(text), finish_reason=finish_reason, **values)
    return complete([generation], ["p"], modes)[0]


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("one END", ["END"], "one "),
        ("END one", ["END"], ""),
        ("one END two END", ["END"], "one "),
        ("a;b.c", [".", ";"], "a"),
        ("xaab", ["b", "aab"], "x"),
        ("日本。語", ["。"], "日本"),
        ("naïve", ["ï"], "na"),
        ("a,b", ["a,b"], ""),
        ("emoji 👩‍👩‍👧 end", ["👩‍👩‍👧"], "emoji "),
    ],
)
def test_a_completion_ends_before_its_first_stop_string(text: str, stop: list[str], kept: str) -> None:
    completion = decode(text, stop)
    assert (completion.completion, completion.finish_reason) == (kept, "stop")
    assert completion.num_completion_tokens == len(text.encode()), "what was computed is counted"


@pytest.mark.parametrize(("text", "stop"), [("one two", ["END"]), ("EN", ["END"]), ("end", ["END"]), ("x", [])])
def test_a_completion_without_a_stop_string_is_left_alone(text: str, stop: list[str]) -> None:
    completion = decode(text, stop)
    assert (completion.completion, completion.finish_reason) == (text, "length")


def test_a_failed_generation_does_not_stop() -> None:
    completion = decode("", ["x"], finish_reason=None, error=RowError("engine_error", "no luck"))
    assert (completion.completion, completion.finish_reason) == (None, None)


@pytest.mark.parametrize("stop", [["END"], ["日本。"], ["\n"], ["x" * 40], ["B", "longer than that"], ["👩‍👩‍👧"]])
@pytest.mark.parametrize("before", ["", "a", "some words 語 before it "])
def test_the_token_that_completes_a_stop_string_ends_the_text(stop: list[str], before: str) -> None:
    """Token after token, as an engine asks; the tiny tokenizer has a token for each byte."""
    ends_text = ends_text_of(stop)
    ids = ids_of(before + stop[0] + " and more")
    end = len((before + stop[0]).encode())
    found = [ends_text([ids[:count]])[0] for count in range(1, len(ids) + 1)]
    assert found.index(True) == end - 1
    assert ends_text([ids[: end - 1], ids[:end], ids[:1]]) == [False, True, end == 1]


def test_only_the_end_of_a_text_is_looked_at() -> None:
    """Or else each token of a long completion would take longer than the one before it."""
    ends_text, ids = ends_text_of(["END"]), ids_of("END and then a lot of text")
    assert ends_text([ids]) == [False]
    assert ends_text([]) == []


def test_without_stop_strings_an_engine_need_not_ask() -> None:
    task = completion_mode().task
    assert isinstance(task, Generate) and task.ends_text is None


def test_special_tokens_hide_no_stop_string() -> None:
    """They have no text: the string goes on behind them."""
    ids = [*ids_of("xE"), 0, 1, 0, *ids_of("ND")]
    assert ends_text_of(["END"])([ids[:-1], ids]) == [False, True]


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 2's: tokens of several letters; decoding drops the space at a text's start."""
    words = ["<unk>", "▁the", "▁end", "ing", "▁", "E", "ND", "▁e", "nd"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    ("ids", "stop", "end", "kept"),
    [
        ([1, 2, 3, 1], "ending", 3, "the "),
        ([1, 2, 3, 1], " end", 2, "the"),
        ([1, 7, 8, 3], "end", 3, "the "),
        ([1, 4, 5, 6, 1], "END", 4, "the "),
        ([1, 2, 1], "en", 2, "the "),
        ([2, 3], "e", 1, ""),
        ([1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 1], " ending", 10, "the the the the the the the the"),
    ],
)
def test_stop_strings_may_span_tokens_or_end_within_one(ids: list[int], stop: str, end: int, kept: str) -> None:
    tokenizer = words_tokenizer()
    ends_text = ends_text_of([stop, "never"], tokenizer)
    found = [ends_text([ids[:count]])[0] for count in range(1, len(ids) + 1)]
    assert found.index(True) == end - 1
    modes, texts = completion_mode(tokenizer, [stop, "never"]), Tokenizer(tokenizer).decode([ids[:end]])
    generation = Generation(request=request_of(task=modes.task), token_ids=ids[:end], finish_reason="stop")
    assert modes.complete([generation], texts, ["p"])[0].completion == kept


def test_log_probabilities_go_with_their_tokens() -> None:
    completion = decode("ab", ["b"], logprobs=[-0.5, -1.25])
    assert completion.values == {
        "token_ids": ids_of("ab"),
        "token_logprobs": [-0.5, -1.25],
        "cumulative_logprob": -1.75,
    }
    assert completion.completion == "a"
    assert decode("ab", []).values == {}


def test_samples_of_a_row_keep_their_numbers() -> None:
    generations = [
        Generation(request=request_of(7, sample_idx), token_ids=[6], finish_reason="stop") for sample_idx in (2, 0)
    ]
    assert [completion.key for completion in complete(generations, ["p", "p"])] == [(7, 2), (7, 0)]


def test_a_rejected_prompt_becomes_a_finished_row_with_its_text() -> None:
    error = RowError("empty_prompt", "column 'p' is empty")
    completion = rejected(tokenization().encode([Prompt(row_idx=1, text="  ", error=error)])[0])
    assert (completion.key, completion.prompt, completion.completion) == ((1, 2), "  ", None)
    assert completion.error == error


def test_a_lone_surrogate_is_a_row_error_that_can_be_written() -> None:
    completion = rejected(tokenization().encode([Prompt(row_idx=1, text="a\ud800b")])[0])
    assert completion.error is not None and completion.error.kind == "invalid_unicode"
    assert completion.prompt == "a\\ud800b"


def test_a_lone_surrogate_in_an_error_can_be_written() -> None:
    error = RowError("not_a_string", "column 'p' is a list: ['\ud800']")
    completion = rejected(tokenization().encode([Prompt(row_idx=1, text=None, error=error)])[0])
    assert str(completion.error).encode() == b"not_a_string: column 'p' is a list: ['\\ud800']"


def test_a_prompt_without_tokens_is_a_row_error() -> None:
    completion = rejected(tokenization().encode([Prompt(row_idx=1, text="")])[0])
    assert str(completion.error) == "empty_prompt: the prompt has no tokens"


def test_the_longest_prompt_that_fits_is_taken_as_it_is() -> None:
    assert len(ids_in(encode("x" * 10, 10, "error"))) == 10


def test_a_longer_prompt_is_a_row_error_with_both_counts() -> None:
    encoded = encode("x" * 11, 10, "error")
    completion = rejected(encoded)
    assert str(completion.error) == "prompt_too_long: 11 tokens, the limit is 10"
    assert completion.num_prompt_tokens == 11 and completion.prompt == encoded.prompt.text == "x" * 11


@pytest.mark.parametrize(("side", "kept"), [("truncate-left", "6789"), ("truncate-right", "0123")])
def test_cutting_fills_the_limit_exactly(side: str, kept: str) -> None:
    encoded = encode("0123456789", 4, side)
    assert encoded.prompt.text == kept and encoded.num_tokens == 10
    assert len(ids_in(encoded)) == 4


@pytest.mark.parametrize(("side", "kept"), [("truncate-left", "6789"), ("truncate-right", "0123")])
def test_cutting_leaves_the_chat_template_whole(side: str, kept: str) -> None:
    encoded = encode("0123456789", NUM_TEMPLATE_TOKENS + 4, side, chat=True)
    prompt, ids = encoded.prompt, ids_in(encoded)
    assert prompt.text == f"<user>{kept}<eos><assistant>"
    assert len(ids) == NUM_TEMPLATE_TOKENS + 4 and ids.count(1) == 1
    assert prompt.text[slice(*prompt.content_span or ())] == kept


def test_only_the_last_message_of_the_user_is_cut() -> None:
    messages = [{"role": "user", "content": "keep"}, {"role": "user", "content": "0123456789"}]
    tokenizer = make_tokenizer(chat=True)
    template = Tokenizer(tokenizer).chat_template(None)
    renderer = PromptRenderer(PromptConfig(messages_column="m"), template, ["m"])
    prompt = renderer.render(Row(row_idx=0, values={"m": messages}))
    num_tokens = NUM_TEMPLATE_TOKENS + len("<user>keep") + 1
    subject = tokenization(num_tokens + 3, "truncate-right", chat=True)
    assert subject.encode([prompt])[0].prompt.text == "<user>keep<eos><user>012<eos><assistant>"


@pytest.mark.parametrize(
    ("side", "limit", "kept"),
    [
        *(("truncate-left", limit, "b") for limit in (1, 2, 3, 4)),
        *(("truncate-left", limit, "😀b") for limit in (5, 6, 7, 8)),
        *(("truncate-right", limit, "a") for limit in (1, 2, 3, 4)),
        *(("truncate-right", limit, "a😀") for limit in (5, 6, 7, 8)),
    ],
)
def test_a_character_of_several_tokens_is_cut_whole(side: str, limit: int, kept: str) -> None:
    """The text is a😀😀b, 1 + 4 + 4 + 1 tokens. A cut within a character cut nothing, again and again, for ever."""
    encoded = encode("a😀😀b", limit, side)
    assert encoded.prompt.text == kept
    assert len(ids_in(encoded)) == len(kept.encode()) <= limit


@pytest.mark.parametrize("side", ["truncate-left", "truncate-right"])
@pytest.mark.parametrize("text", ["0123456789", "😀😀"])
def test_a_template_that_leaves_no_room_is_a_row_error(side: str, text: str) -> None:
    """Content of which nothing would be left is no prompt any more."""
    for limit in (1, NUM_TEMPLATE_TOKENS - 1, NUM_TEMPLATE_TOKENS):
        encoded = encode(text, limit, side, chat=True)
        completion = rejected(encoded)
        assert completion.error is not None and completion.error.kind == "prompt_too_long"
        assert completion.error.detail.endswith(f"the limit is {limit}")
        assert completion.prompt == encoded.prompt.text == f"<user>{text}<eos><assistant>"


@pytest.mark.parametrize("side", ["truncate-left", "truncate-right"])
def test_a_last_character_of_several_tokens_is_not_left_out(side: str) -> None:
    completion = rejected(encode("😀", NUM_TEMPLATE_TOKENS + 3, side, chat=True))
    assert str(completion.error) == (
        f"prompt_too_long: {NUM_TEMPLATE_TOKENS + 4} tokens, the limit is {NUM_TEMPLATE_TOKENS + 3}"
    )


@pytest.mark.parametrize("side", ["truncate-left", "truncate-right"])
def test_content_that_the_template_changed_cannot_be_cut(side: str) -> None:
    encoded = tokenization(3, side).encode([Prompt(row_idx=0, text="WHAT?", content_span=None)])[0]
    assert str(rejected(encoded).error).startswith("prompt_too_long")


@pytest.mark.parametrize("policy", ["error", "truncate-left", "truncate-right"])
def test_a_very_long_text_is_tokenized_a_few_times_at_most(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by cut it would be tokenized again and again: a megabyte would take hours."""
    sizes: list[int] = []
    tokenize = Tokenizer.encode_with_offsets

    def counted(self: Any, text: str, **options: Any) -> Any:
        sizes.append(len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode_with_offsets", counted)
    encoded = encode("word " * 40_000 + "end", 1000, policy)
    assert (encoded.request is None) == (policy == "error")
    assert len(sizes) == (0 if policy == "error" else 2)


def test_whether_to_chat_is_decided_by_the_user_then_by_the_tokenizer() -> None:
    plain, chatty = Tokenizer(make_tokenizer()), Tokenizer(make_tokenizer(chat=True))
    assert plain.chat_template(None) is None and plain.chat_template(False) is None
    assert chatty.chat_template(False) is None
    for chat in (None, True):
        template = chatty.chat_template(chat)
        assert template is not None
        assert template([{"role": "user", "content": "x"}]) == "<user>x<eos><assistant>"
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        plain.chat_template(True)


def test_the_digest_of_a_tokenizer_follows_its_rules() -> None:
    digest = Tokenizer(make_tokenizer()).digest
    assert Tokenizer(make_tokenizer()).digest == digest
    assert Tokenizer(make_tokenizer(chat=True)).digest != digest
    changed = make_tokenizer()
    changed.add_tokens(["new"])
    assert Tokenizer(changed).digest != digest

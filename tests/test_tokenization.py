"""Tokenization: text to ids and back, and what happens to prompts that are too long or no text at all."""

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from job.config import PromptConfig
from job.data.prompts import PromptRenderer
from job.data.tokenization import Tokenization, chat_template_of, tokenizer_digest
from job.errors import UsageError
from job.records import Completion, Generation, Prompt, Request, Row, RowError
from tests.tiny import make_tokenizer

NUM_TEMPLATE_TOKENS = len("<user>") + len("<assistant>") + 1
"""Of the tiny chat template around a prompt; its <eos> is one token."""


def tokenization(
    max_prompt_tokens: int = 100, on_long_prompt: str = "error", *, chat: bool = False, stop: Sequence[str] = ()
) -> Tokenization:
    return Tokenization(
        make_tokenizer(chat=chat),
        chat=chat,
        max_prompt_tokens=max_prompt_tokens,
        on_long_prompt=on_long_prompt,
        stop=stop,
    )


def prompt_of(text: str, *, chat: bool = False, **options: Any) -> Prompt:
    renderer = PromptRenderer(PromptConfig(**options), chat_template_of(make_tokenizer(chat=chat), None), ["prompt"])
    return renderer.render(Row(row_idx=5, values={"prompt": text}))


def encode(text: str, max_prompt_tokens: int, on_long_prompt: str, *, chat: bool = False) -> tuple[Prompt, Any]:
    subject = tokenization(max_prompt_tokens, on_long_prompt, chat=chat)
    return subject.encode([prompt_of(text, chat=chat)])[0]


@pytest.mark.parametrize("text", ["plain", " spaces  and\nlines\t", "naïve 日本語 👩‍👩‍👧", "<user> <eos>", "\0"])
def test_text_survives_the_way_to_ids_and_back(text: str) -> None:
    subject = tokenization()
    prompt, request = subject.encode([Prompt(row_idx=3, text=text)])[0]
    assert isinstance(request, Request) and prompt.text == text
    generation = Generation(request=request, token_ids=request.prompt_ids, finish_reason="stop")
    assert subject.decode([generation], [text]) == [
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
    items = [item for _, item in tokenization().encode(prompts)]
    assert [item.row_idx for item in items] == [9, 2, 4, 1]
    assert [isinstance(item, Request) for item in items] == [True, False, False, True]
    assert [len(item.prompt_ids) for item in items if isinstance(item, Request)] == [4, 3]


def test_nothing_becomes_nothing() -> None:
    assert tokenization().encode([]) == []
    assert tokenization().decode([], []) == []


def test_a_failed_generation_has_no_completion() -> None:
    request = Request(row_idx=0, sample_idx=0, prompt_ids=[5])
    error = RowError("engine_error", "no luck")
    generation = Generation(request=request, token_ids=[], finish_reason=None, error=error)
    completion = tokenization().decode([generation], ["p"])[0]
    assert (completion.completion, completion.finish_reason) == (None, None)
    assert completion.error == "engine_error: no luck" and completion.prompt == "p"


def ids_of(text: str) -> list[int]:
    """Return the tiny tokenizer's ids: one per byte."""
    return list(make_tokenizer()(text)["input_ids"])


def decode(text: str, stop: Sequence[str], *, finish_reason: str = "length", **values: Any) -> Completion:
    """Return what becomes of a generated text."""
    generation = Generation(
        request=Request(row_idx=0, sample_idx=0, prompt_ids=[5]),
        token_ids=ids_of(text),
        finish_reason=finish_reason,
        **values,
    )
    return tokenization(stop=stop).decode([generation], ["p"])[0]


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
    subject = tokenization(stop=stop)
    ids = ids_of(before + stop[0] + " and more")
    end = len((before + stop[0]).encode())
    found = [subject.ends_text([ids[:count]])[0] for count in range(1, len(ids) + 1)]
    assert found.index(True) == end - 1
    assert subject.ends_text([ids[: end - 1], ids[:end], ids[:1]]) == [False, True, end == 1]


def test_only_the_end_of_a_text_is_looked_at() -> None:
    """Or else each token of a long completion would take longer than the one before it."""
    subject, ids = tokenization(stop=["END"]), ids_of("END and then a lot of text")
    assert subject.ends_text([ids]) == [False]
    assert subject.ends_text([]) == []


def test_special_tokens_hide_no_stop_string() -> None:
    """They have no text: the string goes on behind them."""
    subject = tokenization(stop=["END"])
    ids = [*ids_of("xE"), 0, 1, 0, *ids_of("ND")]
    assert subject.ends_text([ids[:-1], ids]) == [False, True]


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 2's: tokens of several letters; decoding drops the space at a text's start."""
    words = ["<unk>", "▁the", "▁end", "ing", "▁", "E", "ND", "▁e", "nd"]
    backend = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(words)}, unk_token="<unk>"))
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
    subject = Tokenization(
        words_tokenizer(), chat=False, max_prompt_tokens=10, on_long_prompt="error", stop=[stop, "never"]
    )
    found = [subject.ends_text([ids[:count]])[0] for count in range(1, len(ids) + 1)]
    assert found.index(True) == end - 1
    request = Request(row_idx=0, sample_idx=0, prompt_ids=[1])
    generation = Generation(request=request, token_ids=ids[:end], finish_reason="stop")
    assert subject.decode([generation], ["p"])[0].completion == kept


def test_log_probabilities_go_with_their_tokens() -> None:
    completion = decode("ab", ["b"], logprobs=[-0.5, -1.25])
    assert completion.token_ids == ids_of("ab") and completion.token_logprobs == [-0.5, -1.25]
    assert completion.cumulative_logprob == -1.75 and completion.completion == "a"
    unasked = decode("ab", [])
    assert (unasked.token_ids, unasked.token_logprobs, unasked.cumulative_logprob) == (None, None, None)


def test_samples_of_a_row_keep_their_numbers() -> None:
    generations = [
        Generation(
            request=Request(row_idx=7, sample_idx=sample_idx, prompt_ids=[5]), token_ids=[6], finish_reason="stop"
        )
        for sample_idx in (2, 0)
    ]
    assert [completion.key for completion in tokenization().decode(generations, ["p", "p"])] == [(7, 2), (7, 0)]


def test_a_rejected_prompt_becomes_a_finished_row_with_its_text() -> None:
    error = RowError("empty_prompt", "column 'p' is empty")
    _, completion = tokenization().encode([Prompt(row_idx=1, text="  ", error=error)])[0]
    assert isinstance(completion, Completion)
    assert (completion.row_idx, completion.prompt, completion.completion) == (1, "  ", None)
    assert completion.error == "empty_prompt: column 'p' is empty"


def test_a_lone_surrogate_is_a_row_error_that_can_be_written() -> None:
    _, completion = tokenization().encode([Prompt(row_idx=1, text="a\ud800b")])[0]
    assert isinstance(completion, Completion)
    assert completion.error is not None and completion.error.startswith("invalid_unicode: ")
    assert completion.prompt == "a\\ud800b"


def test_a_lone_surrogate_in_an_error_can_be_written() -> None:
    error = RowError("not_a_string", "column 'p' is a list: ['\ud800']")
    _, completion = tokenization().encode([Prompt(row_idx=1, text=None, error=error)])[0]
    assert isinstance(completion, Completion) and completion.error is not None
    assert completion.error.encode() == b"not_a_string: column 'p' is a list: ['\\ud800']"


def test_a_prompt_without_tokens_is_a_row_error() -> None:
    _, completion = tokenization().encode([Prompt(row_idx=1, text="")])[0]
    assert isinstance(completion, Completion)
    assert completion.error == "empty_prompt: the prompt has no tokens"


def test_the_longest_prompt_that_fits_is_taken_as_it_is() -> None:
    _, request = encode("x" * 10, 10, "error")
    assert isinstance(request, Request) and len(request.prompt_ids) == 10


def test_a_longer_prompt_is_a_row_error_with_both_counts() -> None:
    prompt, completion = encode("x" * 11, 10, "error")
    assert isinstance(completion, Completion)
    assert completion.error == "prompt_too_long: 11 tokens, the limit is 10"
    assert completion.num_prompt_tokens == 11 and completion.prompt == prompt.text == "x" * 11


@pytest.mark.parametrize(("side", "kept"), [("truncate-left", "6789"), ("truncate-right", "0123")])
def test_cutting_fills_the_limit_exactly(side: str, kept: str) -> None:
    prompt, request = encode("0123456789", 4, side)
    assert prompt.text == kept
    assert isinstance(request, Request) and len(request.prompt_ids) == 4


@pytest.mark.parametrize(("side", "kept"), [("truncate-left", "6789"), ("truncate-right", "0123")])
def test_cutting_leaves_the_chat_template_whole(side: str, kept: str) -> None:
    prompt, request = encode("0123456789", NUM_TEMPLATE_TOKENS + 4, side, chat=True)
    assert prompt.text == f"<user>{kept}<eos><assistant>"
    assert isinstance(request, Request) and len(request.prompt_ids) == NUM_TEMPLATE_TOKENS + 4
    assert list(request.prompt_ids).count(1) == 1
    assert prompt.text[slice(*prompt.content_span or ())] == kept


def test_only_the_last_message_of_the_user_is_cut() -> None:
    messages = [{"role": "user", "content": "keep"}, {"role": "user", "content": "0123456789"}]
    tokenizer = make_tokenizer(chat=True)
    renderer = PromptRenderer(PromptConfig(messages_column="m"), chat_template_of(tokenizer, None), ["m"])
    prompt = renderer.render(Row(row_idx=0, values={"m": messages}))
    num_tokens = NUM_TEMPLATE_TOKENS + len("<user>keep") + 1
    subject = Tokenization(tokenizer, chat=True, max_prompt_tokens=num_tokens + 3, on_long_prompt="truncate-right")
    assert subject.encode([prompt])[0][0].text == "<user>keep<eos><user>012<eos><assistant>"


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
    prompt, request = encode("a😀😀b", limit, side)
    assert prompt.text == kept
    assert isinstance(request, Request) and len(request.prompt_ids) == len(kept.encode()) <= limit


@pytest.mark.parametrize("side", ["truncate-left", "truncate-right"])
@pytest.mark.parametrize("text", ["0123456789", "😀😀"])
def test_a_template_that_leaves_no_room_is_a_row_error(side: str, text: str) -> None:
    """Content of which nothing would be left is no prompt any more."""
    for limit in (1, NUM_TEMPLATE_TOKENS - 1, NUM_TEMPLATE_TOKENS):
        prompt, completion = encode(text, limit, side, chat=True)
        assert isinstance(completion, Completion)
        assert completion.error is not None and completion.error.startswith("prompt_too_long: ")
        assert completion.error.endswith(f"the limit is {limit}")
        assert completion.prompt == prompt.text == f"<user>{text}<eos><assistant>"


@pytest.mark.parametrize("side", ["truncate-left", "truncate-right"])
def test_a_last_character_of_several_tokens_is_not_left_out(side: str) -> None:
    _, completion = encode("😀", NUM_TEMPLATE_TOKENS + 3, side, chat=True)
    assert isinstance(completion, Completion)
    assert (
        completion.error == f"prompt_too_long: {NUM_TEMPLATE_TOKENS + 4} tokens, the limit is {NUM_TEMPLATE_TOKENS + 3}"
    )


@pytest.mark.parametrize("side", ["truncate-left", "truncate-right"])
def test_content_that_the_template_changed_cannot_be_cut(side: str) -> None:
    _, completion = tokenization(3, side).encode([Prompt(row_idx=0, text="WHAT?", content_span=None)])[0]
    assert isinstance(completion, Completion) and str(completion.error).startswith("prompt_too_long")


@pytest.mark.parametrize("policy", ["error", "truncate-left", "truncate-right"])
def test_a_very_long_text_is_tokenized_a_few_times_at_most(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by cut it would be tokenized again and again: a megabyte would take hours."""
    sizes: list[int] = []
    tokenize = PreTrainedTokenizerFast.__call__

    def counted(self: Any, text: str, **options: Any) -> Any:
        sizes.append(len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    _, item = encode("word " * 40_000 + "end", 1000, policy)
    assert isinstance(item, Completion if policy == "error" else Request)
    assert len(sizes) == (0 if policy == "error" else 2)


def test_whether_to_chat_is_decided_by_the_user_then_by_the_tokenizer() -> None:
    plain, chatty = make_tokenizer(), make_tokenizer(chat=True)
    assert chat_template_of(plain, None) is None and chat_template_of(plain, False) is None
    assert chat_template_of(chatty, False) is None
    for chat in (None, True):
        template = chat_template_of(chatty, chat)
        assert template is not None
        assert template([{"role": "user", "content": "x"}]) == "<user>x<eos><assistant>"
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        chat_template_of(plain, True)


def test_the_digest_of_a_tokenizer_follows_its_rules() -> None:
    assert tokenizer_digest(make_tokenizer()) == tokenizer_digest(make_tokenizer())
    assert tokenizer_digest(make_tokenizer()) != tokenizer_digest(make_tokenizer(chat=True))
    changed = make_tokenizer()
    changed.add_tokens(["new"])
    assert tokenizer_digest(changed) != tokenizer_digest(make_tokenizer())

"""Options that name tokens by text, and what stop tokens and a minimum length do to the text of a completion."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.config import PromptConfig, SamplingConfig
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.completion import CompletionMode
from job.modes.mode import Answer, Setting
from job.modes.token_texts import params_of
from job.records import Generation, Request
from job.run.odd_texts import notes_on_texts
from job.tasks import Generate
from tests.conftest import Result
from tests.test_run import read_output
from tests.tiny import make_chat_tokenizer, make_sentencepiece, make_tokenizer

BYTES = Tokenizer(make_tokenizer())
PIECES = Tokenizer(make_sentencepiece())
"""Its words have the space before them."""


def ids(text: str) -> tuple[int, ...]:
    return tuple(BYTES.encode(text))


def test_bad_words_are_ruled_out_with_and_without_a_space_before_them() -> None:
    found = params_of(SamplingConfig(bad_words=("no", " so", "\n", "no")), BYTES)
    assert found.bad_token_ids == (ids("no"), ids(" no"), ids(" so"), ids("\n"))
    yes, spaced = (PIECES.inner.convert_tokens_to_ids(name) for name in ("yes", "▁yes"))
    assert params_of(SamplingConfig(bad_words=("yes",)), PIECES).bad_token_ids == ((yes,), (spaced,))


def test_biases_are_named_by_id_or_by_text() -> None:
    biases = '{"7": -100, "a": 2, "<|im_end|>": 0.5, " ": 1}'
    tokens = Tokenizer(make_chat_tokenizer("qwen3"))
    special = tokens.special_tokens["<|im_end|>"]
    expected = {7: -100, special: 0.5, tokens.encode("a")[0]: 2, tokens.encode(" ")[0]: 1}
    assert params_of(SamplingConfig(logit_bias=biases), tokens).biases == tuple(sorted(expected.items()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": '{"ab": 1}'}, "--logit-bias: 'ab' is not one token of this model but 2: a (66) and b (67)."),
        ({"logit_bias": '{"": 1}'}, "--logit-bias: '' is not one token of this model."),
        ({"logit_bias": '{"66": 1, "a": 1}'}, "--logit-bias names the token 66 twice."),
        ({"logit_bias": '{"999": 1}'}, "--logit-bias names the token 999; the last one of this model is 257."),
        ({"stop_token_ids": (5, 258)}, "--stop-token-ids names the token 258; the last one of this model is 257."),
        ({"stop_token_ids": (-1,)}, "stop-token-ids"),
        ({"logit_bias": '{"5": 101}'}, "logit-bias of '5' is 101; it must be a number from -100 to 100"),
        ({"logit_bias": '{"5": true}'}, "logit-bias of '5' is True"),
        ({"bad_words": ("",)}, "bad-words is ''; it must be a non-empty text"),
        (
            {"min_new_tokens": 9, "max_new_tokens": 8},
            "min-new-tokens is 9; it must be between 0 and --max-new-tokens 8",
        ),
    ],
    ids=str,
)
def test_what_names_no_token_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        params_of(SamplingConfig(**options), BYTES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def completed(text: str, *, finish_reason: str = "length", **options: Any) -> Answer:
    """Return the answer of a plain run to a generation of this text, a token for each byte."""
    sampling = SamplingConfig(**options)
    mode = CompletionMode().bind(Setting(tokens=BYTES, sampling=sampling, prompt_suffix=""))
    task = mode.refine(Generate(params=params_of(sampling, BYTES)), {})
    request = Request(row_idx=0, sample_idx=0, prompt_ids=[5], task=task)
    made = Generation(request=request, token_ids=BYTES.encode(text), finish_reason=finish_reason)
    answer = Answer(
        completion=BYTES.decode([made.text_ids])[0],
        finish_reason=finish_reason,
        num_completion_tokens=len(made.token_ids),
        token_ids=made.text_ids,
    )
    return mode.complete(answer, made)


def test_a_stop_token_is_counted_but_not_part_of_the_text() -> None:
    [stop] = ids(".")
    ended = completed("One. Two.", finish_reason="stop", stop_token_ids=(stop,))
    assert (ended.completion, ended.num_completion_tokens) == ("One. Two", 9)
    assert completed("One.", finish_reason="length", stop_token_ids=(stop,)).completion == "One."
    assert completed("One.", finish_reason="stop").completion == "One."


def test_a_stop_string_below_the_minimum_does_not_count() -> None:
    text = "a;éb;c;d"
    for minimum, expected in [(0, "a"), (1, "a"), (2, "a;éb"), (3, "a;éb"), (5, "a;éb"), (6, "a;éb;c"), (8, text)]:
        answer = completed(text, stop=(";",), min_new_tokens=minimum)
        assert answer.completion == expected
        assert answer.finish_reason == ("length" if expected == text else "stop")


def test_a_run_does_what_its_options_say_and_is_no_other_run(
    run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"q": f"Say {n}"}) + "\n" for n in range(4)))
    command = ["run", "--model", tiny_model(), "--dataset", tmp_path / "q.jsonl", "--prompt-column", "q"]
    command += ["--output", tmp_path / "out", "--dtype", "float32", "--max-new-tokens", 12]
    options = ["--min-new-tokens", 3, "--stop-token-ids", 66, "--stop-token-ids", 67, "--bad-words", "e"]
    options += ["--logit-bias", '{"c": 100, "a": 100, "e": 100}']
    assert run_job(*command, *options).exit_code == 0
    table = read_output(tmp_path / "out")
    assert set(table["completion"].to_pylist()) == {"ccc"}
    assert set(table["finish_reason"].to_pylist()) == {"stop"}
    assert set(table["num_completion_tokens"].to_pylist()) == {4}
    assert run_job("verify", tmp_path / "out").exit_code == 0
    refused = run_job(*command, *options[:-1], '{"c": 99, "a": 100, "e": 100}')
    assert refused.exit_code == 2 and "--logit-bias was" in refused.stderr


@pytest.mark.parametrize(
    ("word", "several"),
    [
        ("sorry,cannot", "--bad-words sorry --bad-words cannot"),
        ("As an AI, sorry", "--bad-words 'As an AI' --bad-words sorry"),
        ("1,000", None),
        ("sorry,", None),
        ("sorry", None),
    ],
)
def test_a_comma_in_a_bad_word_may_be_meant_otherwise(word: str, several: str | None) -> None:
    notes = list(notes_on_texts(PromptConfig(), SamplingConfig(bad_words=(word,)), []))
    assert len(notes) == (several is not None)
    assert several is None or notes[0].endswith(f"is one text, comma included; for several, write {several}")

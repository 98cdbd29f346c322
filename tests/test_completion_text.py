"""The text of completions: it follows the prompt, wherever the tokenizer drops spaces; stops at special tokens."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.data.tokenizer import Tokenizer
from job.modes.completion import BoundCompletion
from job.modes.mode import Answer
from job.modes.stop_texts import StopTexts
from job.records import Generation, Request
from job.tasks import Generate, SamplingParams
from tests.conftest import Result
from tests.test_run import read_output
from tests.tiny import make_model, make_sentencepiece, make_tokenizer

RunJob = Callable[..., Result]
QUESTIONS = ("What is", "The", "yes", "What", "is a", "no no", "loading is", "a")
"""They end with tokens of whole words: bytes that are no text are decoded together with the bytes before them."""


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_sentencepiece()
    return make_model(tmp_path_factory.mktemp("sp"), tokenizer=tokenizer, vocab_size=len(tokenizer))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    return path


def run(run_job: RunJob, model: Path, dataset: Path, output: Path, *options: object) -> list[dict[str, Any]]:
    result = run_job(
        *("run", "--model", model, "--dataset", dataset, "--output", output, "--dtype", "float32", "--no-chat"),
        *("--max-error-rate", 1, *options),
    )
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = read_output(output).to_pylist()
    return rows


def ids_of(*tokens: str) -> list[int]:
    return [make_sentencepiece().get_vocab()[token] for token in tokens]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (("▁load", "ing"), " loading"),
        (("ing",), "ing"),
        (("▁", "▁yes"), "  yes"),
        (("<0xC3>", "<0xA9>"), "é"),
        (("<eos>", "▁yes"), " yes"),
        ((), ""),
    ],
)
def test_the_text_of_a_completion_is_what_follows_the_prompt(tokens: tuple[str, ...], text: str) -> None:
    """``Several`` + ``▁planes`` was written "Severalplanes": the tokenizer drops the first space of a text."""
    assert Tokenizer(make_sentencepiece()).decode([ids_of(*tokens)]) == [text]
    older = Tokenizer(make_sentencepiece(), follows_prompt=False).decode([ids_of(*tokens)])
    assert older == [text.removeprefix(" ")]


def test_byte_level_tokenizers_decode_as_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(make_tokenizer())
    decoded: list[Any] = []
    monkeypatch.setattr(tokenizer, "_decode", lambda ids, special_tokens: decoded.append(ids) or [""])
    tokenizer.decode([tokenizer.encode(" a")])
    assert decoded == [[tokenizer.encode(" a")]]


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_completions_are_joined_to_their_prompts(
    run_job: RunJob, sentencepiece_model: Path, questions: Path, tmp_path: Path, engine: str
) -> None:
    """4 of 12 rows differed from what the same tokens are after the prompt's."""
    options = ("--engine", engine, "--max-new-tokens", 6, "--logprobs", "--temperature", 50, "--num-samples", 40)
    rows = run(run_job, sentencepiece_model, questions, tmp_path / "out", *options)
    tokenizer = make_sentencepiece()
    for row in rows:
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        together = tokenizer.decode([*prompt_ids, *row["token_ids"]], skip_special_tokens=True)
        assert row["prompt"] + row["completion"] == together
    assert any(row["completion"].startswith(" ") for row in rows)


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_a_constrained_completion_matches_its_constraint(
    run_job: RunJob, sentencepiece_model: Path, questions: Path, tmp_path: Path, engine: str
) -> None:
    """``  ?(yes|no)`` gave "no" with parse_ok true."""
    options = ("--engine", engine, "--max-new-tokens", 6, "--regex", "  ?(yes|no)")
    for row in run(run_job, sentencepiece_model, questions, tmp_path / "out", *options):
        assert row["parse_ok"] and re.fullmatch("  ?(yes|no)", row["completion"]), row


def completion_of(
    tokenizer: Tokenizer, stop: list[str], ids: list[int], *, special: bool = True
) -> tuple[bool, Answer]:
    """Return whether a completion ends at its last token, and the answer."""
    tokens = tokenizer.special_tokens if special else ()
    stops = StopTexts(tokenizer, stop, tokens)
    mode = BoundCompletion(stops, logprobs=False)
    request = Request(row_idx=0, sample_idx=0, prompt_ids=[5], task=Generate(params=SamplingParams(), ends_text=stops))
    generation = Generation(request=request, token_ids=ids, finish_reason="length")
    [text] = tokenizer.decode([ids])
    answer = Answer(completion=text, finish_reason="length", num_completion_tokens=len(ids), token_ids=ids)
    return stops([ids])[0], mode.complete(answer, generation)


@pytest.mark.parametrize(
    ("stop", "text", "ends", "completion"),
    [
        ("<eos>", "hello<eos>", True, "hello"),
        ("o<eos>", "hello<eos>", True, "hell"),
        ("<eos>\n", "hello<eos>\n", True, "hello"),
        ("<eos>", "hello<pad>", False, "hello"),
        ("<eos><eos>", "a<eos>b", False, "ab"),
        ("b<eos>", "<pad>ab<eos>", True, "a"),
        ("lo", "hello", True, "hel"),
    ],
)
def test_a_stop_string_may_contain_special_tokens(stop: str, text: str, ends: bool, completion: str) -> None:
    """They were never matched, because special tokens are not part of the text."""
    tokenizer = Tokenizer(make_tokenizer())
    found = completion_of(tokenizer, [stop, "never"], tokenizer.encode(text))
    assert found[0] == ends and found[1].completion == completion
    assert found[1].finish_reason == ("stop" if ends else "length")


def test_an_older_run_goes_on_without_stops_at_special_tokens() -> None:
    tokenizer = Tokenizer(make_tokenizer())
    ends, answer = completion_of(tokenizer, ["<eos>"], tokenizer.encode("a<eos>"), special=False)
    assert not ends and answer.completion == "a"


def test_a_stop_string_with_its_space_is_found_at_the_first_token() -> None:
    tokenizer = Tokenizer(make_sentencepiece())
    ends, answer = completion_of(tokenizer, [" load"], ids_of("▁load"))
    assert ends and answer.completion == ""
    assert not completion_of(tokenizer, [" load"], ids_of("▁", "no"))[0]


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_a_run_stops_at_a_special_token(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, engine: str
) -> None:
    options = ("--engine", engine, "--max-new-tokens", 300, "--temperature", 50, "--logprobs", "--ignore-eos")
    rows = run(run_job, tiny_model(), questions, tmp_path / "out", *options, "--stop", "<eos>")
    assert {row["finish_reason"] for row in rows} >= {"stop"}
    for row in rows:
        assert (row["finish_reason"] == "stop") == (row["token_ids"][-1] == 1)
        assert 1 not in row["token_ids"][:-1]

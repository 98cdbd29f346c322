"""Texts that exist, from the options to the columns: which tokens are scored, what is refused, what is written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from job.config import SamplingConfig
from job.data.tokenizer import Tokenizer
from job.modes.mode import Setting
from job.modes.scores import BoundScores
from job.records import Prompt, Request, RowRejected
from job.tasks import Generate, SamplingParams, ScoreText
from tests import oracle
from tests.test_run import RunJob, read_output, write_jsonl
from tests.tiny import make_model, make_tokenizer

ROWS = [
    {"id": 0, "question": "What is 2 + 3?", "answer": "It is 5."},
    {"id": 1, "question": "Wer ist das? Ä", "answer": "Ö" * 70},
    {"id": 2, "question": "x", "answer": " "},
]
PLAIN = ("--no-chat", "--prompt-template", "Q: {{ question }}\nA:")


def test_windows_are_those_of_lm_evaluation_harness() -> None:
    """Its ``get_rolling_token_windows`` (0.4.13) with a context of one token, written down again."""
    from job.tasks.scored_text import windows_of

    for num_text in range(1, 40):
        for window in (2, 3, 7, 16):
            ids, found, num_predicted = list(range(1, num_text + 1)), [], min(window, num_text)
            found.append(([0, *ids[: num_predicted - 1]], ids[:num_predicted]))
            while num_predicted < num_text:
                end = min(num_text, num_predicted + window)
                found.append((([0, *ids])[end - window : end], ids[num_predicted:end]))
                num_predicted = end
            task = ScoreText(text_ids=tuple(ids), num_bytes=1, window=window, stride=window)
            windows = [(each.token_ids, ids[each.begin : each.end]) for each in windows_of([0], task)]
            assert windows == found


def merging_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes that joins a space and the letters of "yes" into one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), ("Ċ", "Ċ")]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    vocab = {"<s>": 0, "</s>": 1} | {piece: idx + 2 for idx, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token="</s>")


def given(prompt: str | None, text: Any, *, bos: bool = False, chat: bool = False) -> tuple[str, str]:
    """Return the prompt and the text as the engine gets them, with special tokens. Without a prompt: alone."""
    tokenizer = Tokenizer(merging_tokenizer(bos=bos))
    setting = Setting(
        tokens=tokenizer,
        sampling=SamplingConfig(),
        prompt_suffix="",
        text_column="text" if prompt is None else None,
        adds_special_tokens=not chat,
    )
    mode = BoundScores(setting, "text", window=100, stride=100, token_logprobs=False)
    read = text if prompt is None else prompt
    [ids] = tokenizer.encode_prompts([read], add_special_tokens=not chat)
    request = Request(row_idx=0, sample_idx=0, prompt_ids=ids, task=Generate(params=SamplingParams()))
    request = mode.given(request, Prompt(row_idx=0, text=read, values={"text": text}))
    assert isinstance(request.task, ScoreText) and request.task.num_bytes == len(text.encode())
    return tokenizer.as_read(request.prompt_ids), tokenizer.as_read(request.task.text_ids)


@pytest.mark.parametrize(
    ("prompt", "text", "found"),
    [
        ("is it?", " yes", ("is it?", " yes")),
        ("is it? ", "yes", ("is it?", " yes")),  # one token, so the space cannot be in the prompt
        ("is it? ", "no", ("is it? ", "no")),
        ("user\n", "no", ("user\n", "no")),
        ("user\n", "\n", ("user", "\n\n")),
        (" ", "yes", ("</s>", " yes")),  # nothing is left of the prompt
        (None, "no", ("</s>", "no")),
        (None, "n", ("</s>", "n")),
    ],
)
def test_the_text_is_tokenized_as_it_follows_its_prompt(prompt: str | None, text: str, found: tuple[str, str]) -> None:
    assert given(prompt, text) == found
    expected = (found[0] if prompt is not None and prompt.strip() else "", found[1])
    assert given(prompt, text, bos=True) == ("<s>" + expected[0], expected[1]), "the tokenizer adds <s> and </s>"
    if prompt is not None and prompt.strip():
        assert given(prompt, text, bos=True, chat=True) == found, "a chat template adds them itself"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "null_text: column 'text' is null"),
        ("", "empty_text: column 'text' is empty"),
        (3, "not_a_string: column 'text' is a int"),
        ("\ud800", "invalid_unicode: column 'text' contains a lone surrogate, which is not a character"),
    ],
)
def test_a_text_that_cannot_be_scored_makes_an_error_row(text: Any, error: str) -> None:
    with pytest.raises(RowRejected) as rejected:
        given("is it?", text)
    assert str(rejected.value.row_error) == error
    with pytest.raises(RowRejected, match="100 tokens, the limit is 99"):
        given("x" * 100, "no")


def test_scores_are_written(run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """After a prompt: what plain transformers says; the sums are right, and the run is complete."""
    data = write_jsonl(tmp_path / "data.jsonl", [*ROWS, {"id": 3, "question": "y", "answer": None}])
    for engine in ("paged", "static"):
        options = ("--dtype", "float32", "--score-window", 64, "--score-stride", 16, "--engine", engine, *PLAIN)
        command = ["run", "--model", tiny_model(), "--dataset", data, "--score-column", "answer", "--token-logprobs"]
        result = run_job(*command, "--output", tmp_path / engine, "--max-error-rate", 1, *options)
        assert result.exit_code == 0, result.stderr
        assert run_job("verify", tmp_path / engine).exit_code == 0
    paged, static = (read_output(tmp_path / engine) for engine in ("paged", "static"))
    assert paged.drop_columns(["token_logprobs", "logprob", "perplexity", "bits_per_byte"]).equals(
        static.drop_columns(["token_logprobs", "logprob", "perplexity", "bits_per_byte"])
    )
    for rows in (paged.to_pylist(), static.to_pylist()):
        for row, source in zip(rows[:3], ROWS, strict=True):
            assert row["completion"] == source["answer"] and row["error"] is None
            num_bytes = len(source["answer"].encode())
            assert row["num_scored_tokens"] == row["num_completion_tokens"] == len(row["token_ids"]) == num_bytes
            assert row["logprob"] == pytest.approx(sum(row["token_logprobs"]), abs=1e-4)
            assert row["perplexity"] == pytest.approx(math.exp(-row["logprob"] / num_bytes))
            assert row["bits_per_byte"] == pytest.approx(-row["logprob"] / num_bytes / math.log(2))
        prompt_ids = make_tokenizer()(rows[0]["prompt"])["input_ids"]
        expected = oracle.logprobs_of(tiny_model(), prompt_ids, rows[0]["token_ids"])
        assert rows[0]["token_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert (rows[3]["error_kind"], rows[3]["logprob"], rows[3]["completion"]) == ("null_text", None, None)
    total = sum(paged["logprob"].drop_null().to_pylist())
    assert (
        f"perplexity {math.exp(-total / 149):,.4g} over 149 tokens, {-total / 149 / math.log(2):.4g} bits"
        in result.stdout
    )


def test_without_a_prompt_texts_are_scored_alone(run_job: RunJob, tmp_path: Path) -> None:
    """All their tokens, after the token that begins or ends texts, and without the chat template."""
    model = make_model(tmp_path / "model", chat=True)
    data = write_jsonl(tmp_path / "data.jsonl", [*ROWS, {"id": 3, "question": None, "answer": None}])
    common = ("--model", model, "--dataset", data, "--score-column", "question")
    preview = run_job("preview", *common)
    assert "scores    the text of column 'question', alone" in preview.stdout
    assert "texts of more than 512 tokens in windows, 512 tokens apart" in preview.stdout
    assert "too long  none: texts may have any length" in preview.stdout
    command = ("run", *common, "--output", tmp_path / "run", "--engine", "fake", "--max-error-rate", 1)
    result = run_job(*command)
    assert result.exit_code == 0, result.stderr
    assert run_job("verify", tmp_path / "run").exit_code == 0
    rows = read_output(tmp_path / "run").to_pylist()
    assert [row["error_kind"] for row in rows] == [None, None, None, "null_prompt"]
    assert [row["completion"] for row in rows[:3]] == [row["question"] for row in ROWS]
    assert [row["num_prompt_tokens"] for row in rows[:3]] == [1, 1, 1]
    assert rows[2]["logprob"] == -float((1 + 7 * make_tokenizer()("x")["input_ids"][0]) % 11)
    assert run_job(*command).exit_code == 0, "it is the same run"
    refused = run_job(*command, "--max-model-len", 100)
    assert refused.exit_code == 2 and "--score-window was 512, now 100" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--score-column", "id"), "--score-column 'id' is a column of int64, not of text. Name another column."),
        (("--score-column", "id", "--prompt-column", "question"), "'id' is a column of int64, not of text."),
        (("--score-column", "text"), "The dataset has no column 'text'"),
        (("--score-column", "text", "--prompt-column", "question"), "The dataset has no column 'text'"),
        (("--token-logprobs", "--prompt-column", "question"), "--token-logprobs was given without --score-column."),
        (("--score-stride", 5, "--prompt-column", "question"), "--score-stride was given without --score-column."),
        (("--score-column", "answer", "--score-stride", 0), "score-stride"),
        (("--score-column", "answer", "--score-stride", 600), "--score-stride 600 is more than the 512 tokens that"),
        (("--score-column", "answer", "--score-window", 600), "--score-window 600 is more than the 512 tokens that"),
        (
            ("--score-column", "answer", "--score-window", 9, "--score-stride", 10),
            "--score-stride 10 is more than the 9",
        ),
        (("--score-column", "answer", "--score-window", 1), "score-window"),
        (("--score-column", "answer", "--prompt-column", "answer"), "--score-column both name 'answer'"),
        (("--score-column", "answer", "--aggregate", "majority"), "Leave out --aggregate: nothing is drawn."),
        (("--score-column", "answer", "--retry-invalid", 2), "Leave out --retry-invalid: nothing is drawn."),
        (("--score-column", "answer", "--chat"), "--chat and --score-column were given, but nothing that says"),
        (("--score-column", "answer", "--temperature", 1), "--temperature has no effect: --score-column does not use"),
        (("--score-column", "answer", "--choices", "a", "--choices", "b"), "--choices and --score-column were given"),
        (("--score-column", "answer", "--regex", "a"), "--score-column and --regex were given together"),
        (("--score-column", "answer", "--stop", "a"), "--stop and --score-column were given together"),
        (("--score-column", "answer", "--max-reasoning-tokens", 5), "Texts are scored without reasoning."),
        (
            ("--score-column", "answer", "--prompt-column", "question", "--special-tokens-in-text", "escape"),
            "--special-tokens-in-text escape and --score-column were given together with a prompt.",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data.parquet")
    command = ("--model", tiny_model(), "--dataset", tmp_path / "data.parquet", "--output", tmp_path / "run")
    result = run_job("run", *command, *options)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_long_text_keeps_its_log_probabilities_through_a_kill(run_job: RunJob, tmp_path: Path) -> None:
    """They go through the journal, whose rows have the columns of parts."""
    model = make_model(tmp_path / "model")
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "a" * 3000}, {"text": "b"}])
    command = ("run", "--model", model, "--dataset", data, "--score-column", "text", "--token-logprobs")
    run_job(*command, "--output", tmp_path / "run", "--engine", "fake", "--rows-per-shard", 2)
    [row, _] = read_output(tmp_path / "run").to_pylist()
    assert len(row["token_logprobs"]) == row["num_scored_tokens"] == 3000
    identity = json.loads((tmp_path / "run/manifest.json").read_text())["identity"]
    assert identity["modes"]["scores"] == {"score_column": "text", "token_logprobs": True, "score_window": 512}

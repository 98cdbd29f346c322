"""Choices: what the user may write, how it is tokenized, how scores become answers; and ``job run --choices``."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.choice_tokens import choice_token_ids
from job.modes.choices import BoundChoices, read_choices
from job.modes.mode import Answer
from job.records import Generation, Request
from job.tasks import Score
from tests.conftest import Result
from tests.oracle import choice_logprobs
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_tokenizer

RunJob = Callable[..., Result]


def choices(*texts: str, **options: Any) -> BoundChoices:
    ids = tuple(tuple(text.encode()) for text in texts)
    return BoundChoices(tokens=Tokenizer(make_tokenizer()), texts=texts, **{"token_ids": ids, **options})


def scored(logprobs: Sequence[float], key: tuple[int, int] = (0, 0)) -> Generation:
    """Return what an engine makes of a request to score."""
    request = Request(row_idx=key[0], sample_idx=key[1], prompt_ids=[5], task=Score(choice_ids=()))
    return Generation(request=request, token_ids=[], finish_reason="stop", numbers=list(logprobs))


def answer(subject: BoundChoices, logprobs: Sequence[float], key: tuple[int, int] = (0, 0)) -> Answer:
    empty = Answer(completion="", finish_reason="stop", num_completion_tokens=0)
    return subject.complete(empty, scored(logprobs, key))


def calibrated(subject: BoundChoices, *logprobs: Sequence[float]) -> BoundChoices:
    return subject.calibrated([scored(of_probe, (-1 - idx, 0)) for idx, of_probe in enumerate(logprobs)])


def test_the_likeliest_wins_and_probabilities_sum_to_one() -> None:
    found = answer(choices("a", "b", "c"), [math.log(0.1), math.log(0.3), math.log(0.2)])
    assert (found.completion, found.num_completion_tokens, found.finish_reason) == ("b", 1, "stop")
    assert found.values["choice_probs"] == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    assert found.values["choice_margin"] == pytest.approx(1 / 6)
    assert found.values["choice_logprobs"] == pytest.approx(np.log([0.1, 0.3, 0.2]).tolist())


def test_white_space_around_a_choice_is_no_part_of_the_answer() -> None:
    assert answer(choices(" positive", " negative"), [-1.0, -2.0]).completion == "positive"


def test_of_equally_likely_choices_the_first_wins() -> None:
    found = answer(choices("a", "b"), [-1.0, -1.0])
    assert found.completion == "a" and found.values["choice_margin"] == 0


@pytest.mark.parametrize(("normalization", "winner"), [("none", "a"), ("tokens", "bcd"), ("bytes", "bcd")])
def test_length_can_be_divided_out(normalization: str, winner: str) -> None:
    assert answer(choices("a", "bcd", normalization=normalization), [-2.0, -3.0]).completion == winner


def test_bytes_are_those_of_utf8() -> None:
    subject = choices("é", "e", token_ids=((1,), (2,)), normalization="bytes")
    assert answer(subject, [-1.9, -1.0]).completion == "é"


def test_calibration_divides_by_what_content_free_prompts_prefer() -> None:
    """Zhao et al. 2021: p / p_cf, renormalized; of several content-free prompts the mean of their probabilities."""
    subject = calibrated(choices("a", "b"), np.log([0.6, 0.2]), np.log([0.9, 0.3]))
    found = answer(subject, list(np.log([0.5, 0.25])))
    assert found.completion == "b" and found.values["choice_probs"] == pytest.approx([0.4, 0.6])


def test_calibration_holds_where_probabilities_are_too_small_for_numbers() -> None:
    """The probability of a text of 100 tokens may be below 1e-308: 0, whose logarithm spoilt every label."""
    subject = calibrated(choices("yes", "a long definition"), [-3.0, -900.0])
    found = answer(subject, [-2.0, -950.0])
    assert found.completion == "yes" and found.values["choice_probs"] == pytest.approx([1, 0])
    assert found.values["choice_margin"] == pytest.approx(1)


def test_samples_are_drawn_from_the_probabilities_and_depend_on_the_row_alone() -> None:
    """Chi-squared against the exact distribution at temperature 2; the 99.9 % quantile for 2 degrees is 13.8."""
    probs = np.array([0.64, 0.32, 0.04])
    subject, logprobs = choices("a", "b", "c", temperature=2.0, seed=5), np.log(probs).tolist()
    drawn = [answer(subject, logprobs, (row_idx, 3)).completion for row_idx in range(3000)]
    expected = np.sqrt(probs) / np.sqrt(probs).sum() * 3000
    found = np.array([Counter(drawn)[text] for text in "abc"])
    assert ((found - expected) ** 2 / expected).sum() < 13.8
    assert drawn == [answer(subject, logprobs, (row_idx, 3)).completion for row_idx in range(3000)]
    assert drawn != [answer(subject, logprobs, (row_idx, 4)).completion for row_idx in range(3000)]
    values = answer(subject, logprobs).values
    assert values["choice_probs"] == pytest.approx(probs), "the model's own, not flattened"


def test_a_file_gives_one_choice_per_line(tmp_path: Path) -> None:
    """With the byte order mark and the line ends of Windows; other marks that Python splits at are text."""
    content = "\ufeffyes\r\n no\nperhaps,\u2028perhaps not\n\n"
    (tmp_path / "choices.txt").write_bytes(content.encode())
    assert read_choices([str(tmp_path / "choices.txt")]) == ("yes", " no", "perhaps,\u2028perhaps not")


@pytest.mark.parametrize(("content", "found"), [("yes\n", "a single line"), ("", "no lines")])
def test_a_file_with_fewer_than_two_choices_is_named(tmp_path: Path, content: str, found: str) -> None:
    """It was "--choices got 1"."""
    (tmp_path / "choices.txt").write_text(content)
    with pytest.raises(UsageError, match=rf"choices\.txt: the file has {found}\. Give at least two choices"):
        read_choices([str(tmp_path / "choices.txt")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["yes", "yes"], "'yes' is given twice"),
        (["yes", " yes"], "' yes' is given twice"),
        (["yes", ""], "number 2 is ''"),
        (["yes", "  "], "number 2 is '  '"),
        (["yes"], "got a single value, 'yes', which is not a file"),
    ],
)
def test_choices_that_make_no_sense_are_refused(values: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_choices(values)


@pytest.mark.parametrize("content", [b"one line\n", b"", b"a\n\nb\n", b"\xff\n\xfe\n"])
def test_files_of_choices_that_make_no_sense_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "choices.txt").write_bytes(content)
    with pytest.raises(UsageError, match="--choices"):
        read_choices([str(tmp_path / "choices.txt")])


def make_sentencepiece_like() -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts a space before every text, and that has tokens with a space and without."""
    vocab = {token: idx for idx, token in enumerate(["<unk>", "▁", "▁yes", "yes", "▁no", "no", "\n", "y", "e", "s"])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_choice_has_no_space_that_was_not_written() -> None:
    """Encoded alone, SentencePiece would make " yes" of "yes"."""
    tokenizer = make_sentencepiece_like()
    alone = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(alone) == ["▁yes"]
    ids = choice_token_ids(Tokenizer(tokenizer), ["yes", " no"], "\n")
    assert [tokenizer.convert_ids_to_tokens(list(each)) for each in ids] == [["yes"], ["▁no"]]


def test_a_choice_follows_the_prompt_byte_by_byte() -> None:
    ids = choice_token_ids(Tokenizer(make_tokenizer()), ["ab", " abc"], "\n")
    assert [make_tokenizer().decode(list(each)) for each in ids] == ["ab", " abc"]


def test_choices_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="'qq' and 'zz' are the same to the tokenizer"):
        choice_token_ids(Tokenizer(make_sentencepiece_like()), ["qq", "zz"], "\n")


def test_a_choice_that_begins_another_is_told() -> None:
    note = choices("no", "yes", "yes, but").prefix_note()
    assert note is not None and "'yes, but' begins with choice 'yes'" in note
    assert choices("no", "yes").prefix_note() is None
    assert choices("yes", "yes, but", normalization="tokens").prefix_note() is None


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Return a JSON lines file with 25 rows, of which one is null."""
    rows = [{"id": i, "text": None if i == 7 else f"this is review {i}"} for i in range(25)]
    return write_jsonl(tmp_path / "reviews.jsonl", rows)


def run_choices(run_job: RunJob, model: Path, data: Path, output: Path, *args: Any) -> Result:
    base = ["run", "--model", model, "--dataset", data, "--prompt-column", "text", "--output", output]
    return run_job(*base, "--choices", "good", "--choices", "gone", "--choices", "bad, really", *args)


def test_every_row_gets_one_of_the_choices_with_its_scores(
    run_job: RunJob, tiny_model: Any, reviews: Path, tmp_path: Path
) -> None:
    """The whole path in fp32 against the oracle."""
    output, texts = tmp_path / "out", ["good", "gone", "bad, really"]
    result = run_choices(run_job, tiny_model(), reviews, output, "--dtype", "float32", "--rows-per-shard", 10)
    assert result.exit_code == 0, result.stderr
    rows = read_output(output).to_pylist()
    assert [row["row_idx"] for row in rows] == list(range(25))
    tokenizer = make_tokenizer()
    encode = [tokenizer(text)["input_ids"] for text in texts]
    for row in rows:
        if row["row_idx"] == 7:
            assert row["error"].startswith("null_prompt") and row["completion"] is row["choice_logprobs"] is None
            assert row["choice_probs"] is row["choice_margin"] is row["finish_reason"] is None
            continue
        (expected,) = choice_logprobs(tiny_model(), [tokenizer(row["prompt"])["input_ids"]], encode)
        assert row["choice_logprobs"] == pytest.approx(expected, abs=1e-4)
        probs = np.exp(np.array(expected) - max(expected)) / np.exp(np.array(expected) - max(expected)).sum()
        assert row["choice_probs"] == pytest.approx(list(probs), abs=1e-4)
        assert row["completion"] == texts[int(np.argmax(expected))] and row["finish_reason"] == "stop"
        assert row["num_completion_tokens"] == len(row["completion"])
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["identity"]["modes"] == {"choices": {"choices": texts}}
    features = datasets.load_dataset("parquet", data_files=f"{output}/data/part-*.parquet", split="train").features
    assert features["choice_margin"] == datasets.Value("float64")
    assert json.loads(read_output(output).schema.metadata[b"job.choices"]) == texts
    assert run_job("verify", output).exit_code == 0


def test_calibration_is_computed_once_and_changes_probabilities_not_scores(
    run_job: RunJob, tiny_model: Any, reviews: Path, tmp_path: Path
) -> None:
    plain, calibrated = tmp_path / "plain", tmp_path / "calibrated"
    assert run_choices(run_job, tiny_model(), reviews, plain, "--dtype", "float32").exit_code == 0
    args = ["--dtype", "float32", "--choice-calibration", "N/A"]
    result = run_choices(run_job, tiny_model(), reviews, calibrated, *args)
    assert result.exit_code == 0, result.stderr
    before, after = read_output(plain).to_pylist(), read_output(calibrated).to_pylist()
    tokenizer = make_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in ("good", "gone", "bad, really")]
    (scores,) = choice_logprobs(tiny_model(), [tokenizer("N/A")["input_ids"]], ids)
    content_free = np.exp(scores) / np.exp(scores).sum()
    for old, new in zip(before, after, strict=True):
        if old["error"] is None:
            assert new["choice_logprobs"] == pytest.approx(old["choice_logprobs"], abs=1e-4)
            expected = np.array(old["choice_probs"]) / content_free
            assert new["choice_probs"] == pytest.approx(list(expected / expected.sum()), abs=1e-3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--choices", "good"], "'good' is given twice"),
        (["--choices", "x" * 600], "is 600, but the model has room for 512"),
        (["--stop", "x"], "--stop and --choices were given together"),
        (["--regex", "x"], "--choices and --regex were given together"),
        (["--logprobs"], "--logprobs and --choices were given together"),
        (["--top-p", 0.5], "--top-p has no effect: --choices does not use it. Leave it out."),
        (["--num-samples", 3], "gives the same completion each time. Set --temperature above 0."),
        (["--aggregate", "majority"], "Leave out --aggregate: nothing is drawn"),
        (["--choice-calibration", "x" * 600], "prompt_too_long"),
        (["--choice-calibration", ""], "empty_prompt"),
        (["--choice-normalization", "words"], "is not one of 'none', 'tokens', 'bytes'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(
    run_job: RunJob, tiny_model: Any, reviews: Path, tmp_path: Path, args: list[Any], message: str
) -> None:
    result = run_choices(run_job, tiny_model(), reviews, tmp_path / "out", *args)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert "loading" not in result.stderr and not (tmp_path / "out").exists()


def test_a_row_whose_choices_do_not_fit_is_an_error_row(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "x" * (512 - 11)}, {"text": "x" * (512 - 10)}])
    result = run_choices(run_job, tiny_model(), data, tmp_path / "out", "--max-error-rate", 1)
    assert result.exit_code == 0, result.stderr
    fits, does_not = read_output(tmp_path / "out").to_pylist()
    assert fits["error"] is None and does_not["error"].startswith("prompt_too_long: 502 tokens, the limit is 501")


def test_most_samples_decide(run_job: RunJob, tiny_model: Any, reviews: Path, tmp_path: Path) -> None:
    """Each sample is drawn; all have the row's scores, computed once; the majority stands beside each."""
    args = ["--num-samples", 5, "--temperature", 1, "--aggregate", "majority", "--engine", "fake"]
    result = run_choices(run_job, tiny_model(), reviews, tmp_path / "out", *args, "--rows-per-shard", 10)
    assert result.exit_code == 0, result.stderr
    rows = read_output(tmp_path / "out").to_pylist()
    assert len(rows) == 125 and len({row["completion"] for row in rows}) > 1
    for row_idx in range(25):
        samples = rows[row_idx * 5 :][:5]
        votes = Counter(row["completion"] for row in samples if row["error"] is None)
        if row_idx == 7:
            assert {(row["majority"], row["majority_share"]) for row in samples} == {(None, None)}
        else:
            ((winner, number),) = votes.most_common(1)
            assert {(row["majority"], row["majority_share"]) for row in samples} == {(winner, number / 5)}
    assert run_job("verify", tmp_path / "out").exit_code == 0


def test_a_run_with_other_choices_is_another_run(
    run_job: RunJob, tiny_model: Any, reviews: Path, tmp_path: Path
) -> None:
    assert run_choices(run_job, tiny_model(), reviews, tmp_path / "out", "--engine", "fake").exit_code == 0
    result = run_choices(run_job, tiny_model(), reviews, tmp_path / "out", "--engine", "fake", "--choices", "new")
    assert result.exit_code == 2 and "--choices was" in result.stderr

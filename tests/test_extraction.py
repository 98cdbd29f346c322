"""Answer extraction: what counts as the answer, what is refused, and the vote on answers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.arrow.last_match import last_matches
from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.errors import UsageError
from job.modes.aggregate import AggregateMode, majorities
from job.modes.extraction import ExtractionMode
from job.modes.mode import Mode, Outcome
from job.modes.structured import StructuredMode
from job.output.parts.part_schema import Columns
from job.records import Completion, RowError
from tests.test_run import RunJob, read_output, write_jsonl

SCHEMA = json.dumps({"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "integer"}}})


def completion(text: str | None, sample_idx: int = 0, reason: str = "stop", row_idx: int = 0) -> Completion:
    return Completion(
        row_idx=row_idx,
        sample_idx=sample_idx,
        prompt=None,
        completion=text,
        finish_reason=None if text is None else reason,
        num_prompt_tokens=1,
        num_completion_tokens=1,
        error=RowError("engine_error", "it failed") if text is None else None,
    )


def config(*modes: Mode, num_samples: int = 1) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(),
        sampling=SamplingConfig(num_samples=num_samples, temperature=1.0),
        output=OutputConfig(output="o"),
        modes=modes,
    )


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"\d+", "3 and 42.", "42"),
        (r"#### *(-?[\d,]+)", "#### 1 is wrong, #### -1,234\nso", "-1,234"),
        (r"####(.*)", "####  12 kg \t\n####  ", "12 kg"),  # a blank match does not count
        (r"x*", "xx, x.", "x"),  # it also matches between all characters
        (r"(yes)|no", "yes, no", "yes"),  # the second match has no group 1
        (r"(\w) (\w)", "a b c d", "c"),
        (r"(?:is|are) \S+", "it is 1, they are 2", "are 2"),
        (r"\pL+", "café été", "été"),
        (r"(?i)ANSWER: (.)", "answer: 😀", "😀"),
        (r"(?s)<a>(.*?)</a>", "<a>1</a> <a>2\n3</a>", "2\n3"),
        (r"^\d", "12", "1"),  # no new beginning of the text after a match
        (r"\d+", "none", None),
        (r"\d+", "", None),
        (r"\d+", None, None),
    ],
)
def test_the_last_match_that_is_not_blank_is_the_answer(pattern: str, text: str | None, answer: str | None) -> None:
    others = ["7 x (a) yes", None]  # a text does not depend on the others
    assert last_matches(pattern, pa.array([others[0], text, others[1]], pa.string()))[1] == answer


def test_texts_may_contain_the_marks() -> None:
    texts = pa.array(["\U000f0000 1 \U000f0001 2", "3"])
    assert last_matches(r"(\S) \S$", texts) == ["\U000f0001", None] and last_matches(r"\d", texts) == ["2", "3"]


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(x+x+)+y|(a*)*c", "(.*)*,"])
def test_no_pattern_runs_forever(pattern: str) -> None:
    """With Python's ``re`` each takes longer than the universe is old."""
    last_matches(pattern, pa.array(["a" * 5000 + "!"]))


@pytest.mark.parametrize(
    ("text", "reason", "answer"),
    [
        ('{"why": "12", "answer": 72}', "stop", "72"),
        ('{"answer": "a  b "}', "stop", "a  b"),
        ('{"answer": ["é", true]}', "stop", '["é", true]'),
        ('{"answer": 72}', "length", None),  # the object may not be whole
        ('{"answer": null}', "stop", None),
        ('{"answer": " "}', "stop", None),
        ('{"answer": 1e999}', "stop", None),
        ('{"answer": "\\ud800"}', "stop", None),
        ('{"why": ""}', "stop", None),
        ('["answer"]', "stop", None),
        ("answer", "stop", None),
        (None, "stop", None),
    ],
)
def test_a_property_is_the_answer(text: str | None, reason: str, answer: str | None) -> None:
    mode = ExtractionMode(extract_field="answer")
    assert mode.derive([completion(text, reason=reason)], {})["answer"].to_pylist() == [answer]


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ([ExtractionMode(extract="(")], "--extract '(' is not a regular expression: missing )"),
        ([ExtractionMode(extract="a)(b")], "--extract 'a)(b' is not a regular expression: unexpected )"),
        ([ExtractionMode(extract="a(?=b)")], "invalid perl operator: (?="),
        ([ExtractionMode(extract="(a)\\1")], "invalid escape sequence: \\1"),
        ([ExtractionMode(extract="a{2000}")], "invalid repetition size: {2000}"),
        ([ExtractionMode(extract="")], "--extract is ''"),
        ([ExtractionMode(extract="a", extract_field="b")], "--extract and --extract-field were given together"),
        ([ExtractionMode(extract_field="answer")], "--extract-field 'answer' needs --json-schema"),
        ([ExtractionMode(extract_field="x"), StructuredMode(regex="a")], "--extract-field 'x' needs --json-schema"),
        (
            [ExtractionMode(extract_field="x"), StructuredMode(json_schema=SCHEMA)],
            "--extract-field 'x' is not a property of --json-schema. Properties: why, answer.",
        ),
        ([ExtractionMode(extract_field="x"), StructuredMode(json_schema='{"type": "array"}')], "It names none."),
    ],
)
def test_what_cannot_work_is_refused(modes: list[Mode], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(*modes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_property_of_an_open_object_may_be_the_answer() -> None:
    schema = json.dumps({"properties": {"a": {}}, "type": "object", "additionalProperties": True})
    config(ExtractionMode(extract_field="a"), StructuredMode(json_schema=schema))


def test_the_vote_is_on_answers() -> None:
    """Those without an answer, with an error or cut do not vote, but count in the share."""
    texts = ["so 1", "2 or 3", "it is 3", "none", None]
    samples = [*(completion(text, idx) for idx, text in enumerate(texts)), completion("1", 5, "length")]
    modes = config(
        ExtractionMode(extract=r"\d"), AggregateMode(aggregate="majority"), num_samples=len(samples)
    ).active_modes
    columns = Columns(modes=modes).derive(samples)
    assert columns["answer"].to_pylist() == ["1", "3", "3", None, None, "1"]
    assert set(columns["majority"].to_pylist()) == {"3"} and set(columns["majority_share"].to_pylist()) == {2 / 6}


def test_without_any_answer_nothing_wins() -> None:
    assert majorities([completion("a"), completion("b", 1)], [None, None]) == {0: (None, None)}
    assert majorities([completion(""), completion("", 1), completion("b", 2)]) == {0: ("b", 1 / 3)}


def test_ties_go_to_the_lowest_sample() -> None:
    assert majorities([completion("b", 1), completion("a", 0)], ["x", "y"]) == {0: ("y", 0.5)}


def outcome(**counted: int) -> Outcome:
    return Outcome(
        num_completions=sum(counted.values()),
        num_completion_tokens=0,
        finish_reasons={},
        tallies={"answers": counted},
        max_new_tokens=1,
    )


def test_the_summary_says_how_many_completions_have_no_answer() -> None:
    mode = ExtractionMode(extract="a")
    assert mode.describe(outcome(found=7, none=3)) == [("answer", "3 of 10 completions have none")]
    assert mode.describe(outcome(found=7)) == [("answer", "found in all completions")]
    assert mode.describe(outcome()) == []


@pytest.fixture
def output(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Path:
    """Return a run with an answer, none, and an error. The fake engine reverses prompts."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "81 ####"}, {"prompt": "?"}, {"prompt": None}])
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--extract", r"#### (\d+)", "--num-samples", 2, "--temperature", 1, "--aggregate", "majority"],
        *["--max-error-rate", 1],
    )
    assert result.exit_code == 0, result.stderr
    assert "  answer      2 of 4 completions have none\n" in result.stdout
    return tmp_path / "out"


def test_a_run_extracts_answers_and_votes_on_them(run_job: RunJob, output: Path) -> None:
    table = read_output(output)
    assert table.column_names[-3:] == ["answer", "majority", "majority_share"]
    assert table["answer"].to_pylist() == table["majority"].to_pylist() == ["18", "18", None, None, None, None]
    assert run_job("verify", output).exit_code == 0
    assert "extract: `#### (\\d+)`" in (output / "README.md").read_text()


def test_a_wrong_answer_is_found(run_job: RunJob, output: Path) -> None:
    [part] = output.glob("data/*.parquet")
    table = pq.read_table(part)
    place = table.schema.get_field_index("answer")
    wrong = pa.array([None, "18", None, None, None, None], pa.string())
    pq.write_table(table.set_column(place, table.schema.field(place), wrong), part)
    result = run_job("verify", output)
    assert result.exit_code == 1 and "row_idx 0, sample_idx 0: not the answer that --extract finds" in result.stdout


def test_a_run_with_another_expression_is_another_run(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", output.parent / "d.jsonl"],
        *["--output", output, "--extract", r"\d+", "--num-samples", 2, "--temperature", 1, "--aggregate", "majority"],
    )
    assert result.exit_code == 2 and "--extract was" in result.stderr

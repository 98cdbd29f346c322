"""``job run`` with a schema, a regex or a grammar: what is refused, and what the output says of each row."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Result
from tests.test_run import read_output, write_jsonl
from tests.test_verify import change_cell

RunJob = Callable[..., Result]

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"enum": ["a", "b"]}}, "required": ["n", "s"]}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "questions.jsonl", [{"prompt": f"question {i}?"} for i in range(6)])


BAD = {
    "no file": (["--json-schema", "none.json"], "--json-schema 'none.json' is neither a file nor a schema"),
    "no JSON": (["--json-schema", '{"type": '], "--json-schema is not JSON"),
    "a list": (["--json-schema", '[{"type": "object"}]'], "a JSON list; a schema must be an object"),
    "unknown type": (["--json-schema", '{"type": "text"}'], "cannot be compiled: at the top: Invalid type: text"),
    "unsupported keyword": (["--json-schema", '{"not": {"type": "null"}}'], "at the top: not supported: 'not'"),
    "unsatisfiable": (["--json-schema", '{"allOf": [{"type": "string"}, {"type": "null"}]}'], "Unsatisfiable schema"),
    "odd keywords": (["--json-schema", '{"properties": {}, "required": [[]]}'], "cannot be compiled"),
    "regex syntax": (["--regex", "a(b"], "--regex 'a(b' cannot be compiled: regex parse error: error: unclosed group"),
    "look-around": (["--regex", "(?=a)b"], "look-around, including look-ahead and look-behind, is not supported"),
    "nothing matches": (["--regex", "[^\\s\\S]"], "--regex cannot match any text. "),
    "nothing matches in the middle": (["--regex", "ab[^\\s\\S]"], "--regex cannot match any text. "),
    "only the empty text": (["--regex", "a{0}"], "--regex matches only the empty text. "),
    "no grammar": (["--grammar", "none.lark"], "--grammar 'none.lark' is neither a file nor a grammar"),
    "grammar syntax": (["--grammar", "start: /a/ |("], "--grammar cannot be compiled: "),
    "unknown rule": (["--grammar", "start: foo"], 'unknown name: "foo"'),
    "no start": (["--grammar", "foo: /a/"], "no start rule found"),
    "two constraints": (["--regex", "a", "--grammar", "start: /a/"], "--regex and --grammar were given together"),
    "stop": (["--regex", "a", "--stop", "b"], "--stop and --regex were given together"),
}


@pytest.mark.parametrize(("options", "reason"), BAD.values(), ids=BAD)
def test_a_constraint_that_cannot_work_gets_one_line_and_exit_code_2(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"],
        *options,
    )
    assert result.exit_code == 2, result.stderr
    assert reason in result.stderr and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_schema_file_that_is_not_json_is_named(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text('{"type": object')
    args = ["--dataset", questions, "--output", tmp_path / "out", "--json-schema", tmp_path / "bad.json"]
    result = run_job("run", "--model", tiny_model(), *args)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert f"--json-schema {tmp_path / 'bad.json'} is not JSON: Expecting value" in result.stderr


def test_completions_are_parsed_into_typed_columns(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """The schema comes from a file; HuggingFace reads the column with its types.

    Its integers are bounded: of the many digits that random weights write, some do not fit into 64 bits.
    """
    bounded = {"n": {"type": "integer", "minimum": -1000, "maximum": 1000}, "s": SCHEMA["properties"]["s"]}
    (tmp_path / "schema.json").write_text(json.dumps({**SCHEMA, "properties": bounded}))
    output = tmp_path / "out"
    base = ["run", "--model", tiny_model(), "--dataset", questions, "--output", output, "--dtype", "float32"]
    result = run_job(
        *base,
        *["--json-schema", tmp_path / "schema.json", "--num-samples", 3, "--temperature", 1, "--rows-per-shard", 4],
        *["--max-new-tokens", 40],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(output)
    assert table.column_names[-2:] == ["parse_ok", "parsed"]
    assert table.schema.field("parsed").type == pa.struct([("n", pa.int64()), ("s", pa.string())])
    rows = table.to_pylist()
    for row in rows:
        assert row["parse_ok"] == (row["finish_reason"] == "stop")
        assert row["parsed"] == (json.loads(row["completion"]) if row["parse_ok"] else None)
    assert sum(row["parse_ok"] for row in rows) > len(rows) / 2
    assert len({row["completion"] for row in rows}) > 3
    loaded = datasets.load_dataset("parquet", data_files=f"{output}/data/part-*.parquet", split="train")
    assert loaded.features["parsed"] == {"n": datasets.Value("int64"), "s": datasets.Value("string")}
    assert run_job("verify", output).exit_code == 0
    again = run_job(*base, "--regex", "a")
    assert again.exit_code == 2 and '--regex was not set, now "a"' in again.stderr


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_rows_cut_by_the_most_tokens_are_not_passed_off_as_valid(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, engine: str
) -> None:
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out", "--engine", engine],
        *["--regex", "(ab)+c|d{4}", "--max-new-tokens", 4],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert "parsed" not in table.column_names
    for row in table.to_pylist():
        is_match = re.fullmatch("(ab)+c|d{4}", row["completion"]) is not None
        assert row["parse_ok"] == is_match and row["finish_reason"] == ("stop" if is_match else "length")


def test_text_without_constraint_in_the_engine_is_judged_by_the_schema(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """FakeEngine says prompts backwards, so that any text can be tried."""
    texts = [
        '{"n": 1, "s": "a"}',
        '{"n": 1',
        '{"n": 99999999999999999999, "s": "a"}',
        '{"n": 1, "s": "a", "x": 0}',
        None,
    ]
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text and text[::-1]} for text in texts])
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--json-schema", json.dumps(SCHEMA), "--max-error-rate", 1],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table["parse_ok"].to_pylist() == [True, False, False, False, None]
    assert table["parsed"].to_pylist() == [{"n": 1, "s": "a"}, None, None, None, None]
    assert table["error"].is_valid().to_pylist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("options", "column", "row", "value", "problem"),
    [
        (["--regex", "a+"], "parse_ok", 0, False, "parse_ok and finish_reason contradict each other"),
        (["--regex", "a+"], "parse_ok", 0, None, "neither parse_ok nor error"),
        (["--json-schema", json.dumps(SCHEMA)], "parse_ok", 1, False, "parsed, but not parse_ok"),
        (["--json-schema", json.dumps(SCHEMA)], "finish_reason", 1, "length", "a finish_reason other than stop"),
    ],
)
def test_verify_finds_rows_that_contradict_themselves(
    run_job: RunJob,
    tiny_model: Any,
    tmp_path: Path,
    options: list[str],
    column: str,
    row: int,
    value: Any,
    problem: str,
) -> None:
    texts = ["aa", '{"n": 1, "s": "a"}']
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text[::-1]} for text in texts])
    output = tmp_path / "out"
    result = run_job(
        "run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", output, *options
    )
    assert result.exit_code == 0, result.stderr
    change_cell(output / "data/part-00000.parquet", row, column, value)
    result = run_job("verify", output)
    assert result.exit_code == 1 and problem in result.stdout


def test_the_schema_is_part_of_what_a_run_is(run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path) -> None:
    """Its text, not the path of the file."""
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    command = [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"],
        *["--json-schema", path],
    ]
    assert run_job(*command).exit_code == 0
    path.rename(tmp_path / "other.json")
    command[-1] = tmp_path / "other.json"
    assert run_job(*command).exit_code == 0
    (tmp_path / "other.json").write_text(json.dumps({**SCHEMA, "required": ["n"]}))
    result = run_job(*command)
    assert result.exit_code == 2 and "--json-schema was" in result.stderr
    assert "job.manifest" in {key.decode() for key in pq.read_schema(tmp_path / "out/data/part-00000.parquet").metadata}

"""A run directory as the dataset of another run: columns under new names, error rows, unfinished runs, lineage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from job.config import DataConfig
from job.data.dataset import OpenDataset
from job.data.earlier_errors import settle_errors
from job.data.runs import RunInput
from job.data.separated import columns_to_keep
from job.data.source import ArrowSource
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl

Job = Callable[..., Result]

ROWS = [
    {"prompt": "one", "answer": "1", "n": 1},
    {"prompt": None, "answer": "2", "n": 2},
    {"prompt": "three", "answer": "3", "n": 3},
    {"prompt": 4, "answer": "4", "n": 4},
    {"prompt": "five", "answer": "5", "n": 5},
]


@pytest.fixture
def job(run_job: Any, tiny_model: Any, tmp_path: Path) -> Job:
    """Return a function that runs ``job run`` in the directory of the test."""

    def call(dataset: str, output: str, *options: Any, command: str = "run") -> Result:
        args = [command, "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / dataset]
        result: Result = run_job(*args, "--max-new-tokens", 4, "--output", tmp_path / output, *options)
        return result

    return call


@pytest.fixture
def earlier(job: Job, tmp_path: Path) -> Path:
    """A finished run over ``ROWS``; two of its rows are errors."""
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    result = job("q.jsonl", "a", "--keep-columns", "answer,n", "--rows-per-shard", 2, "--max-error-rate", 1)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "a"


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_output(output).to_pylist()
    return rows


NEXT = ("--prompt-template", "{{ completion }}?")


def test_columns_are_kept_under_other_names(job: Job, run_job: Any, earlier: Path, tmp_path: Path) -> None:
    result = job("a", "b", *NEXT, "--keep-columns", "completion=draft,n", "--keep-columns", "prompt=question")
    assert result.exit_code == 0, result.stderr
    before, after = rows_of(earlier), rows_of(tmp_path / "b")
    works = [row for row in before if row["error"] is None]
    assert [(row["draft"], row["n"], row["question"]) for row in after] == [
        (row["completion"], row["n"], row["prompt"]) for row in works
    ]
    assert [row["prompt"] for row in after] == [f"{row['completion']}?" for row in works]
    assert read_output(tmp_path / "b").column_names[2:5] == ["draft", "n", "question"]
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert manifest["identity"]["columns"]["kept"] == [
        "draft: string, from completion",
        "n: int64",
        "question: string, from prompt",
    ]
    assert run_job("verify", tmp_path / "b").exit_code == 0
    assert run_job("export", tmp_path / "b", "--to", tmp_path / "b.jsonl").exit_code == 0
    assert "already done" in job("a", "b", *NEXT, "--keep-columns", "completion=draft,n,prompt=question").stderr
    other = job("a", "b", *NEXT, "--keep-columns", "completion=first,n,prompt=question")
    assert other.exit_code == 2 and "what --id-column and --keep-columns keep was" in other.stderr


def test_a_gold_column_named_like_one_of_ours(job: Job, tmp_path: Path) -> None:
    """GSM8K calls its gold answers ``answer``, as ``--extract`` calls what it finds."""
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "12", "answer": "#### 12"}])
    extract = ("--extract", "[a-z0-9]+")
    refused = job("q.jsonl", "x", *extract, "--keep-columns", "answer")
    assert refused.exit_code == 2 and "with --keep-columns 'answer=NAME'." in refused.stderr
    refused = job("q.jsonl", "x", *extract, "--keep-columns", "*")
    assert refused.exit_code == 2 and "with --keep-columns '*,answer=NAME'." in refused.stderr
    result = job("q.jsonl", "x", *extract, "--keep-columns", "*,answer=gold")
    assert result.exit_code == 0, result.stderr
    assert rows_of(tmp_path / "x")[0]["gold"] == "#### 12" and "answer" in rows_of(tmp_path / "x")[0]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            "completion=error",
            "--keep-columns completion=error: the output has its own column 'error'. Use another name;",
        ),
        ("completion=n,n", "two columns would be named 'n'"),
        ("completion=N,n", "has a column 'N', too, and for DuckDB, Spark and Hive these are one name"),
        ("complete=x", "the dataset has no column 'complete'. Did you mean 'completion'?"),
        ("completion=", "--keep-columns completion=: the new name is missing. Write completion=NAME."),
        ("completion=a=b", "--keep-columns completion=a=b: a column has one new name. Write completion=NAME."),
        (
            "draft=completion",
            "the dataset has no column 'draft', but 'completion'. The old name comes first: completion=",
        ),
        ("=completion", "--keep-columns =completion: the old name is missing. Write completion=NAME, or completion."),
        ("*=x", "--keep-columns *=x: '*' stands for all columns, which keep their names."),
        ("prompt=completion", "to keep the dataset's 'completion', write completion=NAME: the old name comes first."),
        ("completion", "Keep it under another name with --keep-columns 'completion=NAME'."),
    ],
)
def test_names_that_cannot_be(job: Job, earlier: Path, tmp_path: Path, keep: str, message: str) -> None:
    result = job("a", "b", *NEXT, "--keep-columns", keep)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert not (tmp_path / "b" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        (["Yes, no=label"], ["Yes, no"], [("Yes, no", "label")]),
        (["a=b"], ["a", "a=b"], [("a=b", "a=b")]),
        (["a=b=c"], ["a=b"], [("a=b", "c")]),
        (["a = x , b=y"], ["a", "b"], [("a", "x"), ("b", "y")]),
        (["Kunde=client"], ["Kunde "], [("Kunde ", "client")]),
        (["a=x,a=y,a"], ["a"], [("a", "x"), ("a", "y"), ("a", "a")]),
    ],
)
def test_what_a_new_name_is(values: list[str], columns: list[str], expected: list[tuple[str, str]]) -> None:
    assert list(columns_to_keep(values, columns)) == expected


def test_a_column_may_be_kept_twice_and_its_labels_go_with_it(job: Job, tmp_path: Path) -> None:
    """The description of a class label belongs to its column, not to another one that takes its name."""
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "y": datasets.ClassLabel(names=["no", "yes"]),
            "z": datasets.Value("int64"),
        }
    )
    data = datasets.Dataset.from_dict({"prompt": ["a", "b"], "y": [0, 1], "z": [7, 8]}, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    result = job("d.parquet", "b", "--keep-columns", "y=gold,y=label,z=y")
    assert result.exit_code == 0, result.stderr
    found = datasets.load_dataset("parquet", data_files=str(tmp_path / "b/data/*.parquet"), split="train").features
    assert found["gold"] == found["label"] == features["y"] and found["y"] == features["z"]
    assert [(row["gold"], row["label"], row["y"]) for row in rows_of(tmp_path / "b")] == [(0, 0, 7), (1, 1, 8)]


def test_all_columns_of_a_run_are_those_that_are_not_ours(job: Job, earlier: Path, tmp_path: Path) -> None:
    result = job("a", "b", *NEXT, "--keep-columns", "*,completion=draft")
    assert result.exit_code == 0, result.stderr
    assert (
        "not kept of the earlier run, because this run has such columns, too: row_idx, sample_idx, prompt, "
        "finish_reason, num_prompt_tokens, num_completion_tokens, error, error_kind; --keep-columns '*,row_idx=NAME' "
        "keeps one under another name"
    ) in result.stderr
    assert read_output(tmp_path / "b").column_names[2:5] == ["draft", "answer", "n"]


@pytest.mark.parametrize("options", [[], ["--earlier-errors", "skip"]])
def test_error_rows_of_a_run_are_left_out(job: Job, earlier: Path, tmp_path: Path, options: list[str]) -> None:
    result = job("a", "b", *NEXT, "--keep-columns", "n,row_idx=first_idx", *options)
    assert result.exit_code == 0, result.stderr
    assert "2 rows of the earlier run are left out, because of errors there" in result.stderr
    rows = rows_of(tmp_path / "b")
    assert [(row["row_idx"], row["n"], row["first_idx"]) for row in rows] == [(0, 1, 0), (1, 3, 2), (2, 5, 4)]
    assert "without its error rows" in (tmp_path / "b/README.md").read_text()
    other = job("a", "b", *NEXT, "--keep-columns", "n,row_idx=first_idx", "--earlier-errors", "carry")
    assert other.exit_code == 2 and '--earlier-errors was "skip", now "carry"' in other.stderr


def test_a_limit_counts_the_rows_that_are_left(job: Job, earlier: Path, tmp_path: Path) -> None:
    assert job("a", "b", *NEXT, "--keep-columns", "n", "--limit", 2).exit_code == 0
    assert [row["n"] for row in rows_of(tmp_path / "b")] == [1, 3]


def test_error_rows_of_a_run_are_carried_on(job: Job, earlier: Path, tmp_path: Path) -> None:
    result = job("a", "b", *NEXT, "--keep-columns", "n", "--earlier-errors", "carry", "--max-error-rate", 0.5)
    assert result.exit_code == 0, result.stderr
    assert "2 rows of the earlier run are carried on as errors (earlier_error)" in result.stderr
    before, after = rows_of(earlier), rows_of(tmp_path / "b")
    assert [row["n"] for row in after] == [1, 2, 3, 4, 5]
    assert [row["error"] for row in after] == [row["error"] and f"earlier_error: {row['error']}" for row in before]


def test_a_run_of_nothing_but_errors_is_refused(job: Job, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": None}, {"prompt": None}])
    assert job("q.jsonl", "a", "--max-error-rate", 1).exit_code == 0
    result = job("a", "b", *NEXT)
    assert result.exit_code == 2
    assert "all 2 rows of the earlier run are errors. Compute them again with job retry." in result.stderr


def test_a_run_that_began_before_there_was_a_choice_goes_on_as_it_began(
    job: Job, earlier: Path, tmp_path: Path
) -> None:
    """Its rows were all rows of the earlier run, and its manifest does not say what becomes of errors."""
    base = ("--prompt-template", "{{ completion or 'none' }}", "--keep-columns", "n")
    assert job("a", "b", *base, "--earlier-errors", "carry", "--max-error-rate", 1).exit_code == 0
    path = tmp_path / "b" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["identity"]["dataset"]["earlier_errors"]
    path.write_text(json.dumps(manifest))
    for part in (tmp_path / "b" / "data").glob("part-*"):
        part.unlink()
    result = job("a", "b", *base)
    assert result.exit_code == 0, result.stderr
    assert [(row["n"], row["prompt"] == "none") for row in rows_of(tmp_path / "b")] == [
        (row["n"], row["completion"] is None) for row in rows_of(earlier)
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "runs/answer",
            "there is no such file or directory. Did you mean runs/answers? Runs in runs: answers, begun. A "
            "dataset of the Hub is hf://datasets/runs/answer.",
        ),
        ("runs", "--dataset runs holds runs, not data: answers, begun. Name one of them: --dataset runs/answers."),
        ("runs/begun", "3 of 3 rows are missing. Finish it first: --partial reads whole parts, and there is none yet."),
    ],
)
def test_a_run_that_is_not_there_is_missed_at_once(
    run_job: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    """Without asking the Hub, where a dataset might have that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("job.remote.hub.pin", lambda *args: pytest.fail("the Hub was asked"))
    plan = {"num_rows": 3, "rows_per_shard": 10}
    for run in ("answers", "begun"):
        (tmp_path / "runs" / run / "journal").mkdir(parents=True)
        content = {"format_version": 4, "identity": {"plan": plan}, "about": {}}
        (tmp_path / "runs" / run / "manifest.json").write_text(json.dumps(content))
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--output", tmp_path / "out"]
    result = run_job(*base, "--dataset", name, "--partial")
    assert result.exit_code == 2 and message in result.stderr, result.stderr


def test_an_unfinished_run_is_read_with_partial(job: Job, earlier: Path, tmp_path: Path) -> None:
    min((earlier / "data").glob("part-*")).unlink()
    refused = job("a", "b", *NEXT)
    assert refused.exit_code == 2 and "or read what is there with --partial." in refused.stderr
    result = job("a", "b", *NEXT, "--partial", "--keep-columns", "n")
    assert result.exit_code == 0 and "is an unfinished run: 2 of 5 rows are missing" in result.stderr
    assert [row["n"] for row in rows_of(tmp_path / "b")] == [3, 5]


@pytest.mark.parametrize("option", [["--partial"], ["--earlier-errors", "carry"]])
def test_options_for_runs_are_refused_for_other_data(job: Job, tmp_path: Path, option: list[str]) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    result = job("q.jsonl", "b", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for the directory of an earlier run, but --dataset" in result.stderr


def test_the_lineage_is_in_the_manifest_and_the_card(job: Job, earlier: Path, tmp_path: Path) -> None:
    assert job("a", "b", *NEXT).exit_code == 0
    assert job("b", "c", *NEXT).exit_code == 0
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text()) for name in "abc"}
    digests = {}
    for name in "ab":
        metadata = pa.parquet.read_schema(next((tmp_path / name / "data").glob("part-*"))).metadata
        digests[name] = metadata[b"job.manifest"].decode()
    found = manifests["c"]["about"]["earlier_runs"]
    assert [(run["output"], run["identity"]) for run in found] == [
        (str(tmp_path / name), digests[name]) for name in "ba"
    ]
    assert {run["model"] for run in found} == {manifests["a"]["about"]["model"]}
    card = (tmp_path / "c/README.md").read_text()
    for name in "ab":
        assert f"- From the earlier run `{name}` by `" in card and f"identity `{digests[name][:16]}`" in card
    assert "earlier_runs" not in manifests["a"]["about"]


@pytest.mark.parametrize("num_rows", [1, 7, 700])
def test_slices_of_the_rows_that_are_left(tmp_path: Path, num_rows: int) -> None:
    """Every slice holds the rows that a filter of the whole would give, with the indices that count them anew."""
    errors = [None if idx % 7 not in (1, 2) and not 250 < idx < 530 else f"e{idx}" for idx in range(num_rows)]
    table = pa.table({"x": list(range(num_rows)), "error": pa.array(errors, pa.string())})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    run = RunInput(path=tmp_path, shards=[num_rows], parts=())
    dataset = OpenDataset(source=ArrowSource([tmp_path / "t.arrow"]), fingerprint="", split="train", runs=(run,))
    left = settle_errors(dataset, DataConfig(dataset="d"), "skip").source
    expected = [idx for idx, error in enumerate(errors) if error is None]
    assert left.num_rows == len(expected)
    for start in range(0, len(expected), max(1, len(expected) // 9)):
        for stop in (start, start + 1, start + 40, len(expected), len(expected) + 5):
            blocks = list(left.read(start, stop, ["x"], ["x"]))
            rows = [row for block in blocks for row in block.rows]
            stop = min(stop, len(expected))
            assert [row.row_idx for row in rows] == list(range(start, stop))
            assert [row.values["x"] for row in rows] == expected[start:stop]
            assert [x for block in blocks for x in block.kept["x"].to_pylist()] == expected[start:stop]

"""``job report --label-next``: which rows to label; and the labels of each mode."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import Result
from tests.labeled_runs import probs_of, write_run
from tests.test_report import report_of

RunJob = Callable[..., Result]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Return a run of 100 rows, of which the first 10 have gold, and the last ones are the least certain."""
    answers = ["yes" if n % 2 else "no" for n in range(100)]
    kept = {"id": [f"r{n}" for n in range(100)], "gold": ["yes"] * 10 + [None] * 90}
    values = probs_of(answers, [0.99 - n / 250 for n in range(100)])
    return write_run(tmp_path / "out", answers, values=values, kept=kept, id_column="id")


def test_half_is_uncertain_and_half_is_random(run_job: RunJob, wide: Path, tmp_path: Path) -> None:
    """None of them has gold. The file does not show what the model says; the same seed chooses the same rows."""
    args = ["report", wide, "--gold", "gold", "--label-next", 20]
    result = run_job(*args, "--label-next-to", tmp_path / "next.csv")
    assert result.exit_code == 0 and "20 rows: 10 at random, 10 of which the model is least certain" in result.stdout
    rows = pl.read_csv(tmp_path / "next.csv")
    assert rows.columns == ["row_idx", "stratum", "gold", "id", "prompt"] and rows["gold"].null_count() == 20
    strata = {name: set(rows.filter(pl.col("stratum") == name)["row_idx"]) for name in ("random", "uncertain")}
    left = [n for n in range(99, 9, -1) if n not in strata["random"]]
    assert strata["uncertain"] == set(left[:10]) and len(strata["random"]) == 10
    assert min(strata["random"]) >= 10 and rows["row_idx"].to_list() != sorted(rows["row_idx"])
    again = json.loads(run_job(*args, "--json").stdout)["label_next"]
    assert [row["row_idx"] for row in again] == rows["row_idx"].to_list() and again[0]["confidence"] < 1
    result = run_job(*args, "--label-next-to", tmp_path / "next.csv")
    assert result.exit_code == 2 and "--label-next-to" in result.stderr and "--force" in result.stderr


def test_the_random_rows_are_a_random_sample(run_job: RunJob, wide: Path) -> None:
    """Each of the 90 rows is as likely as any other, whatever its uncertainty: 5 of 90 in each of 100 draws."""
    drawn = Counter[int]()
    for seed in range(60):
        args = ["report", wide, "--gold", "gold", "--label-next", 10, "--seed", seed, "--json"]
        rows = json.loads(run_job(*args).stdout)["label_next"]
        drawn.update(row["row_idx"] for row in rows if row["stratum"] == "random")
    uncertain = sum(drawn[n] for n in range(55, 100))
    assert drawn.total() == 300 and abs(uncertain - 150) < 4 * np.sqrt(75)


def test_the_labeled_file_is_read_back(run_job: RunJob, wide: Path, tmp_path: Path) -> None:
    """Rows that were chosen as uncertain are left out of all numbers."""
    run_job("report", wide, "--label-next", 20, "--label-next-to", tmp_path / "next.jsonl")
    rows = pl.read_ndjson(tmp_path / "next.jsonl", schema_overrides={"gold": pl.String})
    filled = rows.with_columns(gold=pl.when(pl.col("stratum") == "random").then(pl.lit("yes")).otherwise(pl.lit("no")))
    filled.write_csv(tmp_path / "filled.csv")
    args = [wide, "--gold", "gold", "--gold-file", tmp_path / "filled.csv"]
    gold = report_of(run_job, *args)["gold"]
    assert (gold["rows"], gold["rows_chosen_as_uncertain"], gold["rows_without_gold"]) == (10, 10, 80)
    assert [row["gold"] for row in gold["classes"]] == [10, 0]
    assert gold["notes"] == [] and "10 chosen as uncertain are left out" in run_job("report", *args).stdout
    result = run_job(
        "report", wide, "--gold", "gold", "--gold-file", tmp_path / "filled.csv", "--label-next", 5, "--json"
    )
    taken = {row["row_idx"] for row in json.loads(result.stdout)["label_next"]}
    assert not taken & set(rows["row_idx"])
    filled.drop("stratum").write_csv(tmp_path / "filled.csv")
    gold = report_of(run_job, *args)["gold"]
    assert (gold["rows"], gold["rows_chosen_as_uncertain"]) == (20, 0)
    note = "20 rows of --gold-file counted as chosen at random: column 'stratum', which --label-next writes, does not"
    assert note in run_job("report", *args).stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label-next-to", "x.csv"], "without --label-next"),
        (["--label-next", "5", "--label-next-to", "x.txt"], "must end in .csv, .jsonl or .parquet"),
        (["--label-next", "5", "--label-next-to", "nix/x.csv"], "the directory nix does not exist"),
        (["--label-next", "0"], "--label-next"),
    ],
)
def test_what_cannot_be_chosen_is_refused(run_job: RunJob, wide: Path, args: list[str], message: str) -> None:
    result = run_job("report", wide, *args)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_more_rows_than_there_are(run_job: RunJob, wide: Path, tmp_path: Path) -> None:
    result = run_job("report", wide, "--gold", "gold", "--label-next", 500, "--json")
    assert len(json.loads(result.stdout)["label_next"]) == 90
    full = write_run(tmp_path / "full", ["yes", "no"], kept={"gold": ["yes", "no"]})
    result = run_job("report", full, "--gold", "gold", "--label-next", 1)
    assert result.exit_code == 2 and "every row has gold already" in result.stderr


def test_gold_that_is_no_random_sample_is_noticed(run_job: RunJob, tmp_path: Path) -> None:
    answers = ["yes"] * 200 + ["no"] * 200
    first = write_run(tmp_path / "a", answers, kept={"gold": ["yes"] * 60 + [None] * 340})
    assert "if the rows with gold were not chosen at random" in run_job("report", first, "--gold", "gold").stdout
    spread = write_run(tmp_path / "b", answers, kept={"gold": ["yes" if n % 7 == 0 else None for n in range(400)]})
    assert "not chosen at random" not in run_job("report", spread, "--gold", "gold").stdout


STRUCTURED = {
    "structured": {
        "json_schema": '{"type": "object", "properties": {"s": {"enum": ["a", "b"]}, "n": {"type": "integer"}}}'
    }
}


def test_labels_of_each_mode(run_job: RunJob, tmp_path: Path) -> None:
    """A vote, a mean over lines of thought, a classifier, a property of JSON, an answer; several samples."""
    gold = {"gold": ["yes"] * 4}
    votes = write_run(
        tmp_path / "votes",
        ["yes", "no", "no", None],
        modes={"aggregate": {"aggregate": "majority"}},
        values={"majority": ["yes", "yes", "no", "no"], "majority_share": [0.5, 0.5, 0.5, 0.5]},
        kept=gold,
        num_samples=2,
    )
    found = report_of(run_job, votes, "--gold", "gold")
    assert (found["label"], found["rows"], found["samples"], found["gold"]["right"]) == ("majority", 2, 2, 1)
    assert found["gold"]["calibration"]["confidence"] == 0.5
    samples = write_run(
        tmp_path / "s", ["yes", "no", "no", "yes", None, "no"], kept={"gold": ["yes"] * 6}, num_samples=3
    )
    found = report_of(run_job, samples, "--gold", "gold")
    assert found["labels"] == {"yes": 1, "no": 1} and found["gold"]["accuracy"]["value"] == 0.5
    means = write_run(
        tmp_path / "means",
        ["yes", "no", "no", "yes"],
        modes={"choices": {"choices": [" yes", " no"], "choice_mean": True}},
        values={"mean_choice": ["yes", "yes", "no", "no"], "mean_choice_probs": [[0.6, 0.4]] * 2 + [[0.3, 0.7]] * 2},
        kept=gold,
        num_samples=2,
    )
    found = report_of(run_job, means, "--gold", "gold")
    assert (found["label"], found["gold"]["calibration"]["confidence"]) == ("mean_choice", pytest.approx(0.65))
    classes = write_run(
        tmp_path / "classes",
        ["yes", "no", "no"],
        modes={"classify": {"problem": "single_label_classification", "labels": ["yes", "no"]}},
        values={"label": ["yes", "no", "no"], "label_prob": [0.9, 0.8, 0.7], "label_probs": [[0.9, 0.1]] * 3},
        kept={"gold": [True, False, True]},
    )
    args = ["--gold", "gold", "--gold-map", "true=yes", "--gold-map", "false=no"]
    found = report_of(run_job, classes, *args)
    assert found["label"] == "label" and found["gold"]["right"] == 2
    answers = write_run(
        tmp_path / "answers",
        ["#### 3", "?"],
        modes={"extraction": {"extract": "(.)"}},
        values={"answer": ["3", None]},
        kept={"gold": [3.0, 4.0]},
    )
    found = report_of(run_job, answers, "--gold", "gold")
    assert found["without_label"] == 1 and found["gold"]["confusion"]["counts"] == [[1, 0, 0], [0, 0, 1]]
    parsed = write_run(
        tmp_path / "parsed",
        ['{"s": "a", "n": 1}', "{"],
        modes=STRUCTURED,
        values={"parsed": [{"s": "a", "n": 1}, None]},
        kept={"gold": ["a", "b"], "n": [1, 2]},
    )
    assert report_of(run_job, parsed, "--gold", "gold")["label"] == "parsed.s"
    assert report_of(run_job, parsed, "--gold", "n", "--label", "parsed.n")["gold"]["right"] == 1
    nothing = write_run(tmp_path / "plain", ["a", "b"], modes={}, kept={"gold": ["a", "a"]})
    result = run_job("report", nothing, "--gold", "gold")
    assert result.exit_code == 2 and "has no column of labels" in result.stderr
    assert report_of(run_job, nothing, "--gold", "gold", "--label", "completion")["gold"]["right"] == 1


def test_class_labels_of_datasets_are_read_by_their_names(run_job: RunJob, tmp_path: Path) -> None:
    features = {"gold": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    run = write_run(tmp_path / "a", ["yes", "no"], kept={"gold": [1, 1]}, features=features)
    assert report_of(run_job, run, "--gold", "gold")["gold"]["confusion"]["counts"] == [[1, 1, 0], [0, 0, 0]]


def test_free_texts_are_right_or_wrong(run_job: RunJob, tmp_path: Path) -> None:
    """With more classes than can be told apart, there is an accuracy and nothing else."""
    answers = [str(n) for n in range(150)]
    run = write_run(tmp_path / "a", answers, modes={}, kept={"gold": answers[:140] + ["x"] * 10})
    found = report_of(run_job, run, "--gold", "gold", "--label", "completion")["gold"]
    assert found["right"] == 140 and found["kappa"]["value"] is None and found["classes"] == []
    assert "93.3 % [" in run_job("report", run, "--gold", "gold", "--label", "completion").stdout

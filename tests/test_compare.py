"""``job compare``: two runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from job.report import text_differences
from job.report.accuracy import NONE
from job.report.agreement import agree, mcnemar, pair
from tests.conftest import Result
from tests.labeled_runs import probs_of, write_run
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]


def compared(run_job: RunJob, *args: Any) -> Any:
    """Return what ``--json`` prints."""
    result = run_job("compare", *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_mcnemar_is_the_binomial_test() -> None:
    for only_a, only_b in ((0, 0), (0, 1), (3, 3), (1, 9), (40, 61), (700, 500), (30_000, 30_500)):
        expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-6, abs=1e-11)


def test_agreement_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    a = random.integers(-1, 3, 300)
    b = np.where(random.random(300) < 0.5, a, random.integers(-1, 3, 300))
    gold = np.where(random.random(300) < 0.3, a, NONE)
    found = agree(a, b, gold, "abc", 0.95)
    assert found.num_equal == (a == b).sum() and found.agreement.value == pytest.approx((a == b).mean())
    assert found.kappa.value == pytest.approx(cohen_kappa_score(a, b))
    assert np.array(found.table)[0, 3] == ((a == 0) & (b == NONE)).sum()
    name, share = found.of_classes[1]
    assert name == "b" and share.a == pytest.approx((a == 1).mean())
    assert (share.only_a, share.only_b) == (((a == 1) & (b != 1)).sum(), ((b == 1) & (a != 1)).sum())
    assert found.right is not None and found.num_gold == (gold != NONE).sum() and found.right.a == 1


def test_a_difference_covers_the_truth() -> None:
    """The interval of a paired difference, against the normal one; rows that are all equal are no certainty."""
    random = np.random.default_rng(5)
    a, b = random.random(400) < 0.7, random.random(400) < 0.8
    found = pair(a, b, 0.9).difference
    error = (b.astype(float) - a).std() / 20
    assert [found.low, found.high] == pytest.approx(
        [found.value - 1.645 * error, found.value + 1.645 * error], abs=0.01
    )
    equal = pair(a[:40], a[:40], 0.9).difference
    assert equal.value == 0 and equal.low == pytest.approx(-0.033, abs=0.005) == -equal.high


A = ["yes", "yes", "no", "no", None, "yes"]
B = ["yes", "no", "no", "yes", "no", "no"]
IDS = [f"r{n}" for n in range(6)]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Return two runs over the same 6 rows, one of which is an error in the first."""
    kept = {"id": IDS, "gold": ["yes", "yes", "no", None, "no", "no"]}
    options: Any = {"kept": kept, "id_column": "id"}
    a = write_run(tmp_path / "a", A, values=probs_of(A, [0.9, 0.8, 0.7, 0.6, 0, 0.55]), **options)
    b = write_run(tmp_path / "b", B, values=probs_of(B, [0.9] * 6), model="org/other", **options)
    return a, b


def test_labels_side_by_side(run_job: RunJob, runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = compared(run_job, *runs, "--gold", "gold", "--to", tmp_path / "d.csv")
    assert (found["by"], found["rows"], found["only_b"], found["errors"]) == ("row_idx", 5, 1, {"a": 1, "b": 0})
    labels = found["labels"]
    assert labels["equal"] == 2 and labels["table"]["counts"] == [[1, 2, 0], [1, 1, 0], [0, 0, 0]]
    accuracy = labels["gold"]["accuracy"]
    assert labels["gold"]["rows"] == 4 and (accuracy["a"], accuracy["b"]) == (0.75, 0.75)
    assert (accuracy["only_a"], accuracy["only_b"], accuracy["mcnemar_p"]) == (1, 1, 1.0)
    assert found["settings"][0] == {"name": "model", "a": "org/model", "b": "org/other"}
    rows = pl.read_csv(tmp_path / "d.csv").to_dicts()
    assert [row["row_idx"] for row in rows] == [1, 3, 5]
    assert rows[0] == {
        "row_idx": 1,
        "a": "yes",
        "b": "no",
        "gold": "yes",
        "confidence_a": 0.8,
        "confidence_b": 0.9,
        "id": "r1",
        "prompt": "prompt 1",
    }
    text = run_job("compare", *runs, "--gold", "gold", "--limit", 1).stdout
    assert "row 1: a yes (0.80), b no (0.90), gold yes\n  | prompt 1\n... and 2 more rows that differ" in text
    assert "5 rows in both, matched by row_idx; 1 error in a; 1 only in b" in text
    assert "... and 1 more row that differs;" in run_job("compare", *runs, "--limit", 2).stdout


def test_texts_side_by_side(run_job: RunJob, tmp_path: Path) -> None:
    """Without labels, completions are compared, whatever their modes."""
    a = write_run(tmp_path / "a", ["same", "abcd", "ab", None], modes={})
    b = write_run(tmp_path / "b", ["same", "abXd", "abc", "x"], modes={})
    found = compared(run_job, a, b, "--to", tmp_path / "d.parquet")
    assert found["texts"]["equal_rows"] == 1 and found["texts"]["median_first_difference"] == 2
    assert pl.read_parquet(tmp_path / "d.parquet")["first_difference"].to_list() == [2, 2]
    assert "  a | abcd\n  b | abXd" in run_job("compare", a, b).stdout
    same = run_job("compare", a, a)
    assert same.exit_code == 0 and "100.0 % [43.9, 100.0]: 3 of 3 completions" in same.stdout
    result = run_job("compare", a, b, "--gold", "gold")
    assert result.exit_code == 2 and "--gold is for labels" in result.stderr


def test_other_rows_are_matched_by_id(run_job: RunJob, runs: tuple[Path, Path], tmp_path: Path) -> None:
    order = [5, 0, 3]
    answers = [B[n] for n in order]
    kept = {"id": [IDS[n] for n in order]}
    other = write_run(
        tmp_path / "c", [*answers, "no"], kept={"id": [*kept["id"], "new"]}, id_column="id", fingerprint="1"
    )
    found = compared(run_job, runs[0], other)
    assert (found["by"], found["rows"], found["only_a"], found["only_b"]) == ("id", 3, 2, 1)
    assert found["labels"]["equal"] == 1
    assert "dataset fingerprint" in {setting["name"] for setting in found["settings"]}
    texts = compared(run_job, runs[0], other, "--texts", "--by", "row_idx")
    assert texts["rows"] == 4 and texts["texts"]["equal_rows"] == 2


def test_what_cannot_be_matched_is_refused(run_job: RunJob, runs: tuple[Path, Path], tmp_path: Path) -> None:
    double = write_run(tmp_path / "d", ["yes", "no"], kept={"id": ["r0", "r0"]}, id_column="id", fingerprint="1")
    plain = write_run(tmp_path / "e", ["yes", "no"], kept={"text": ["x", "y"]}, fingerprint="2")
    other = write_run(tmp_path / "f", ["yes"], kept={"id": ["z"]}, id_column="id", fingerprint="3")
    begun = write_run(tmp_path / "g", ["yes"], num_parts=0)
    failed = write_run(tmp_path / "h", [None, None], kept={"id": ["r0", "r1"]}, id_column="id")
    for args, message in (
        ([runs[0], double], "Column 'id' has 'r0' 2 times in one run"),
        ([runs[0], plain], "The two runs read different datasets"),
        ([runs[0], plain, "--by", "text"], "has no column 'text'"),
        (
            [runs[0], other],
            "No row is in both runs (5 and 1 rows with a completion, matched by id: 'r0' in the first, 'z'",
        ),
        ([runs[0], failed], "the runs have 5 and 0 rows that are finished without an error"),
        ([*runs, "--confidence", "nan"], "--confidence is nan"),
        ([runs[0], begun], "not in a part yet"),
        ([runs[0], tmp_path / "nix"], "is not a run directory"),
        ([*runs, "--to", "x.txt"], "the name must end in .csv, .jsonl or .parquet"),
        ([*runs, "--to", runs[1] / "x.csv"], "is in the run directory"),
    ):
        result = run_job("compare", *args)
        assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1, args
        assert message in result.stderr, result.stderr


def test_gold_of_a_file_is_read_once_for_both(run_job: RunJob, runs: tuple[Path, Path], tmp_path: Path) -> None:
    gold = write_jsonl(tmp_path / "g.jsonl", [{"id": "r1", "gold": "yes"}, {"id": "r5", "gold": "no"}])
    accuracy = compared(run_job, *runs, "--gold", "gold", "--gold-file", gold)["labels"]["gold"]["accuracy"]
    assert (accuracy["a"], accuracy["b"], accuracy["only_a"], accuracy["only_b"]) == (0.5, 0.5, 1, 1)


def test_texts_of_other_orders_and_lengths(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matched by id in another order, more pairs that differ than Python holds at once, and wide letters."""
    a = [f"{'ä' * (n % 3)}same {n}" for n in range(40)]
    b = [text if n % 4 else f"{text}!" for n, text in enumerate(a)]
    ids = [f"r{n}" for n in range(40)]
    first = write_run(tmp_path / "a", a, modes={}, kept={"id": ids}, id_column="id")
    second = write_run(tmp_path / "b", b[::-1], modes={}, kept={"id": ids[::-1]}, id_column="id", fingerprint="1")
    monkeypatch.setattr(text_differences, "AT_ONCE", 3)
    found = compared(run_job, first, second, "--to", tmp_path / "d.jsonl")
    assert (found["by"], found["texts"]["equal_rows"]) == ("id", 30)
    lengths = found["texts"]["mean_characters"]
    assert lengths == {"a": pytest.approx(np.mean([len(text) for text in a])), "b": pytest.approx(lengths["a"] + 0.25)}
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [(row["id"], row["first_difference"]) for row in rows] == [(f"r{n}", len(a[n])) for n in range(0, 40, 4)]


def test_what_may_surprise_is_noted(run_job: RunJob, tmp_path: Path) -> None:
    """Labels that differ in case alone, and a label that several samples have voted for."""
    first = write_run(tmp_path / "a", ["yes", "no"])
    modes = {"choices": {"choices": ["Yes", "no"]}}
    second = write_run(tmp_path / "b", ["Yes", "Yes", "no", "no", "Yes", "no"], modes=modes, num_samples=3)
    found = compared(run_job, first, second)
    assert found["labels"]["equal"] == 1 and found["notes"] == [
        "of several samples of a row, the label is what most of them say",
        "labels of a and b that differ in case alone count as different: 'yes' and 'Yes'",
    ]
    assert compared(run_job, first, first)["notes"] == []

"""``job verify --recompute``: rows of a run are computed again; a faulty worker is found and named."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from job.engine.logits.margin import Margin
from job.engine.model.logit_hooks import DISTURB
from job.records import Request
from job.tasks import Generate, SamplingParams
from tests.conftest import Result
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]

NUM_ROWS = 12

GREEDY = ["--max-new-tokens", 12]
DRAWN = [
    "--max-new-tokens",
    6,
    "--temperature",
    0.8,
    "--top-p",
    0.9,
    "--repetition-penalty",
    1.2,
    "--num-samples",
    2,
    "--logprobs",
]
CHOICES = ["--choices", " yes", "--choices", " no, not at all"]


@pytest.fixture
def two_hosts(tiny_model: Any, tmp_path: Path, run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a run of two hosts, of which the second one is faulty, and returns its directory."""

    def run(*options: Any, scale: float = 3.0, model: Path | None = None, **columns: Any) -> Path:
        rows = [{"prompt": f"what is {idx} times {idx * idx}"} for idx in range(NUM_ROWS)]
        for name, values in columns.items():
            rows = [{**row, name: values[idx % len(values)]} for idx, row in enumerate(rows)]
        data, out = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "out"
        args = ["run", "--model", model or tiny_model(), "--dataset", data, "--rows-per-shard", 4, "--output", out]
        args += ["--dtype", "float32"]
        for host, limit in (("good", NUM_ROWS // 2), ("bad", NUM_ROWS)):
            monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
            monkeypatch.setenv(DISTURB, f"bad-:{scale}")
            result = run_job(*args, *options, "--limit", limit)
            assert result.exit_code == 0, result.stderr
        monkeypatch.delenv(DISTURB)
        return out

    return run


def found(run_job: RunJob, out: Path, *options: Any, number: int = 100) -> dict[str, Any]:
    result = run_job("verify", out, "--recompute", number, "--json", *options)
    assert result.stdout, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (1 if report["different"] or report["failed"] else 0)
    return report


@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        DRAWN,
        [*GREEDY, "--regex", "[a-z]{3,9}( [a-z]{2,9})?"],
        CHOICES,
        [*CHOICES, "--temperature", 1, "--choice-calibration", "N/A"],
        ["--score-column", "text", "--token-logprobs"],
    ],
    ids=["greedy", "drawn", "regex", "choices", "drawn-choices", "scores"],
)
def test_a_faulty_worker_is_found_and_named(two_hosts: Any, run_job: RunJob, options: list[Any]) -> None:
    out = two_hosts(*options, text=["It is zero.", "Nobody knows", "many"])
    report = found(run_job, out)
    good, bad = sorted(report["workers"], key=lambda each: each["host"] == "bad")
    num_samples = 2 if "--num-samples" in options else 1
    assert (good["host"], good["equal"], good["near_tie"] + good["different"]) == ("good", 6 * num_samples, 0)
    assert bad["host"] == "bad" and bad["different"] > 0 and bad["failed"] == 0
    assert {row["host"] for row in report["rows"]} == {"bad"}
    assert report["recomputed"] == report["finished_rows"] == 12 * num_samples


@pytest.mark.parametrize(
    ("options", "scale", "gap"), [(GREEDY, 0.4, 0.8), ([*DRAWN, "--num-samples", 1], 1.5, 50)], ids=["greedy", "drawn"]
)
def test_ties_are_followed_to_the_end_of_the_row(
    two_hosts: Any, run_job: RunJob, options: list[Any], scale: float, gap: float
) -> None:
    """With a gap that calls all of the fault a tie, each disturbed row is explained as it was, token by token."""
    out = two_hosts(*options, scale=scale)
    report = found(run_job, out, "--tie-gap", gap)
    assert report["different"] == report["failed"] == 0 and report["near_tie"] > 0
    assert all(0 < row["gap"] < gap and row["ties"] > 0 and row["position"] >= 0 for row in report["rows"])
    assert max(row["ties"] for row in report["rows"]) > 1
    different = {(row["row_idx"], row["sample_idx"]) for row in found(run_job, out)["rows"]}
    assert different >= {(row["row_idx"], row["sample_idx"]) for row in report["rows"]}
    # The text in the part no longer follows from any tokens that could be chosen.
    for part in (out / "data").iterdir():
        table = pq.read_table(part)
        texts = ["\N{SNOWMAN}" * 4 + text for text in table["completion"].to_pylist()]
        table = table.set_column(table.schema.get_field_index("completion"), "completion", [texts])
        pq.write_table(table.cast(pq.read_schema(part)), part)
    assert found(run_job, out, "--tie-gap", 1e-6, number=3)["different"] == 3


def test_the_report_names_host_and_worker(two_hosts: Any, run_job: RunJob) -> None:
    out = two_hosts(*GREEDY)
    result = run_job("verify", out, "--recompute", 4)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1:3] == [
        "  recomputed 4 of 12 finished rows",
        "  how        each row alone, float32 on cpu, engine paged",
    ]
    [header] = [idx for idx, line in enumerate(lines) if line.split()[:2] == ["host", "worker"]]
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["bad", "good"]
    assert sum(int(number) for line in lines[header + 1 : header + 3] for number in line.split()[2:]) == 4
    assert "different, from token" in result.stdout and "do not trust" in lines[-1]
    static = found(run_job, out, "--engine", "static", "--max-batch-rows", 8)
    assert static["workers"][1]["equal"] == 6 and static["different"] > 0
    # Parts of older versions do not say who wrote them.
    for part in (out / "data").iterdir():
        table = pq.read_table(part)
        pq.write_table(table, part)
    assert [each["host"] for each in found(run_job, out)["workers"]] == ["unknown"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out, data: data.write_text(data.read_text().replace("times", "plus")), "--dataset"),
        (lambda out, data: data.unlink(), "The prompts are in the parts"),
        (lambda out, data: [part.unlink() for part in (out / "data").iterdir()], "has no finished row"),
    ],
    ids=["changed", "gone", "unfinished"],
)
def test_rows_are_recomputed_only_from_what_the_run_read(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, change: Any, said: str
) -> None:
    data, out = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "how many times"}]), tmp_path / "out"
    args = ["run", "--model", tiny_model(), "--dataset", data, "--output", out, "--engine", "fake"]
    assert run_job(*args).exit_code == 0
    shutil.copy(data, tmp_path / "copy.jsonl")
    change(out, data)
    result = run_job("verify", out, "--recompute", 1)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") <= 3, result.stderr
    if said != "has no finished row":
        moved = run_job("verify", out, "--recompute", 1, "--dataset", tmp_path / "copy.jsonl")
        assert moved.exit_code == 0 and "  equal      1\n" in moved.stdout, moved.stderr


def test_options_without_effect_are_refused(run_job: RunJob, tmp_path: Path) -> None:
    result = run_job("verify", tmp_path, "--device", "cpu")
    assert result.exit_code == 2 and "--device has no effect without --recompute" in result.stderr


def test_the_gap_is_what_a_logit_lacks() -> None:
    """Greedily, after a repetition penalty, and in a draw: with its gap added, and not with less, a token wins."""
    logits = torch.tensor([1.0, 3.0, 2.5, -1.0])

    def margin(logits: torch.Tensor = logits, **params: Any) -> Margin:
        task = Generate(params=SamplingParams(**params))
        request = Request(row_idx=5, sample_idx=0, prompt_ids=[1], task=task)
        return Margin(logits, request, [1], [], frozenset())

    assert [margin().gap(token) for token in range(4)] == pytest.approx([2, 0, 0.5, 4], rel=2e-2)
    assert margin(repetition_penalty=2.0).gap(1) == pytest.approx(1, rel=2e-2), "3 / 2 is 1 below 2.5"
    drawn = {"temperature": 1.0, "top_k": 3, "seed": 4}
    gaps = [margin(**drawn).gap(token) for token in range(4)]
    assert gaps.count(0.0) == 1
    for token, gap in enumerate(gaps):
        raised = [logits.index_add(0, torch.tensor([token]), torch.tensor([gap * factor])) for factor in (1.02, 0.9)]
        lowered = [margin(each, **drawn).gap(token) for each in raised]
        assert gap == 0 or (lowered[0] == 0 and lowered[1] > 0)
    assert margin(bad_token_ids=((2,),)).gap(2) == float("inf")


def test_retried_rows_are_recomputed_with_their_own_options(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """And error rows are left out."""
    rows = [{"prompt": None if idx == 3 else "how many times"[: idx + 1]} for idx in range(10)]
    data, out = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "out"
    args = ["run", "--model", tiny_model(), "--dataset", data, "--output", out, "--engine", "fake"]
    args += ["--max-new-tokens", 4, "--max-error-rate", 1]
    assert run_job(*args).exit_code == 0
    assert run_job("retry", out, "--cut", "--max-new-tokens", 8).exit_code == 0
    assert run_job(*args).exit_code == 0
    report = found(run_job, out)
    assert (report["equal"], report["recomputed"], report["error_rows"]) == (9, 9, 1)

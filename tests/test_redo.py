"""``job retry`` by what came out: which rows are recomputed, with which limits, and where that is recorded."""

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.parts import plan, shard
from job.output.parts.counts import METADATA_KEY as COUNTS
from job.output.parts.redone import METADATA_KEY, from_metadata, to_metadata
from job.output.parts.retry_marks import Mark
from job.records import Request
from job.run.changed_requests import changed
from job.tasks import Generate, SamplingParams
from tests.conftest import Result
from tests.run_files import files_of
from tests.test_resume import exit_codes, kill_some, start_workers
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]

NUM_ROWS = 30


@pytest.fixture
def args(tiny_model: Any, tmp_path: Path) -> list[Any]:
    """Return the command line of a run of three parts whose prompts have 1 to 10 tokens or so; some are null."""
    rows = [{"id": i, "prompt": None if i % 10 == 9 else "ab " * (i % 10 + 1)} for i in range(NUM_ROWS)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    return [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--rows-per-shard", 10],
        *["--keep-columns", "id", "--max-error-rate", 1, "--num-samples", 2, "--temperature", 1],
    ]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Return a list that gains every request that reaches the engine."""
    requests: list[Request] = []
    submit = FakeEngine.submit

    def record(self: Any, request: Request) -> None:
        requests.append(request)
        submit(self, request)

    monkeypatch.setattr(FakeEngine, "submit", record)
    return requests


def recorded(output: Path) -> dict[tuple[int, int], str]:
    """Return the rows that were recomputed with other options, from the metadata of all parts."""
    found: dict[tuple[int, int], str] = {}
    for part in sorted((output / "data").iterdir()):
        found |= from_metadata(pq.read_metadata(part).metadata)
    return found


def keys_where(output: Path, name: str, value: Any) -> list[tuple[int, int]]:
    rows = read_output(output).select(["row_idx", "sample_idx", name]).to_pylist()
    return [(row["row_idx"], row["sample_idx"]) for row in rows if row[name] == value]


def test_rows_that_were_cut_are_recomputed_with_a_larger_limit(
    run_job: RunJob, args: list[Any], submitted: list[Request], tmp_path: Path
) -> None:
    """Twice. What a run with the larger limit gives, they are; the others are as before."""
    out, run = tmp_path / "out", [*args, "--output", tmp_path / "out", "--max-new-tokens", 6]
    assert run_job(*run).exit_code == 0
    record: dict[tuple[int, int], str] = {}
    for limit in (10, 14):
        wide = tmp_path / str(limit)
        assert run_job(*args, "--output", wide, "--max-new-tokens", limit).exit_code == 0
        before, cut = read_output(out), keys_where(out, "finish_reason", "length")
        result = run_job("retry", out, "--cut", "--max-new-tokens", limit)
        num = len(cut)
        assert result.stdout == f"{num} samples will be recomputed (cut {num}). Run the same command as before.\n"
        assert read_output(out).equals(before), "the parts stay readable until they are replaced"
        seen = json.loads(run_job("status", out, "--json").stdout)["rows"]
        assert (seen["done"], seen["total"]) == (2 * NUM_ROWS - num, 2 * NUM_ROWS)
        checked = run_job("verify", out)
        assert checked.exit_code == 75 and "  retry    rows in 3 parts\n" in checked.stdout
        submitted.clear()
        again = run_job(*run)
        assert again.exit_code == 0, again.stderr
        assert sorted(request.key for request in submitted) == cut
        assert {request.task.params.max_new_tokens for request in submitted} == {limit}
        record |= dict.fromkeys(cut, f"--max-new-tokens {limit}")
        assert recorded(out) == record
        assert read_output(out).equals(read_output(wide))
        assert run_job("verify", out).exit_code == 0 and not list((out / "retry").iterdir())
        assert json.loads(run_job("status", out, "--json").stdout)["rows"]["done"] == 2 * NUM_ROWS
    numbers = [sum(options.endswith(str(limit)) for options in record.values()) for limit in (10, 14)]
    assert min(numbers) > 0
    parts = sorted(((number, limit) for number, limit in zip(numbers, (10, 14), strict=True)), reverse=True)
    line = ", ".join(f"{number} with --max-new-tokens {limit}" for number, limit in parts)
    assert line in again.stdout and line in (out / "README.md").read_text()
    assert "completions reached --max-new-tokens 6 or a limit of their own" in again.stdout
    assert "already done" in run_job(*run).stderr


def test_a_kill_before_the_marker_is_removed_retries_what_is_still_meant(
    run_job: RunJob, args: list[Any], submitted: list[Request], tmp_path: Path
) -> None:
    """The table and the record stay as they are, and nothing is counted twice meanwhile."""
    out, run = tmp_path / "out", [*args, "--output", tmp_path / "out", "--max-new-tokens", 6]
    assert run_job(*run).exit_code == 0
    assert run_job("retry", out, "--cut", "--max-new-tokens", 10).exit_code == 0
    markers = {path: path.read_bytes() for path in (out / "retry").iterdir()}
    assert run_job(*run).exit_code == 0
    table, record = read_output(out), recorded(out)
    for path, content in markers.items():
        path.write_bytes(content)
    assert json.loads(run_job("status", out, "--json").stdout)["rows"]["done"] == 2 * NUM_ROWS
    submitted.clear()
    assert run_job(*run).exit_code == 0
    assert [request.key for request in submitted] == keys_where(out, "finish_reason", "length")
    assert read_output(out).equals(table) and recorded(out) == record


def test_a_row_that_is_recomputed_as_the_run_says_loses_its_record(
    run_job: RunJob, args: list[Any], tmp_path: Path
) -> None:
    out, run = tmp_path / "out", [*args, "--output", tmp_path / "out", "--max-new-tokens", 6]
    assert run_job(*run).exit_code == 0
    result = run_job("retry", out, "--kind", "null_prompt", "--cut", "--seed", 7)
    assert "null_prompt 6" in result.stdout
    assert run_job(*run).exit_code == 0
    errors = keys_where(out, "error_kind", "null_prompt")
    assert set(errors) < set(recorded(out))
    assert run_job("retry", out).stdout.startswith("6 samples will be recomputed (null_prompt 6).")
    assert run_job(*run).exit_code == 0
    assert sorted(recorded(out)) == keys_where(out, "finish_reason", "length")
    assert run_job("verify", out).exit_code == 0


@pytest.mark.parametrize("seed", range(int(os.environ.get("JOB_TEST_CASES", "1"))))
def test_kills_during_a_retry_lose_nothing(
    run_job: RunJob, args: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 3)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=2))
    out, log = tmp_path / "out", tmp_path / "log"
    run = [*map(str, args), "--output", str(out), "--max-new-tokens", "6"]
    assert run_job(*run).exit_code == 0
    assert run_job(*args, "--output", tmp_path / "wide", "--max-new-tokens", 10).exit_code == 0
    cut = keys_where(out, "finish_reason", "length")
    assert run_job("retry", out, "--cut", "--max-new-tokens", 10).exit_code == 0
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    for _ in range(2):
        kill_some(rng, run, log, 0.1, 0.6)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    assert exit_codes(start_workers(2, run, log)) == [0, 0], log.read_text()
    assert read_output(out).equals(read_output(tmp_path / "wide"))
    assert recorded(out) == dict.fromkeys(cut, "--max-new-tokens 10")
    assert run_job("verify", out).exit_code == 0


def test_rows_that_do_not_parse_are_recomputed_as_in_a_longer_run(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """With a real engine: from the beginning, and greedy in float32 as a run with that limit."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"row {i} " * (1 + i % 3)} for i in range(8)])
    base = ["run", "--model", tiny_model(), "--dtype", "float32", "--dataset", data, "--regex", "[a-e]{4,12}"]
    out = tmp_path / "out"
    for place, limit in ((out, 3), (tmp_path / "wide", 40)):
        assert run_job(*base, "--output", place, "--max-new-tokens", limit).exit_code == 0
    unparsed = keys_where(out, "parse_ok", False)
    assert unparsed
    result = run_job("retry", out, "--unparsed", "--max-new-tokens", 40)
    assert f"(unparsed {len(unparsed)})" in result.stdout
    assert run_job(*base, "--output", out, "--max-new-tokens", 3).exit_code == 0
    assert read_output(out).equals(read_output(tmp_path / "wide")) and sorted(recorded(out)) == unparsed
    assert run_job("retry", out, "--unparsed", "--max-new-tokens", 50).stdout == (
        "No finished row fails to parse: nothing to retry.\n"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cut"], "--cut alone would give the same completions again. Set --max-new-tokens above the run's 6, or"),
        (["--cut", "--max-new-tokens", 6], "or earlier. Set --max-new-tokens above the run's 6, or --seed"),
        (["--cut", "--max-new-tokens", 4], "--cut with --max-new-tokens 4 would cut them again, or earlier. Set"),
        (["--cut", "--max-new-tokens", 0], "--max-new-tokens is 0; it must be at least 1"),
        (["--max-new-tokens", 1], "--min-new-tokens is 2; it must be"),
        (["--cut", "--temperature", 0, "--seed", 1], "--seed has no effect: decoding is greedy."),
        (["--unparsed", "--seed", 1], "--unparsed is for runs with --json-schema, --regex or --grammar"),
        (["--kind", "engine_error", "--seed", 1], "--kind engine_error: no finished row has this error."),
    ],
)
def test_retries_that_change_nothing_are_refused(
    run_job: RunJob, args: list[Any], tmp_path: Path, options: list[Any], told: str
) -> None:
    assert (
        run_job(
            *args, "--output", tmp_path / "out", "--max-new-tokens", 6, "--min-new-tokens", 2, "--limit", 5
        ).exit_code
        == 0
    )
    result = run_job("retry", tmp_path / "out", *options)
    assert result.exit_code == 2 and told in result.stderr, result.stderr
    assert not (tmp_path / "out/retry").exists()


def test_a_run_with_choices_has_nothing_to_draw(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}, {"prompt": None}])
    run = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    assert run_job(*run, "--choices", "a", "--choices", "b", "--max-error-rate", 1).exit_code == 0
    result = run_job("retry", tmp_path / "out", "--max-new-tokens", 5)
    assert result.exit_code == 2
    assert "--max-new-tokens is for completions that are drawn. This run has --choices" in result.stderr


def test_marks_of_one_kind_add_up_and_others_are_refused(
    run_job: RunJob, args: list[Any], submitted: list[Request], tmp_path: Path
) -> None:
    """Journals hold rows of one kind only."""
    out, run = tmp_path / "out", [*args, "--output", tmp_path / "out", "--max-new-tokens", 6]
    assert run_job(*run).exit_code == 0
    wider = ["--max-new-tokens", 10]
    assert run_job("retry", out, "--cut", *wider).exit_code == 0
    refused = run_job("retry", out, "--kind", "null_prompt")
    assert refused.exit_code == 2 and (
        f"job: {out} has rows that are still to be recomputed with --max-new-tokens 10. Run the same" in refused.stderr
    )
    assert run_job("retry", out, "--kind", "null_prompt", *wider).exit_code == 0
    cut = keys_where(out, "finish_reason", "length")
    assert json.loads(run_job("status", out, "--json").stdout)["rows"]["done"] == 2 * NUM_ROWS - len(cut) - 6
    submitted.clear()
    assert run_job(*run).exit_code == 0
    assert sorted(request.key for request in submitted) == cut  # null prompts reach no engine
    assert len(recorded(out)) == len(cut) + 6


@pytest.mark.parametrize(
    "mark", [Mark(kinds=("a", "b")), Mark(kinds=()), Mark(cut=True, changes={"seed": 3}), Mark(kinds=(), unparsed=True)]
)
def test_a_marker_comes_back_as_it_was_written(mark: Mark) -> None:
    assert Mark.from_json(mark.to_json()) == mark


def test_older_versions_read_markers_of_errors_and_refuse_others() -> None:
    assert json.loads(Mark(kinds=("a",)).to_json()) == {"kinds": ["a"]}
    assert "kinds" not in json.loads(Mark(cut=True, changes={"seed": 3}).to_json())
    assert Mark.from_json(b'{"kinds": []}') == Mark(kinds=())


def test_joined_marks_mean_what_either_means() -> None:
    errors, cut = Mark(kinds=("a",)), Mark(cut=True)
    assert errors.joined(cut) == cut.joined(errors) == Mark(kinds=("a",), cut=True)
    assert errors.joined(Mark(kinds=("b",))) == Mark(kinds=("a", "b")) and errors.joined(Mark(kinds=())).kinds == ()
    assert cut.joined(Mark(unparsed=True)) == Mark(cut=True, unparsed=True)


def test_a_longer_answer_is_limited_by_the_room_of_the_model() -> None:
    request = Request(
        row_idx=0,
        sample_idx=0,
        prompt_ids=[1] * 90,
        task=Generate(params=SamplingParams(max_new_tokens=8, min_new_tokens=3)),
    )

    def limit(wanted: int) -> int:
        task = changed(request, {"max_new_tokens": wanted}, lambda num_tokens: 100 - num_tokens).task
        assert isinstance(task, Generate)
        return task.params.max_new_tokens

    assert (limit(9), limit(10), limit(11), limit(4), limit(2)) == (9, 10, 10, 4, 3)
    assert changed(request, {}, 100) is request


def test_verify_checks_what_is_said_to_be_recomputed(run_job: RunJob, args: list[Any], tmp_path: Path) -> None:
    out, run = tmp_path / "out", [*args, "--output", tmp_path / "out", "--max-new-tokens", 6]
    assert run_job(*run).exit_code == 0
    assert run_job("retry", out, "--cut", "--max-new-tokens", 10).exit_code == 0
    assert run_job(*run).exit_code == 0
    part = files_of(out).part(1)
    table, whole = pq.read_table(part), pq.read_metadata(part).metadata

    def checked(redone: dict[bytes, bytes]) -> str:
        with pq.ParquetWriter(part, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({COUNTS: whole[COUNTS], **redone})
        return run_job("verify", out).stdout

    assert "Correct and complete." in checked({METADATA_KEY: whole[METADATA_KEY]})
    assert "says that row_idx 3, sample_idx 0 was recomputed, which does not belong to this part" in checked(
        to_metadata({(3, 0): "--seed 1"})
    )
    assert "says redone {'--max-new-tokens 10': " in checked({})
    assert "it does not say which rows were recomputed" in checked({METADATA_KEY: b"[1]"})

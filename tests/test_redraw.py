"""``--retry-invalid``: which completions are drawn again, with which draws, and what is kept."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import job.engine.fake
from job.draws import next_seed, row_bits
from job.output.looking.found import find_run
from job.output.parts.counts import Counts
from job.records import Generation, Request
from job.run.open_shards import OpenShards
from tests.conftest import Result, finish, start_processes
from tests.serving import ask
from tests.test_resume import NUM_ROWS, NUM_SAMPLES, exit_codes, kill_some, run_args, start_workers
from tests.test_run import read_output, write_jsonl

__all__ = ["run_args"]

RunJob = Callable[..., Result]


def draw(request: Request) -> Generation:
    """Answer as a function of the draw: every other completion is cut."""
    [bits] = row_bits(request.task.params.seed, [request.key], [0])
    ids = list(request.prompt_ids)[: 1 + int(bits) % 3]
    return Generation(request=request, token_ids=ids, finish_reason="stop" if bits % 2 else "length")


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.engine.fake, "reverse_prompt", draw)


def expected_attempt(row_idx: int, sample_idx: int, max_retries: int) -> tuple[int, bool]:
    seed = 0
    for attempt in range(max_retries + 1):
        if row_bits(seed, [(row_idx, sample_idx)], [0])[0] % 2:
            return attempt, True
        seed = next_seed(seed)
    return max_retries, False


def test_each_sample_is_drawn_again_until_it_is_valid(
    run_job: RunJob, run_args: Any, drawing: None, tmp_path: Path
) -> None:
    args, output = run_args(tmp_path / "out"), tmp_path / "out"
    result = run_job(*args, "--retry-invalid", 2)
    assert result.exit_code == 0, result.stderr
    table = read_output(output)
    found = list(zip(*(table[name].to_pylist() for name in ("row_idx", "sample_idx")), strict=True))
    assert found == [(row, sample) for row in range(NUM_ROWS) for sample in range(NUM_SAMPLES)]
    for row in table.select(["row_idx", "sample_idx", "error", "attempt", "valid", "finish_reason"]).to_pylist():
        expected = (None, None) if row["error"] else expected_attempt(row["row_idx"], row["sample_idx"], 2)
        assert (row["attempt"], row["valid"]) == expected
        assert row["finish_reason"] == {True: "stop", False: "length", None: None}[expected[1]]
    num_again = pc.sum(pc.greater(table["attempt"], 0)).as_py()
    num_valid = pc.sum(pc.and_(pc.greater(table["attempt"], 0), table["valid"])).as_py()
    assert 0 < num_valid < num_again
    line = f"{num_again} of 204 completions were drawn again; {num_valid} became valid"
    assert line in result.stdout and line in (output / "README.md").read_text()
    assert line in run_job("status", output).stdout
    assert run_job("verify", output).exit_code == 0
    assert find_run(output).manifest.meaning["modes"]["redraw"] == {"retry_invalid": 2}


@pytest.mark.parametrize("seed", range(int(os.environ.get("JOB_TEST_CASES", "1"))))
def test_kills_change_nothing(
    run_job: RunJob, run_args: Any, drawing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A row is in a journal only when it is settled; with any number of workers the table is the same."""
    rng = random.Random(seed)
    retries = ["--retry-invalid", "3"]
    assert run_job(*run_args(tmp_path / "undisturbed"), *retries).exit_code == 0
    args, log = [*run_args(tmp_path / "out"), *retries], tmp_path / "log"
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.02")
    for _ in range(2):
        kill_some(rng, args, log, 0.1, 0.5)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    assert exit_codes(start_workers(2, args, log)) == [0, 0], log.read_text()
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "undisturbed"))


def test_equal_greedy_prompts_are_drawn_again_each_by_itself(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []

    def answer(request: Request) -> Generation:
        asked.append((request.row_idx, request.task.params.temperature))
        made = draw(request)
        return (
            made
            if request.task.params.temperature
            else Generation(request=request, token_ids=made.token_ids, finish_reason="length")
        )

    monkeypatch.setattr(job.engine.fake, "reverse_prompt", answer)
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "the same"}] * 20)
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    assert run_job(*base, "--retry-invalid", 1, "--retry-temperature", 0.7).exit_code == 0
    assert sorted(asked) == [(row, temperature) for row in range(20) for temperature in (0.0, 0.7)]
    table = read_output(tmp_path / "out")
    assert table["attempt"].to_pylist() == [1] * 20
    assert table["valid"].to_pylist() == [bool(row_bits(next_seed(0), [(row, 0)], [0])[0] % 2) for row in range(20)]


TEXT = [{"prompt": f"{i} is a number and {i * i} is its square" if i % 5 else "the same prompt"} for i in range(12)]


@pytest.mark.parametrize(("engine", "first"), [("paged", 0.0), ("static", 1.0)])
def test_an_attempt_is_a_run_with_its_seed(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, engine: str, first: float
) -> None:
    """In both engines: what attempt k gives is what a run with that seed and temperature gives."""
    data = write_jsonl(tmp_path / "data.jsonl", TEXT)
    base = ["run", "--engine", engine, "--model", tiny_model(), "--dtype", "float32", "--dataset", data]
    base += ["--max-new-tokens", 6, "--extract", "[aeiou][b-z]", "--max-batch-rows", 8]
    seed, plain = 0, list[pa.Table]()
    for attempt in range(3):
        options = [
            "--temperature",
            1.5 if attempt else first,
            *(["--seed", seed] if attempt else []),
            "--output",
            tmp_path / str(attempt),
        ]
        assert run_job(*base, *options).exit_code == 0
        plain.append(read_output(tmp_path / str(attempt)))
        seed = next_seed(seed)
    options = ["--retry-invalid", 2, "--retry-temperature", 1.5, "--temperature", first, "--output", tmp_path / "out"]
    result = run_job(*base, *options)
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    names = ["completion", "finish_reason", "answer", "num_completion_tokens"]
    for at, attempt in enumerate(table["attempt"].to_pylist()):
        kept = table.slice(at, 1)
        assert kept.select(names).equals(plain[attempt].slice(at, 1).select(names))
        is_right = kept["finish_reason"][0].as_py() == "stop" and kept["answer"][0].is_valid
        assert kept["valid"][0].as_py() == is_right and (is_right or attempt == 2)
        for earlier in plain[:attempt]:
            row = earlier.slice(at, 1)
            assert row["finish_reason"][0].as_py() == "length" or not row["answer"][0].is_valid
    assert run_job("verify", tmp_path / "out").exit_code == 0


def test_two_ranks_draw_again_as_one_process_does(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """With tensor parallelism, only the leader judges; the other rank computes what it is sent."""
    data = write_jsonl(tmp_path / "data.jsonl", TEXT)
    base = ["run", "--model", tiny_model(), "--dtype", "float32", "--dataset", data, "--max-new-tokens", 4]
    base += ["--temperature", 1, "--regex", "[ab]{1,6}", "--retry-invalid", 3, "--max-batch-rows", 8]
    assert run_job(*base, "--output", tmp_path / "one").exit_code == 0
    ranks = start_processes(["-m", "job", *base, "--output", tmp_path / "two", "--tensor-parallel-size", 2], 2)
    results = finish(ranks)
    assert [result.exit_code for result in results] == [0, 0], results
    one, two = (read_output(tmp_path / name) for name in ("one", "two"))
    assert one.equals(two) and max(one["attempt"].to_pylist()) > 0
    assert run_job("verify", tmp_path / "two").exit_code == 0


def test_what_is_cut_within_a_constraint_is_drawn_again(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", TEXT)
    base = ["run", "--model", tiny_model(), "--dtype", "float32", "--dataset", data, "--output", tmp_path / "out"]
    base += ["--max-new-tokens", 4, "--temperature", 1, "--regex", "[ab]{1,6}", "--retry-invalid", 8]
    assert run_job(*base, "--num-samples", 3, "--aggregate", "majority").exit_code == 0
    table = read_output(tmp_path / "out")
    assert table["valid"].equals(table["parse_ok"]) and max(table["attempt"].to_pylist()) > 0
    assert run_job("verify", tmp_path / "out").exit_code == 0
    # A part in which a row claims more attempts than were allowed is not right.
    [part] = (tmp_path / "out/data").iterdir()
    metadata = pa.parquet.read_schema(part).metadata
    wrong = table.set_column(
        table.schema.get_field_index("attempt"), "attempt", pa.array([9] * len(table), pa.int16())
    ).replace_schema_metadata(metadata)
    counts = json.dumps(json.loads(pa.parquet.read_metadata(part).metadata[b"job.counts"])).encode()
    pa.parquet.write_table(wrong.replace_schema_metadata(metadata | {b"job.counts": counts}), part)
    assert "an attempt other than 0 to 8" in run_job("verify", tmp_path / "out").stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--retry-invalid", 2], "--temperature is 0, so the same completion would come out. Set --retry-temperature"),
        (["--retry-temperature", 1], "--retry-temperature needs --retry-invalid. Give both."),
        (["--retry-invalid", -1, "--retry-temperature", 1], "--retry-invalid is -1; it must be 0 to 1000"),
        (["--retry-invalid", 1, "--retry-temperature", 0], "--retry-temperature is 0.0; it must be 0.00001 or more"),
        (["--retry-invalid", 1, "--temperature", 1, "--ignore-eos"], "every completion would be cut"),
        (
            ["--retry-invalid", 1, "--temperature", 1, "--choices", "a", "--choices", "b"],
            "Leave out --retry-invalid: nothing is",
        ),
    ],
)
def test_retries_that_cannot_be_are_refused(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, options: list[Any], told: str
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", TEXT)
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    result = run_job(*base, *options)
    assert result.exit_code == 2 and told in result.stderr, result.stderr


def test_options_of_draws_have_an_effect_on_retries(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """``--seed`` and ``--top-p`` need a temperature; that of retries is one."""
    data = write_jsonl(tmp_path / "data.jsonl", TEXT)
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--seed", 3, "--top-p", 0.9]
    assert run_job(*base, "--output", tmp_path / "a").exit_code == 2
    retries = ["--retry-invalid", 1, "--retry-temperature", 1]
    assert run_job(*base, *retries, "--output", tmp_path / "b").exit_code == 0


def test_a_repeated_request_of_a_shard_that_another_worker_has_finished_is_dropped() -> None:
    """Also one of a row that has come out in the meantime."""
    from collections import deque
    from types import SimpleNamespace

    shards: Any = object.__new__(OpenShards)
    shards.in_flight = SimpleNamespace(resumed=lambda request: request)
    shards._limit, shards.counts = SimpleNamespace(is_reached=lambda counts: False), Counts()
    request = ask([3], row_idx=5)
    shards._repeated, shards._feed, shards._prompts = deque(), iter(["next"]), {}
    shards._plan = SimpleNamespace(shard_of=lambda row_idx: row_idx)
    shards._open = {6: SimpleNamespace(has=lambda key: key == (6, 0))}
    shards.repeat(request, "prompt")
    shards.repeat(ask([3], row_idx=6), "prompt")
    shards.repeat(ask([3], row_idx=6, sample_idx=1), "prompt")
    assert shards.next_request().key == (6, 1) and list(shards._prompts) == [(6, 1)]
    assert shards.next_request() == "next"

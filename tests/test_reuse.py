"""``--reuse``: rows of other runs that ask the same are copied, all others are computed, and each is there once."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import job.engine.fake
from job.data.row_keys import key_of
from job.draws import seed_of_moved
from job.engine.fake import FakeEngine
from job.output.looking.found import find_run
from job.output.parts import plan, shard
from job.output.parts.copy_plan import COMPUTED
from job.output.parts.cut_rows import make_cut_log, read_cut_rows
from job.output.parts.known_rows import NOTHING, KnownRows, matched
from job.output.parts.partials import to_batch
from job.output.parts.redone import from_metadata
from job.output.parts.row_keys import read_keys
from job.records import KEY_BYTES, Partial, Row, RowError
from tests import chat_templates
from tests.conftest import Result
from tests.test_chat_templates import model_with
from tests.test_resume import exit_codes, start_until_journal_has, start_workers
from tests.test_run import read_output, submitted_by, write_jsonl

RunJob = Callable[..., Result]
ORIGIN = ["reused_from", "reused_row_idx"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"q": "1"}, {"q": 1}),
        ({"q": 1}, {"q": 1.0}),
        ({"q": 1}, {"q": True}),
        ({"q": None}, {"q": "None"}),
        ({"q": "a", "r": "b"}, {"q": "ab", "r": ""}),
        ({"q": ["a", "b"]}, {"q": ["a,b"]}),
        ({"q": [1, 23]}, {"q": [12, 3]}),
        ({"q": [["a"], "b"]}, {"q": [["a", "b"]]}),
        ({"q": {"a": 1, "b": 2}}, {"q": {"b": 2, "a": 1}}),
        ({"q": b"a"}, {"q": "a"}),
    ],
)
def test_rows_that_ask_something_else_have_other_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    keys = [key_of(Row(row_idx=0, values=values), ["q", "r"]) for values in (one, other)]
    assert keys[0] != keys[1] and None not in keys
    assert keys[0] == key_of(Row(row_idx=7, values={**one, "id": 3}), ["q", "r"])
    assert keys[0] != key_of(Row(row_idx=0, values=one), ["q"])


def test_a_row_that_cannot_be_read_has_no_key_and_half_a_character_has_one() -> None:
    assert key_of(Row(row_idx=0, values={}, error=RowError("invalid_json", "")), ["q"]) is None
    assert key_of(Row(row_idx=0, values={"q": "\ud800"}), ["q"]) != key_of(Row(row_idx=0, values={"q": "?"}), ["q"])


def keys_from(numbers: Sequence[int]) -> Any:
    keys = np.zeros((len(numbers), KEY_BYTES), np.uint8)
    for at, number in enumerate(numbers):
        if number:
            keys[at] = np.random.default_rng(number).integers(1, 256, KEY_BYTES)
    return keys


@pytest.mark.parametrize("seed", range(30))
def test_a_draw_goes_to_one_row_and_first_to_the_one_that_it_belongs_to(seed: int) -> None:
    rng = random.Random(seed)
    num_known, num_new, num_prompts = rng.randrange(1, 40), rng.randrange(1, 40), rng.randrange(1, 12)
    asked, new = ([rng.randrange(num_prompts) for _ in range(size)] for size in (num_known, num_new))
    drawn_at = [rng.randrange(num_known) for _ in range(num_known)]
    if seed % 2:
        drawn_at = rng.sample(range(num_known), num_known)
    known = KnownRows(
        keys=keys_from([1 + key for key in asked]),
        run=np.zeros(num_known, np.int16),
        row_idx=np.arange(num_known),
        drawn_at=np.array(drawn_at),
    )
    keys, first_row = keys_from(new), rng.randrange(5)  # 0: a row that asks nothing
    found = matched(known, keys, first_row, is_drawn=True).tolist()
    draws_of: dict[int, set[int]] = {}
    for place, key in enumerate(asked):
        draws_of.setdefault(1 + key, set()).add(drawn_at[place])
    taken = [drawn_at[place] for place in found if place != NOTHING]
    assert len(set(taken)) == len(taken), "two rows have the same random numbers"
    for at, place in enumerate(found):
        draws = draws_of.get(new[at], set())
        assert place == NOTHING or 1 + asked[place] == new[at]
        if first_row + at in draws:
            assert drawn_at[place] == first_row + at
    if len(set(drawn_at)) == num_known:  # each draw is known once, so none is left that a row could have
        for key, draws in draws_of.items():
            got = [drawn_at[place] for at, place in enumerate(found) if place != NOTHING and new[at] == key]
            assert len(got) == min(new.count(key), len(draws - ({*taken} - {*got})))
    greedy = matched(known, keys, first_row, is_drawn=False).tolist()
    assert [place != NOTHING for place in greedy] == [key in draws_of for key in new]
    assert all(place == NOTHING or 1 + asked[place] == new[at] for at, place in enumerate(greedy))
    _, _, origin = known.origin_of(np.array(found))
    assert sorted(origin[origin != COMPUTED].tolist()) == sorted(taken)
    assert set(known.without_draws(origin).drawn_at.tolist()) == {*drawn_at} - {*taken}


def test_nothing_is_found_among_nothing() -> None:
    known = KnownRows.joined([])
    for is_drawn in (False, True):
        found = matched(known, keys_from([1, 2]), 0, is_drawn=is_drawn)
        assert found.tolist() == [NOTHING] * 2 and known.origin_of(found)[0].tolist() == [COMPUTED] * 2


ROWS = [
    {
        "id": idx,
        "prompt": f"{idx % 50} and more" if idx % 7 else None,
        "answer": f"answer {idx % 3}",
        "params": {"max_new_tokens": 3 + idx % 2},
    }
    for idx in range(80)
]

CHANGED = [
    *ROWS[30:],
    *({**ROWS[0], "id": 1000 + idx, "prompt": f"new {idx}"} for idx in range(9)),
    *({**row, "id": row["id"] + 500} for row in ROWS[:20]),
]
"""Ten rows are gone, the order is another, nine rows are new, and the ids of some are others."""


@pytest.fixture
def command(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return the command line of a run, given its dataset and its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 4)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    write_jsonl(tmp_path / "old.jsonl", ROWS)
    write_jsonl(tmp_path / "new.jsonl", CHANGED)
    model = str(tiny_model())

    def of(data: str, output: str, *options: Any, without: Sequence[str] = ()) -> list[str]:
        args = ["run", "--engine", "fake", "--model", model, "--dataset", data, "--output", output]
        usual = {"--keep-columns": "id", "--max-error-rate": "1", "--rows-per-shard": "25"}
        args += [part for pair in usual.items() if pair[0] not in without for part in pair]
        return [*args, *map(str, options)]

    return of


CHOICES = ["--choices", "yes", "--choices", "no"]
SCORES = ["--prompt-column", "prompt", "--score-column", "answer", "--token-logprobs", "--no-include-prompt"]
PARAMS = ["--params-column", "params"]
SAMPLES = ["--num-samples", 2, "--temperature", 1, "--aggregate", "majority"]


@pytest.mark.parametrize("options", [[], CHOICES, SCORES, PARAMS, SAMPLES], ids=str)
def test_a_changed_dataset_is_the_run_that_it_would_have_been(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch, options: list[Any]
) -> None:
    """Only what is new is computed; error rows are computed, too. Then a run that reuses that one, and a retry.

    Where answers are drawn, a row whose own draws another row has got is not copied any further.
    """
    is_drawn = options in (PARAMS, SAMPLES)
    assert run_job(*command("old.jsonl", "a", *options)).exit_code == 0
    assert run_job(*command("new.jsonl", "expected", *options)).exit_code == 0
    submitted = submitted_by(monkeypatch)
    reusing = command("new.jsonl", "b", *options, "--rows-per-shard", 17, without=["--rows-per-shard"])
    result = run_job(*reusing, "--reuse", "a")
    assert result.exit_code == 0, result.stderr
    new = [at for at, row in enumerate(CHANGED) if str(row["prompt"]).startswith("new")]
    assert {row_idx for row_idx, _ in submitted} == set(new)
    table, expected = read_output(Path("b")), read_output(Path("expected"))
    assert table.drop_columns(ORIGIN).equals(expected)
    for row in table.to_pylist():
        is_copied = row["reused_from"] == "a"
        assert is_copied == (row["error"] is None and row["row_idx"] not in new)
        assert (row["reused_row_idx"] is None) != is_copied
        if is_copied:
            asked = ["prompt", *({"answer", "params"} & {str(option) for option in options})]
            was, now = ROWS[row["reused_row_idx"]], CHANGED[row["row_idx"]]
            assert [was[name] for name in asked] == [now[name] for name in asked]
    num_copied = sum(row["reused_from"] is not None for row in table.to_pylist())
    assert f"reused      {num_copied} from a; computed {len(table) - num_copied}\n" in result.stdout
    checked = run_job("verify", "b")
    assert checked.exit_code == 0, checked.stdout
    assert f"reused   {num_copied} from a; computed" in run_job("status", "b").stdout
    assert run_job(*reusing).exit_code == 0  # --reuse need not be repeated
    submitted.clear()
    again = run_job(*command("new.jsonl", "c", *options, "--limit", 60, "--reuse", "b"))
    moved = [row_idx for row_idx in new if row_idx < 60 and ROWS[row_idx]["prompt"] and is_drawn]
    assert again.exit_code == 0 and sorted({row_idx for row_idx, _ in submitted}) == moved
    third = read_output(Path("c"))
    assert third.drop_columns(ORIGIN).equals(expected.slice(0, len(third)))
    assert set(third["reused_from"].to_pylist()) == {"a", "b", None}, "each row names the run that computed it"
    recomputed = run_job("verify", "c", "--recompute", 1)
    assert (recomputed.exit_code == 2 and "on the run that computed them: a and b." in recomputed.stderr) != is_drawn
    assert run_job("retry", "c").exit_code == 0
    assert run_job(*command("new.jsonl", "c", *options, "--limit", 60)).exit_code == 0
    assert read_output(Path("c")).equals(third)


def test_equal_prompts_do_not_share_a_draw(run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 rows ask 50 prompts; of 240 rows that ask them three times each, 160 are computed."""
    drawn = ["--temperature", 1]
    rows = [row for row in ROWS if row["prompt"]]
    write_jsonl(Path("some.jsonl"), rows)
    write_jsonl(Path("thrice.jsonl"), [*rows[::-1], *rows, *rows])
    assert run_job(*command("some.jsonl", "a", *drawn)).exit_code == 0
    submitted = submitted_by(monkeypatch)
    for name, reused, num_computed in (
        ("b", ["--reuse", "a"], 2 * len(rows)),
        ("c", ["--reuse", "a", "--reuse", "b"], 0),
    ):
        submitted.clear()
        assert run_job(*command("thrice.jsonl", name, *drawn, *reused)).exit_code == 0
        table = read_output(Path(name))
        copied = [(row["prompt"], row["reused_row_idx"]) for row in table.to_pylist() if row["reused_from"]]
        assert len(submitted) == num_computed and len(set(copied)) == len(copied) == 3 * len(rows) - num_computed
    write_jsonl(Path("once.jsonl"), rows)
    assert run_job(*command("once.jsonl", "greedy")).exit_code == 0
    submitted.clear()
    assert run_job(*command("thrice.jsonl", "greedy-3", "--reuse", "greedy")).exit_code == 0
    assert submitted == []


@pytest.mark.parametrize("seed", range(int(os.environ.get("JOB_TEST_CASES", "2"))))
def test_kills_lose_and_double_nothing_while_rows_are_copied(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Several workers, from an unfinished run; in the end that run is deleted, and what is left is computed."""
    rng = random.Random(seed)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    assert run_job(*command("old.jsonl", "a")).exit_code == 0
    assert run_job(*command("new.jsonl", "expected")).exit_code == 0
    Path("a/data/part-00001.parquet").unlink()
    args = command("new.jsonl", "b", "--reuse", "a")
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    for at_least in ("reuse/00001", "reuse/00001", "keys/00000"):
        workers = start_workers(rng.randrange(1, 4), args, Path("log"))
        while not Path("b", at_least).exists() and any(worker.is_alive() for worker in workers):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        exit_codes(workers)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    shutil.rmtree("a")
    workers = start_workers(2, command("new.jsonl", "b"), Path("log"))
    assert exit_codes(workers) == [0, 0], Path("log").read_text()
    table = read_output(Path("b"))
    assert table.drop_columns(ORIGIN).equals(read_output(Path("expected")))
    assert any(row for row in table["reused_from"].to_pylist()) and run_job("verify", "b").exit_code == 0
    keys = [read_keys(find_run("b").directory, idx, 25 if idx < 3 else 4) for idx in range(4)]
    wanted = [key_of(Row(row_idx=0, values=row), ["prompt"]) for row in CHANGED]
    assert b"".join(filter(None, keys)) == b"".join(filter(None, wanted))


def test_a_run_that_reuses_grows(run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a larger limit are copied, too. Those of a run that is missing by then are computed."""
    assert run_job(*command("old.jsonl", "a")).exit_code == 0
    assert run_job(*command("new.jsonl", "expected")).exit_code == 0
    submitted = submitted_by(monkeypatch)
    assert run_job(*command("new.jsonl", "b", "--reuse", "a", "--limit", 10)).exit_code == 0
    assert run_job(*command("new.jsonl", "b", "--limit", 40)).exit_code == 0
    assert submitted == []
    Path("a").rename("elsewhere")
    result = run_job(*command("new.jsonl", "b"))
    assert result.exit_code == 0 and "copied from a: 40 of 79 rows" in result.stderr.replace(" 35 of", " 40 of")
    assert read_output(Path("b")).drop_columns(ORIGIN).equals(read_output(Path("expected")))
    assert len(submitted) == sum(bool(row["prompt"]) for row in CHANGED[40:])


def seeds_by(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Return a dictionary that gains the seed of each row that this process gives to the engine."""
    seeds: dict[int, int] = {}
    submit = FakeEngine.submit

    def record(self: Any, request: Any) -> None:
        seeds[request.row_idx] = request.task.params.seed
        submit(self, request)

    monkeypatch.setattr(FakeEngine, "submit", record)
    return seeds


def test_a_row_whose_draws_another_row_has_got_draws_others(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the run grows up to it, and when it is retried. Draws come from the seed and the row: the random
    numbers of a row of the other run were used twice, for two rows, which may ask different things.
    """
    drawn = ["--temperature", 1, "--max-new-tokens", 3]
    rows = [{**row, "prompt": f"{row['id']} and more"} for row in ROWS]
    write_jsonl(Path("some.jsonl"), rows)
    write_jsonl(Path("moved.jsonl"), [{**rows[0], "prompt": "new"}, *rows[40:60], *CHANGED[50:52], *rows[20:40]])
    assert run_job(*command("some.jsonl", "a", *drawn)).exit_code == 0
    seeds = seeds_by(monkeypatch)
    args = command("moved.jsonl", "b", *drawn)
    assert run_job(*args, "--reuse", "a", "--limit", 20).exit_code == 0
    assert seeds == {0: 0}
    assert run_job(*args).exit_code == 0
    # Rows 1 to 19 have got the draws 40 to 58: row 20 has 59, and rows from 23 on those from 20 on.
    table = read_output(Path("b"))
    origins = {row["row_idx"]: row["reused_row_idx"] for row in table.to_pylist() if row["reused_from"]}
    assert origins == {**{at: 39 + at for at in range(1, 21)}, **{at: at - 3 for at in range(23, 43)}}
    other = seed_of_moved(0)
    assert seeds == {0: 0, 21: other, 22: other}
    used = [origins.get(row_idx, row_idx if row_idx == 0 else None) for row_idx in range(43)]
    assert len({*used} - {None}) == 41
    options = from_metadata(pq.read_metadata("b/data/part-00001.parquet").metadata)
    assert options == {(21, 0): f"--seed {other}", (22, 0): f"--seed {other}"}
    assert run_job("verify", "b").exit_code == 0
    seeds.clear()
    assert run_job("retry", "b", "--cut", "--max-new-tokens", 9).exit_code == 0
    assert run_job(*args).exit_code == 0 and {seeds[0], seeds[5]} == {0}
    assert (seeds[21], seeds[22]) == (other, other)
    parts = [Path(f"b/data/part-0000{shard_idx}.parquet") for shard_idx in (0, 1)]
    options = [from_metadata(pq.read_metadata(part).metadata) for part in parts]
    assert options[0][5, 0] == "--max-new-tokens 9" and options[1][21, 0] == f"--max-new-tokens 9 --seed {other}"
    assert run_job("verify", "b").exit_code == 0


def test_what_was_recomputed_with_other_options_is_not_copied(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--max-new-tokens", 3]
    assert run_job(*command("old.jsonl", "a", *short)).exit_code == 0
    assert run_job(*command("new.jsonl", "expected", *short)).exit_code == 0
    assert run_job("retry", "a", "--cut", "--max-new-tokens", 9).exit_code == 0
    assert run_job(*command("old.jsonl", "a", *short)).exit_code == 0
    submitted = submitted_by(monkeypatch)
    assert run_job(*command("new.jsonl", "b", *short, "--reuse", "a")).exit_code == 0
    assert read_output(Path("b")).drop_columns(ORIGIN).equals(read_output(Path("expected")))
    assert len(submitted) > 20


def test_what_happens_to_the_other_run_while_rows_are_copied(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was decided which rows are copied. Of a part that is damaged since then none is, and of one that was retried
    with other options only those that were not. Where the decision itself is damaged, one line says what to do."""
    short = ["--max-new-tokens", 3]
    assert run_job(*command("old.jsonl", "a", *short)).exit_code == 0
    assert run_job(*command("new.jsonl", "expected", *short)).exit_code == 0
    args = command("new.jsonl", "b", *short)
    assert run_job(*args, "--reuse", "a", "--reuse", "./a").exit_code == 0
    first, place, again = Path("b/data/part-00000.parquet"), Path("a/data/part-00001.parquet"), Path("b/reuse/00001")
    assert run_job("retry", "a", "--cut", "--max-new-tokens", 9).exit_code == 0
    assert run_job(*command("old.jsonl", "a", *short)).exit_code == 0
    submitted, retried, plan_of_copies = submitted_by(monkeypatch), place.read_bytes(), again.read_bytes()
    for content in (b"", retried):
        place.write_bytes(content)
        first.unlink()
        submitted.clear()
        result = run_job(*args)
        assert result.exit_code == 0 and "copied from a: " in result.stderr
        assert (f"rows of {place.resolve()} cannot be copied (" in result.stderr) == (content == b"")
        assert len(submitted) > 15
        assert read_output(Path("b")).drop_columns(ORIGIN).equals(read_output(Path("expected")))
    first.unlink()
    flipped = bytes([*plan_of_copies[:-9], plan_of_copies[-9] ^ 1, *plan_of_copies[-8:]])
    for damaged in (plan_of_copies[:80], b"", flipped):
        again.write_bytes(damaged)
        refused = run_job(*args)
        assert refused.exit_code == 1 and "reuse/00001 is damaged" in refused.stderr.splitlines()[-1]
    again.unlink()
    again.parent.rmdir()
    again.parent.write_text("not a directory")
    refused = run_job(*args)
    assert refused.exit_code == 1 and "Fix this and run the same command." in refused.stderr.splitlines()[-1]
    again.parent.unlink()
    assert run_job(*args).exit_code == 0
    assert read_output(Path("b")).drop_columns(ORIGIN).equals(read_output(Path("expected")))


def num_copied(output: str) -> int:
    """Return how many rows of a run were copied."""
    origins = read_output(Path(output))["reused_from"]
    return len(origins) - origins.null_count


def test_the_origin_of_rows_of_a_dataset_is_not_that_of_a_run(run_job: RunJob, command: Any) -> None:
    """The dataset is a run that has reused another, and its columns are kept."""
    assert run_job(*command("old.jsonl", "a")).exit_code == 0
    assert run_job(*command("old.jsonl", "b", "--reuse", "a")).exit_code == 0
    assert run_job(*command("b", "over", "--keep-columns", "*", without=["--keep-columns"])).exit_code == 0
    assert set(read_output(Path("over"))["reused_from"].to_pylist()) == {"a"}
    assert run_job("verify", "over").exit_code == 0
    assert run_job(*command("b", "again", "--reuse", "over")).exit_code == 0
    assert set(read_output(Path("again"))["reused_from"].to_pylist()) == {"over"}


def test_what_cannot_be_reused_is_refused_in_one_line(run_job: RunJob, command: Any) -> None:
    assert run_job(*command("old.jsonl", "a")).exit_code == 0
    assert run_job(*command("old.jsonl", "bare", "--no-include-prompt")).exit_code == 0
    shutil.copytree("a", "older")
    shutil.rmtree("older/keys")
    Path("empty").mkdir()
    hub = "hf://datasets/org/name"
    assert run_job(*command("new.jsonl", "b", "--reuse", "a")).exit_code == 0
    for options, told in (
        (["--reuse", "a", "--temperature", 1], "--reuse a has other answers: --temperature was 0.0, now 1.0. Rows"),
        (["--reuse", "a", "--prompt-template", "{{ prompt }}?"], "--prompt-template was not set, now"),
        (["--reuse", "a", *CHOICES], "--reuse a has other answers: --choices was not set, now"),
        (["--reuse", ""], "--reuse is empty. Name the --output of another run, or leave it out."),
        (["--reuse", "none"], "--reuse: none is not a run directory: it does not exist."),
        (["--reuse", "empty"], "--reuse: empty is not a run directory: it has no manifest.json."),
        (["--reuse", "old.jsonl"], "--reuse: old.jsonl is not a run directory"),
        (["--reuse", "./new/"], "--reuse ./new/ is --output, too. To go on with that run, leave out --reuse."),
        (["--reuse", "older"], "--reuse older has no finished part that says what its rows ask. Older versions did"),
        (["--reuse", hub], f"--reuse {hub} is not the directory of a run, but of what was published of it, which"),
        (["--reuse", "s3://"], "--reuse s3:// does not name a place in a bucket."),
        (["--reuse", "bare"], "--reuse bare has no column 'prompt'"),
        (["--reuse", "a", "--keep-columns", "id=reused_from"], "the output has its own column 'reused_from'"),
    ):
        refused = run_job(*command("new.jsonl", "new", *options))
        assert (refused.exit_code, told in refused.stderr.splitlines()[-1]) == (2, True), refused.stderr
        assert not Path("new/manifest.json").exists()
    seen = run_job("preview", *command("new.jsonl", "new", "--reuse", "a")[1:])
    assert f"{num_copied('b')} of {len(CHANGED)} rows would be copied from a" in seen.stdout, seen.stderr
    wrong = run_job("preview", *command("new.jsonl", "new", "--reuse", "a", "--temperature", 1)[1:])
    assert wrong.exit_code == 2 and "--reuse a has other answers" in wrong.stderr
    recorded = run_job(*command("old.jsonl", "older"))
    assert recorded.exit_code == 0 and "recorded what the rows of 4 parts ask" in recorded.stderr
    assert [path.read_bytes() for path in sorted(Path("older/keys").iterdir())] == [
        path.read_bytes() for path in sorted(Path("a/keys").iterdir())
    ]
    assert run_job(*command("new.jsonl", "late", "--reuse", "older")).exit_code == 0
    assert num_copied("late") == num_copied("b")
    begun = run_job(*command("new.jsonl", "a2"))
    assert begun.exit_code == 0
    late = run_job(*command("new.jsonl", "a2", "--reuse", "a"))
    assert late.exit_code == 2 and "the run in --output began without it" in late.stderr
    other = run_job(*command("new.jsonl", "b", "--reuse", "bare"))
    assert other.exit_code == 2 and "--reuse was a when the run in --output began, now bare." in other.stderr
    assert run_job(*command("new.jsonl", "b", "--reuse", "./a")).exit_code == 0


def kill_in_the_middle(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run in ``a`` that has rows in journals, and no part yet."""
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.05")
    worker = start_until_journal_has(2000, args, Path("a"), Path("log"))
    os.kill(worker.pid, signal.SIGKILL)
    exit_codes([worker])
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    assert not list(Path("a/data").iterdir())


def test_rows_in_the_journals_of_another_run_are_counted(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not copied: a note says how many there are, or, if there is no part, a refusal."""
    args = command("old.jsonl", "a")
    kill_in_the_middle(args, monkeypatch)
    num_rows = json.loads(run_job("status", "a", "--json").stdout)["rows"]["done"]
    refused = run_job(*command("new.jsonl", "b", "--reuse", "a"))
    told = f"{num_rows} rows of a are finished, but in its journals, from which none is copied. To have them copied,"
    assert refused.exit_code == 2 and told in refused.stderr.splitlines()[-1]
    shutil.copytree("a", "rest")
    assert run_job(*args).exit_code == 0
    Path("rest/keys").mkdir()
    for name in ("part-00002.parquet", "part-00003.parquet"):
        shutil.copy(f"a/data/{name}", "rest/data")
        shutil.copy(f"a/keys/{name[5:10]}", "rest/keys")
    reused = run_job(*command("new.jsonl", "b", "--reuse", "rest"))
    assert reused.exit_code == 0 and told.replace("of a ", "of rest ") in reused.stderr and num_copied("b") > 20


def test_two_other_runs_with_the_same_name_can_be_told_apart(run_job: RunJob, command: Any) -> None:
    """Also if one of them has given its name to a run that is reused. ``reused_from`` shows no path."""
    for place, rows in (("x", ROWS[:20]), ("y", ROWS[20:40])):
        write_jsonl(Path("some.jsonl"), rows)
        assert run_job(*command("some.jsonl", f"{place}/out")).exit_code == 0
    x, y = Path("x/out").absolute(), Path("y/out").absolute()
    assert run_job(*command("old.jsonl", "b", "--reuse", x, "--reuse", y)).exit_code == 0
    assert set(read_output(Path("b"))["reused_from"].to_pylist()) == {"out", "out (2)", None}
    named = {
        each["name"]: each["address"] for each in json.loads(Path("b/manifest.json").read_text())["about"]["reuse"]
    }
    assert named == {"out": str(x.resolve()), "out (2)": str(y.resolve())}
    assert run_job(*command("old.jsonl", "b", "--reuse", y, "--reuse", x)).exit_code == 0
    assert run_job(*command("new.jsonl", "c", "--reuse", y, "--reuse", "b")).exit_code == 0
    assert set(read_output(Path("c"))["reused_from"].to_pylist()) == {"out", "out (2)", "b", None}
    assert "out (2)" in run_job("status", "c").stdout


def test_columns_of_a_run_that_reuses_nothing_are_as_before(run_job: RunJob, command: Any) -> None:
    """Row keys are not in parts, and origins only with --reuse."""
    assert run_job(*command("old.jsonl", "a")).exit_code == 0
    names = pq.read_schema("a/data/part-00000.parquet").names
    assert not {*ORIGIN, "row_key"} & {*names}
    assert "reused" not in json.loads(Path("a/manifest.json").read_text())["identity"]["columns"]


def test_the_date_of_prompts_is_that_of_the_other_run(run_job: RunJob, command: Any, tmp_path: Path) -> None:
    """Its template writes the date into prompts: on another day, none would be the same."""
    model = ["--model", model_with(tmp_path / "model", chat_templates.LLAMA_32)]
    assert run_job(*command("old.jsonl", "a", *model, "--date", "2024-02-29")).exit_code == 0
    assert run_job(*command("new.jsonl", "b", *model, "--reuse", "a")).exit_code == 0
    assert num_copied("b") == 60
    assert "29 Feb 2024" in str(read_output(Path("b"))["prompt"][-1])
    refused = run_job(*command("new.jsonl", "c", *model, "--reuse", "a", "--date", "2024-03-01"))
    assert refused.exit_code == 2 and '--date was "2024-02-29", now "2024-03-01"' in refused.stderr


APPENDED = [*ROWS, *({**ROWS[1], "id": 900 + idx, "prompt": f"appended {idx}"} for idx in range(30))]


@pytest.mark.parametrize("options", [[], SAMPLES], ids=str)
def test_appended_rows_are_computed_in_the_same_run(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch, options: list[Any]
) -> None:
    """Twice, the second time of an unfinished run; then nothing is left to do, and the command says so."""
    args, data = command("growing.jsonl", "a", *options), Path("growing.jsonl")
    submitted = submitted_by(monkeypatch)
    write_jsonl(data, ROWS)
    begun = run_job(*args, "--extend")
    assert begun.exit_code == 0 and "--extend: there is no run in" in begun.stderr
    for num_rows in (90, 110):
        write_jsonl(data, APPENDED[:num_rows])
        refused = run_job(*args)
        assert refused.exit_code == 2 and "If rows were appended, --extend goes on." in refused.stderr
        submitted.clear()
        extended = run_job(*args, "--extend")
        assert extended.exit_code == 0, extended.stderr
        old = num_rows - (10 if num_rows == 90 else 20)
        assert f"the {old} that the run has are the same" in extended.stderr
        assert min(submitted)[0] == old or num_rows == 110
        if num_rows == 90:
            Path("a/data/part-00001.parquet").unlink()
    assert run_job(*args).exit_code == 0  # --extend need not be repeated
    assert "--extend: growing.jsonl has no new rows" in run_job(*args, "--extend").stderr
    assert run_job(*command("growing.jsonl", "expected", *options)).exit_code == 0
    assert read_output(Path("a")).equals(read_output(Path("expected")))
    assert run_job("verify", "a").exit_code == 0


def test_a_run_goes_on_after_a_part_of_rows_that_cannot_be_read(run_job: RunJob, command: Any) -> None:
    """Once such a row can be read, the run is refused."""
    args, data = command("growing.jsonl", "a", "--extend"), Path("growing.jsonl")
    for rows in (ROWS, [*ROWS, b"{broken"], [*ROWS, b"{broken", {"id": 7, "prompt": "more"}]):
        write_jsonl(data, rows)
        assert run_job(*args).exit_code == 0
    write_jsonl(data, [*ROWS, ROWS[1], ROWS[1], ROWS[2]])
    refused = run_job(*args)
    assert refused.exit_code == 2 and "row 80 of --dataset growing.jsonl could not be read when" in refused.stderr


def test_what_is_not_an_extension_is_refused_in_one_line(
    run_job: RunJob, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the row that has changed is in a journal. A refusal changes nothing."""
    args, data = command("growing.jsonl", "a", "--extend"), Path("growing.jsonl")
    write_jsonl(data, ROWS)
    kill_in_the_middle(args, monkeypatch)
    changed = [{**row, "prompt": "other"} if row["id"] == 1 else row for row in APPENDED]
    write_jsonl(data, changed)
    refused = run_job(*args)
    assert refused.exit_code == 2 and "--extend: row 1 of --dataset growing.jsonl asked something" in refused.stderr
    write_jsonl(data, ROWS)
    assert run_job(*args).exit_code == 0
    for rows, told in (
        (changed, "row 1 of --dataset growing.jsonl asked something else when the run computed it. Rows can only"),
        ([{**row, "id": 7} for row in APPENDED], "row 0 of --dataset growing.jsonl has another value in column 'id'"),
        (ROWS[:70], "--dataset growing.jsonl has 70 rows now, and the run in --output has 80."),
        ([*APPENDED[1:], APPENDED[0]], "row 0 of --dataset growing.jsonl asked something else"),
    ):
        write_jsonl(data, rows)
        refused = run_job(*args)
        assert (refused.exit_code, told in refused.stderr.splitlines()[-1]) == (2, True), refused.stderr
        assert "--reuse a." in refused.stderr
    write_jsonl(data, APPENDED)
    other = run_job(*args, "--temperature", 1)
    assert other.exit_code == 2 and "--temperature was 0.0, now 1.0" in other.stderr
    shutil.rmtree("a/keys")
    older = run_job(*args)
    assert (
        older.exit_code == 2
        and "keys/00000, which says what the rows of a part ask, is missing or damaged" in older.stderr
    )
    assert not Path("a/growth").exists()


def test_a_row_to_be_copied_that_has_changed_since_is_no_extension(run_job: RunJob, command: Any) -> None:
    """Which rows are copied was decided by what they asked then. The answer to the old question was copied for the new
    one, because only rows that had been finished were compared.
    """
    data = Path("growing.jsonl")
    write_jsonl(data, ROWS)
    assert run_job(*command("old.jsonl", "a")).exit_code == 0
    assert run_job(*command("growing.jsonl", "b", "--reuse", "a")).exit_code == 0
    Path("b/data/part-00001.parquet").unlink()  # as before its worker got to it
    extend = command("growing.jsonl", "b", "--extend")
    write_jsonl(data, [{**row, "prompt": "other"} if row["id"] == 30 else row for row in APPENDED])
    refused = run_job(*extend)
    told = "row 30 of --dataset growing.jsonl asked something else when its answer was found in another run. Rows can"
    assert refused.exit_code == 2 and told in refused.stderr.splitlines()[-1]
    write_jsonl(data, APPENDED)
    assert run_job(*extend).exit_code == 0 and run_job("verify", "b").exit_code == 0


def test_tokens_of_a_row_that_has_changed_since_are_not_kept(run_job: RunJob, command: Any) -> None:
    """A worker that is killed may leave the tokens of a completion that was cut, but not the completion: its journal
    is synced later. ``job retry --cut`` went on with those tokens after the new prompt.
    """
    args, data = command("growing.jsonl", "a", "--max-new-tokens", 3), Path("growing.jsonl")
    write_jsonl(data, ROWS)
    assert run_job(*args).exit_code == 0
    Path("a/data/part-00001.parquet").unlink()
    directory = find_run("a").directory
    log = make_cut_log(directory, 1, "zz-1-0a1b2c")  # the last log counts
    log.append(to_batch([Partial(row_idx=30, sample_idx=0, token_ids=[7, 7, 7])]))
    log.close()
    write_jsonl(data, [{**row, "prompt": "other"} if row["id"] == 30 else row for row in APPENDED])
    assert run_job(*args, "--extend").exit_code == 0
    assert list(read_cut_rows(directory, 1)[30, 0, 0].token_ids) != [7, 7, 7]

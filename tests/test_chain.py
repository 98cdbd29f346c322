"""``job chain``: several steps over one dataset, each a run of its own."""

import json
import os
import shutil
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.engine.fake import FakeEngine
from job.launch.stop import StopFlag
from job.output.parts.counts import METADATA_KEY as COUNTS
from job.run import process
from tests.conftest import Result
from tests.test_resume import exit_codes, start_workers
from tests.test_run import read_output, write_jsonl

ROOT = Path(__file__).parents[1]

Chain = Callable[..., Result]

STEPS = """
[steps.draft]
prompt-column = "question"
keep-columns = ["question", "answer=gold"]
max-new-tokens = 6

[steps.critique]
prompt-template = "{{ question }} {{ completion }} wrong?"
max-new-tokens = 5

[steps.judge]
from = "critique"
chat = false
prompt-template = "{{ draft }} {{ completion }}"
choices = [" yes", " no"]
"""

NAMES = ("draft", "critique", "judge")


@pytest.fixture
def chain(run_job: Any, tiny_model: Any, tmp_path: Path) -> Chain:
    """Return a function that runs a chain on four questions in the directory ``out``."""
    rows = [{"question": text, "answer": str(idx)} for idx, text in enumerate(("one", "two", "three four", "five"))]
    write_jsonl(tmp_path / "q.jsonl", rows)

    def call(*options: Any, steps: str = STEPS, top: str = "", engine: str = "fake") -> Result:
        head = f'model = "{tiny_model()}"\ndataset = "{tmp_path / "q.jsonl"}"\noutput = "{tmp_path / "out"}"\n'
        (tmp_path / "chain.toml").write_text(f"{head}engine = {engine!r}\n{top}\n{steps}")
        result: Result = run_job("chain", tmp_path / "chain.toml", *options)
        return result

    return call


def tables(output: Path) -> dict[str, pa.Table]:
    return {name: read_output(output / name) for name in NAMES}


def test_each_step_reads_the_one_before_it(chain: Chain, run_job: Any, tmp_path: Path) -> None:
    result = chain()
    assert result.exit_code == 0, result.stderr
    found = {name: table.to_pylist() for name, table in tables(tmp_path / "out").items()}
    for draft, critique, judge in zip(*found.values(), strict=True):
        assert (draft["question"], draft["gold"]) == (critique["question"], critique["gold"])
        assert critique["draft"] == judge["draft"] == draft["completion"]
        assert f"{draft['question']} {draft['completion']} wrong?" in critique["prompt"]
        assert judge["critique"] == critique["completion"] and judge["completion"] in ("yes", "no")
        assert judge["prompt"] == f"{draft['completion']} {critique['completion']}"
    assert [line.split("  ", 1)[1] for line in result.stderr.splitlines() if "  step " in line] == [
        *(f"step {idx} of 3: {name}" for idx, name in enumerate(NAMES, 1))
    ]
    for name in NAMES:
        assert run_job("verify", tmp_path / "out" / name).exit_code == 0
    lineage = json.loads((tmp_path / "out/judge/manifest.json").read_text())["about"]["earlier_runs"]
    assert [Path(run["output"]).name for run in lineage] == ["critique", "draft"]
    again = chain()
    assert again.exit_code == 0 and again.stderr.count("are already done") == 3


def test_a_step_may_read_another_than_the_one_before_it(chain: Chain, tmp_path: Path) -> None:
    other = '[steps.other]\nfrom = "draft"\nprompt-template = "{{ completion }} really?"\nmax-new-tokens = 3\n'
    assert chain(steps=STEPS + other).exit_code == 0
    rows = read_output(tmp_path / "out/other").to_pylist()
    drafts = read_output(tmp_path / "out/draft")["completion"].to_pylist()
    assert [row["draft"] for row in rows] == drafts
    assert all(f"{draft} really?" in row["prompt"] for row, draft in zip(rows, drafts, strict=True))


def test_the_same_model_is_loaded_once(
    chain: Chain, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its completions are those of steps that are run alone."""
    loaded = []
    own = process.load_in_range

    def load(config: Any, *args: Any, **options: Any) -> Any:
        loaded.append(config.model.model)
        return own(config, *args, **options)

    monkeypatch.setattr(process, "load_in_range", load)
    other = tiny_model("qwen2")
    last = f'[steps.last]\nmodel = "{other}"\nprompt-template = "{{{{ completion }}}}"\nmax-new-tokens = 4\n'
    result = chain(steps=STEPS + last, engine="paged", top='dtype = "float32"')
    assert result.exit_code == 0, result.stderr
    assert loaded == [str(tiny_model()), str(other)]
    assert result.stderr.count("; keeping ") == 2 and result.stderr.count("; loading ") == 2
    kept = read_output(tmp_path / "out" / "judge")
    (tmp_path / "out" / "judge").rename(tmp_path / "judge")
    again = chain(steps=STEPS, engine="paged", top='dtype = "float32"')
    assert again.exit_code == 0 and "this launch 4 rows" in again.stdout, again.stderr
    assert read_output(tmp_path / "out" / "judge").equals(kept) and len(loaded) == 3


def test_a_chain_that_was_stopped_goes_on(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished steps are kept, and so are the finished rows of the one that was stopped."""
    assert chain("--output", tmp_path / "whole").exit_code == 0
    own, steps = FakeEngine.step, []

    def step(engine: FakeEngine) -> Any:
        engine._rows_per_step = 1
        steps.append(engine)
        if len(steps) == 7:  # in the second step
            os.kill(os.getpid(), signal.SIGTERM)
        return own(engine)

    monkeypatch.setattr(FakeEngine, "step", step)
    stopped = chain()
    assert stopped.exit_code == 75 and "step 2 of 3: critique" in stopped.stderr
    assert "step 3 of 3" not in stopped.stderr and not (tmp_path / "out/judge").exists()
    assert (tmp_path / "out/draft/README.md").exists() and not (tmp_path / "out/critique/README.md").exists()
    result = chain()
    assert result.exit_code == 0, result.stderr
    assert "all 4 rows are already done" in result.stderr and "2 of 4 rows already done" in result.stderr
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_launches_that_share_a_chain_wait_for_each_other(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of each step, so that the next one has all rows."""
    assert chain("--output", tmp_path / "whole").exit_code == 0
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.05)
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.02")
    options = ["chain", str(tmp_path / "chain.toml"), "--rows-per-shard", "1"]
    workers = start_workers(2, options, tmp_path / "log")
    assert exit_codes(workers) == [0, 0], (tmp_path / "log").read_text()
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


@pytest.mark.parametrize("errors", ["skip", "carry"])
def test_all_steps_of_a_pilot_grow(chain: Chain, run_job: Any, tmp_path: Path, errors: str) -> None:
    """Twice. Rows of before stay, also if the first error comes later; and the end is as without a pilot."""
    texts = ("one", "two", None, "three four", "five", "six")
    write_jsonl(tmp_path / "q.jsonl", [{"question": text, "answer": str(idx)} for idx, text in enumerate(texts)])
    options, top = ("--max-error-rate", 1), f'earlier-errors = "{errors}"'
    assert chain(*options, "--output", tmp_path / "whole", top=top).exit_code == 0
    for limit, num_new in ((2, 2), (4, None), (None, None)):
        result = chain(*options, *([] if limit is None else ["--limit", limit]), top=top)
        assert result.exit_code == 0, result.stderr
        assert num_new is None or result.stdout.count(f"this launch {num_new} rows") == 3
    for name in NAMES:
        found, whole = (read_output(tmp_path / place / name) for place in ("out", "whole"))
        assert found.equals(whole)
        checked = run_job("verify", tmp_path / "out" / name)
        assert checked.exit_code == 0, checked.stdout
    again = chain(*options, top=top)
    assert again.exit_code == 0 and again.stderr.count("are already done") == 3


def test_a_step_whose_rows_of_before_have_changed_does_not_grow(chain: Chain, run_job: Any, tmp_path: Path) -> None:
    texts = ("one", None, "three", "four")
    write_jsonl(tmp_path / "q.jsonl", [{"question": text, "answer": "a"} for text in texts])
    options = ("--max-error-rate", 1)
    assert chain(*options, "--limit", 3).exit_code == 0
    part = tmp_path / "out/draft/data/part-00000.parquet"
    table, counts = pq.read_table(part), pq.read_metadata(part).metadata[COUNTS]
    changed = pa.array(["other", None, "rows"], pa.string())
    place = table.column_names.index("completion")
    with pq.ParquetWriter(part, table.schema) as writer:
        writer.write_table(table.set_column(place, table.schema.field("completion"), changed))
        writer.add_key_value_metadata({COUNTS: counts})
    result = chain(*options)
    assert result.exit_code == 2
    assert "job: step critique: " in result.stderr and "has other contents than when the run started" in result.stderr


def test_a_changed_step_is_refused_by_its_name(chain: Chain, tmp_path: Path) -> None:
    assert chain().exit_code == 0
    result = chain(steps=STEPS.replace("max-new-tokens = 5", "max-new-tokens = 4"))
    assert result.exit_code == 2
    manifest = tmp_path / "out" / "critique" / "manifest.json"
    assert f"job: step critique: {manifest} is another run: --max-new-tokens was 5, now 4" in result.stderr
    critique, judge = tmp_path / "out/critique", tmp_path / "out/judge"
    advice = (
        f"To compute this step anew, delete its directory and those of the steps that read it: {critique} and {judge}."
    )
    assert result.stderr.endswith(f"{advice}\n"), result.stderr


def test_what_is_at_the_top_must_have_an_effect_in_each_step(chain: Chain, tmp_path: Path) -> None:
    """The message said to leave out what two other steps need."""
    result = chain(top="max-new-tokens = 7", steps=STEPS.replace("max-new-tokens = 5", ""))
    assert result.exit_code == 2 and not (tmp_path / "out/draft").exists()
    assert result.stderr.endswith(
        "job: step judge: --max-new-tokens has no effect: --choices does not use it. Leave it out. What is at the top "
        "is for all steps: write it in the tables of those that use it.\n"
    ), result.stderr


def test_a_mistake_in_a_later_step_is_found_before_the_first_begins(chain: Chain, tmp_path: Path) -> None:
    result = chain(steps=STEPS.replace("{{ draft }}", "{{ draught }}"))
    assert result.exit_code == 2
    assert "job: step judge: The dataset has no column 'draught'. Did you mean 'draft'?" in result.stderr
    assert not (tmp_path / "out/draft/manifest.json").exists()


def test_too_many_errors_end_a_chain(chain: Chain, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": text, "answer": "a"} for text in ("a", None, "b")])
    result = chain()
    assert result.exit_code == 3 and "the chain ends with step draft, because of its exit code 3" in result.stderr
    assert not (tmp_path / "out/critique").exists()
    result = chain("--max-error-rate", 0.5)
    assert result.exit_code == 0, result.stderr
    assert len(read_output(tmp_path / "out/judge")) == 2
    carried = chain("--max-error-rate", 0.5, "--output", tmp_path / "carried", top='earlier-errors = "carry"')
    assert carried.exit_code == 0, carried.stderr
    kinds = [read_output(tmp_path / "carried" / name)["error_kind"].to_pylist()[1] for name in NAMES]
    assert kinds == ["null_prompt", "earlier_error", "earlier_error"]


def test_the_command_line_wins(chain: Chain, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", [{"question": "x", "answer": "y"}] * 3)
    options = ("--output", tmp_path / "b", "--dataset", tmp_path / "other.jsonl", "--limit", 2, "--no-include-prompt")
    assert chain(*options).exit_code == 0
    assert not (tmp_path / "out").exists()
    for table in tables(tmp_path / "b").values():
        assert len(table) == 2 and "prompt" not in table.column_names


def test_each_step_of_a_changed_chain_reuses_the_step_of_its_name(chain: Chain, tmp_path: Path) -> None:
    """A step that the other chain lacks is found before the first begins."""
    assert chain().exit_code == 0
    old = tables(tmp_path / "out")
    rows = [{"question": text, "answer": "a"} for text in ("five", "new", "one")]
    write_jsonl(tmp_path / "q.jsonl", rows)
    result = chain("--reuse", f"{tmp_path / 'out'}/", "--output", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    for name, table in tables(tmp_path / "b").items():
        assert table["reused_row_idx"].to_pylist() == [3, None, 0]
        assert table["reused_from"].to_pylist() == [name, None, name]
        assert table["completion"].to_pylist()[::2] == old[name]["completion"].to_pylist()[3::-3]
    for option in ([], ["--dry-run"]):
        changed = STEPS.replace("completion }} wrong?", "completion }} right?")
        refused = chain(*option, "--output", tmp_path / "c", steps=changed, top=f'reuse = "{tmp_path / "out"}"')
        told = "step critique: --reuse critique has other answers: --prompt-template was "
        assert refused.exit_code == 2 and told in refused.stderr.splitlines()[-1]
        assert not (tmp_path / "c").exists()
    assert chain("--dry-run", "--output", tmp_path / "c", top=f'reuse = "{tmp_path / "out"}"').exit_code == 0
    shutil.rmtree(tmp_path / "out/judge")
    for option in ([], ["--dry-run"]):
        refused = chain(*option, "--output", tmp_path / "c", top=f'reuse = "{tmp_path / "out"}"')
        assert (
            refused.exit_code == 2 and f"step judge: --reuse: {tmp_path / 'out/judge'} is not a run" in refused.stderr
        )


def test_a_dry_run_shows_the_columns_and_writes_nothing(chain: Chain, tmp_path: Path) -> None:
    result = chain("--dry-run")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"step {name}" for name in NAMES]
    assert "critique -> " in lines[2] and "columns: row_idx, sample_idx, critique, draft, question, gold," in lines[2]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_which_steps_it_has_not_checked(chain: Chain, tmp_path: Path) -> None:
    """It passed them over in silence, as if all were well."""
    assert chain().exit_code == 0
    shutil.rmtree(tmp_path / "out/judge")
    assert chain("--dry-run").stdout.splitlines()[1:] == [
        "step critique: has begun; it is checked when it is its turn",
        "step judge: reads a step that has begun; it is checked when it is its turn",
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("", "has no steps. Write a table for each, such as [steps.draft]."),
        ("[steps]", "has no steps."),
        ("[steps]\na = 1", "steps.a is 1; it must be a table, [steps.a]."),
        ('[steps."a/b"]', "a step is named 'a/b'. Use letters, digits, - and _."),
        ("[steps.a]\n[steps.A]", "steps a and A have the same name on some file systems. Rename one."),
        ("[steps.a]\nx = 1\n[steps.a]", "chain.toml, line "),
        ("[steps.a]\nmax-tokens = 1", "step a: there is no option 'max_tokens'"),
        ("[steps.a]\nmax-new-tokens = '1'", "step a: max_new_tokens is '1'; it must be a whole number."),
        (
            "[steps.a]\n[steps.b]\nfrom = 'c'",
            "step b: from is 'c', which is not a step before it. The steps before it: a.",
        ),
        ("[steps.a]\nfrom = 'b'\n[steps.b]", "step a: from is 'b', which is not a step before it. It is the first"),
        ("[steps.a]\n[steps.b]\nfrom = 'b'", "step b: from is 'b', which is not a step before it."),
        ("[steps.a]\n[steps.b]\noutput = 'x'", "step b: output is for the top of the file"),
        (
            "[steps.a]\n[steps.b]\ndataset = 'x'\nlimit = 3",
            "step b: dataset and limit are for the dataset of the chain, but this step reads step a.",
        ),
        (
            "[steps.a]\n[steps.b]\nengine = 'static'\ntensor-parallel-size = 2",
            "--tensor-parallel-size is 1 in step a and 2 in step b. It must be the same in all steps",
        ),
        ("[steps.a]\nmax-new-tokens = 0", "job: step a: --max-new-tokens is 0"),
    ],
)
def test_what_a_chain_cannot_be(chain: Chain, tmp_path: Path, steps: str, message: str) -> None:
    result = chain(steps=steps)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dataset", "output"])
def test_what_a_chain_needs(run_job: Any, tmp_path: Path, name: str) -> None:
    given = {"model": "m", "dataset": "d", "output": "o"}
    del given[name]
    lines = [f'{key} = "{value}"' for key, value in given.items()]
    (tmp_path / "c.toml").write_text("\n".join([*lines, "[steps.a]"]))
    result = run_job("chain", tmp_path / "c.toml")
    assert result.exit_code == 2 and f"has no {name}. Give --{name}, or write {name} = " in result.stderr


def test_between_two_steps_there_is_nothing_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal then ends the process at once, as before the first; where none is handled, it sets the flag."""
    left = []
    flag = StopFlag()
    flag.begin_work()
    flag.end_work()
    flag.request("stop_event")
    assert flag()
    own = StopFlag()
    monkeypatch.setattr(own, "_leave", left.append)
    own._is_installed = own._ends_at_once = True
    own.begin_work()
    own.request("SIGTERM")
    assert left == []
    own.end_work()
    own.request("SIGUSR1")
    assert left == ["SIGUSR1"]


@pytest.mark.parametrize("file", sorted((ROOT / "scripts/examples/chains").glob("*.toml")), ids=lambda file: file.stem)
def test_the_examples_are_chains(
    run_job: Any, tiny_model: Any, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = run_job("chain", file, "--dry-run", "--model", tiny_model(chat=True), "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    steps = tomllib.loads(file.read_text())["steps"]
    assert [line.split()[1] for line in result.stdout.splitlines()] == [f"{name}:" for name in steps]
    assert f"`{file.name}`" in (ROOT / "scripts/examples/README.md").read_text()

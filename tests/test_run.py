"""``job run`` in one process: rows in, the same rows out, whatever is wrong with some of them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

import job.engine.fake
from job.cli.options import Size
from job.engine import build
from job.engine.duplicates import SharedCompletions
from job.engine.fake import FakeEngine
from job.output.parts.journal import Journal, JournalReader
from job.output.parts.part_schema import Columns
from job.output.parts.row_keys import ROW_KEY
from job.output.parts.rows import from_batch
from job.output.parts.shard import OpenShard
from job.output.store.local import LocalStore
from job.records import Completion, SampleKey
from job.run.status import Inspection
from tests.conftest import Result
from tests.oracle import greedy, greedy_texts, logprobs_of
from tests.run_files import RunFiles

RunJob = Callable[..., Result]


def submitted_by(monkeypatch: pytest.MonkeyPatch) -> list[SampleKey]:
    """Return a list that gains the key of each request that this process gives to the engine."""
    submitted: list[SampleKey] = []
    submit = FakeEngine.submit

    def record(self: Any, request: Any) -> None:
        submitted.append(request.key)
        submit(self, request)

    monkeypatch.setattr(FakeEngine, "submit", record)
    return submitted


def read_output(output: Path) -> pa.Table:
    """Return all parts as one table, in the order of their names."""
    parts = sorted([*output.glob("data/part-*.parquet"), *output.glob("part-*.parquet")])  # of older runs
    return pa.concat_tables([pq.read_table(part) for part in parts])


def completions_of(table: pa.Table) -> list[Completion]:
    """Return the rows of a table of parts, which has no columns of the dataset."""
    return [completion for batch in table.to_batches() for completion in from_batch(batch)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write values, or raw lines given as bytes."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Return a JSON lines file with 57 short questions."""
    return write_jsonl(tmp_path / "questions.jsonl", [{"id": f"q{i}", "prompt": f"question {i}?"} for i in range(57)])


def test_every_row_comes_out_once_and_in_order(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """FakeEngine reverses the prompt, so every completion says which prompt it is of."""
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"],
        *["--rows-per-shard", 10, "--id-column", "id"],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table.column_names == [
        *["row_idx", "sample_idx", "id", "prompt", "completion", "finish_reason"],
        *["num_prompt_tokens", "num_completion_tokens", "error", "error_kind"],
    ]
    assert table["row_idx"].to_pylist() == list(range(57))
    assert table["id"].to_pylist() == [f"q{i}" for i in range(57)]
    assert table["completion"].to_pylist() == [f"question {i}?"[::-1] for i in range(57)]
    assert set(table["error"].to_pylist()) == {None}
    assert "57 rows in 6 parts" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *["README.md", "data", "journal", "keys", "leases", "manifest.json", "metrics", "totals.json"],
    ]
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == [
        f"part-0000{i}.parquet" for i in range(6)
    ]
    assert list((tmp_path / "out/journal").iterdir()) == list((tmp_path / "out/leases").iterdir()) == []


def test_the_real_engine_gives_the_tokens_of_transformers(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """The whole path in fp32 against the oracle."""
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--rows-per-shard", 20, "--max-new-tokens", 8, "--max-batch-rows", 16],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    expected = greedy_texts(tiny_model(), table["prompt"].to_pylist(), 8, special=True)
    assert table["completion"].to_pylist() == expected


def test_the_output_is_read_by_datasets_pandas_polars_pyarrow_and_duckdb(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """As the README shows it; HuggingFace's features survive."""
    import duckdb
    import pandas
    import polars
    import pyarrow.dataset

    output = tmp_path / "out"
    data = datasets.Dataset.from_dict(
        {"prompt": ["a b", "c"], "label": [1, 0]},
        features=datasets.Features(
            {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        ),
    )
    data.save_to_disk(tmp_path / "saved")
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "saved", "--output", output],
        *["--keep-columns", "label", "--rows-per-shard", 1],
    )
    assert result.exit_code == 0, result.stderr
    assert f"2 rows in 2 parts: {output}/data/part-*.parquet\n" in result.stdout
    parts = f"{output}/data/*.parquet"
    for loaded in (
        datasets.load_dataset(str(output), split="train"),
        datasets.load_dataset(f"{output}/data", split="train"),
        datasets.load_dataset("parquet", data_files=parts, split="train"),
    ):
        assert loaded.features["label"] == datasets.ClassLabel(names=["bad", "good"])
        assert loaded["completion"][:] == ["b a", "c"]
    assert pandas.read_parquet(f"{output}/data")["completion"].to_list() == ["b a", "c"]
    assert polars.read_parquet(f"{output}/data")["label"].to_list() == [1, 0]
    assert polars.read_parquet(parts)["label"].to_list() == [1, 0]
    assert pyarrow.dataset.dataset(f"{output}/data").to_table()["label"].to_pylist() == [1, 0]
    assert duckdb.sql(f"select count(*) from '{parts}'").fetchall() == [(2,)]
    metadata = pq.read_schema(output / "data/part-00000.parquet").metadata
    assert metadata[b"job.model"].decode() == tiny_model().name, "the path is nobody's business"
    assert b"torch=" in metadata[b"job.versions"]


def test_wrong_rows_become_error_rows_and_the_others_are_unaffected(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """Law 3, with every kind of wrong row that JSON lines can hold."""
    rows = [
        {"prompt": "first"},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": "  \n"},
        {"prompt": 42},
        {"prompt": ["a", "list"]},
        {"other": "no prompt"},
        b'{"prompt": "torn',
        b'["no", "object"]',
        b'{"prompt": "lone \\ud800 surrogate"}',
        b'{"prompt": "\xff\xfe"}',
        {"prompt": "x" * 1_000_000},
        {"prompt": "last"},
    ]
    data = write_jsonl(tmp_path / "wrong.jsonl", rows)
    output = tmp_path / "out"
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", output],
        *["--rows-per-shard", 4],
    )
    assert result.exit_code == 3
    table = read_output(output)
    kinds = [error and error.split(":")[0] for error in table["error"].to_pylist()]
    assert kinds == [
        *[None, "null_prompt", "empty_prompt", "empty_prompt", "not_a_string", "not_a_string", "null_prompt"],
        *["invalid_json", "invalid_json", "invalid_unicode", "invalid_unicode", "prompt_too_long", None],
    ]
    assert [c for c in table["completion"].to_pylist() if c is not None] == ["tsrif", "tsal"]
    assert table["finish_reason"].to_pylist() == ["stop", *[None] * 11, "stop"]
    assert table["num_prompt_tokens"].to_pylist()[11] == 1_000_000
    assert "errors      11  (" in result.stdout
    again = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", output],
        *["--rows-per-shard", 4, "--max-error-rate", 1],
    )
    assert again.exit_code == 0, "the rate is no part of what the run is"


def test_a_template_that_fails_on_one_row_is_that_rows_error(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Division by zero, in Jinja."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"a": 6, "b": 3}, {"a": 6, "b": 0}, {"a": "x", "b": 2}])
    run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--prompt-template", "{{ a }}/{{ b }} = {{ a / b }}"],
    )
    table = read_output(tmp_path / "out")
    assert table["prompt"].to_pylist() == ["6/3 = 2.0", None, None]
    assert table["error"].to_pylist()[1] == "template_error: ZeroDivisionError: division by zero"
    assert table["error"].to_pylist()[2].startswith("template_error: TypeError")


def test_an_empty_dataset_gives_one_empty_part(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Readers find a schema, and the exit code is 0."""
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "empty.parquet"],
        *["--output", tmp_path / "out"],
    )
    assert result.exit_code == 0, result.stderr
    assert read_output(tmp_path / "out").num_rows == 0


def test_a_changed_configuration_is_refused_with_both_values(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """Law 4; and nothing in the directory changes."""
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"]
    assert run_job(*base, "--max-new-tokens", 8, "--dtype", "float32").exit_code == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    result = run_job(*base, "--max-new-tokens", 9, "--temperature", "0.5", "--dtype", "bfloat16")
    assert result.exit_code == 2
    assert "--max-new-tokens was 8, now 9" in result.stderr
    assert "--temperature was 0.0, now 0.5" in result.stderr
    assert '--dtype was "float32", now "bfloat16"' in result.stderr
    assert "Use a new --output, or the old values." in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_what_cannot_change_the_output_may_change(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another path to the same data, another batch size, another compression."""
    base = ["run", "--engine", "fake", "--model", tiny_model()]
    assert run_job(*base, "--dataset", questions, "--output", tmp_path / "out").exit_code == 0
    monkeypatch.chdir(tmp_path)
    result = run_job(*base, "--dataset", questions.name, "--output", "out", "--max-batch-rows", 3)
    assert result.exit_code == 0, result.stderr


def test_chat_messages_and_system_prompt_reach_the_model(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Through the tokenizer's chat template, whose text stands in the prompt column."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    data = write_jsonl(tmp_path / "d.jsonl", [{"m": [*messages, {"role": "user", "content": "why"}]}, {"m": "oops"}])
    run_job(
        *["run", "--engine", "fake", "--model", tiny_model(chat=True), "--dataset", data],
        *["--output", tmp_path / "out", "--messages-column", "m", "--system-prompt", "be brief"],
    )
    table = read_output(tmp_path / "out")
    assert table["prompt"].to_pylist() == [
        "<system>be brief<eos><user>hi<eos><assistant>yes<eos><user>why<eos><assistant>",
        None,
    ]
    assert table["error"].to_pylist()[1].startswith("invalid_messages")


def test_rows_have_their_samples_in_order_with_what_is_kept(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Also those that never reach the engine, and those that fail there."""
    rows = [{"id": f"q{i}", "prompt": f"question {i}?"} for i in range(7)]
    rows[2]["prompt"], rows[4]["prompt"] = None, "x" * 1000  # type: ignore[assignment]
    data, output = write_jsonl(tmp_path / "d.jsonl", rows), tmp_path / "out"
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", output],
        *["--rows-per-shard", 3, "--num-samples", 4, "--temperature", 1, "--id-column", "id", "--max-error-rate", 1],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(output)
    keys = list(zip(table["row_idx"].to_pylist(), table["sample_idx"].to_pylist(), strict=True))
    assert keys == [(row_idx, sample_idx) for row_idx in range(7) for sample_idx in range(4)]
    assert table["id"].to_pylist() == [f"q{row_idx}" for row_idx, _ in keys]
    kinds = [error and error.split(":")[0] for error in table["error"].to_pylist()]
    expected = {2: "null_prompt", 4: "prompt_too_long"}
    assert kinds == [expected.get(row_idx) for row_idx, _ in keys]
    assert table["completion"].to_pylist() == [
        None if row_idx in expected else f"question {row_idx}?"[::-1] for row_idx, _ in keys
    ]
    assert table["num_prompt_tokens"].to_pylist()[16:20] == [1000] * 4
    assert "28 samples of 7 rows in 3 parts" in result.stdout and "errors      8  (" in result.stdout
    assert [pq.read_metadata(path).num_rows for path in sorted(output.glob("data/part-*"))] == [12, 12, 4]


def test_a_restart_computes_the_samples_that_no_journal_holds(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that ends in the middle of a row."""
    output = tmp_path / "out"
    args = [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", output],
        *["--rows-per-shard", 30, "--num-samples", 3, "--temperature", 1, "--limit", 4, "--id-column", "id"],
    ]
    assert run_job(*args).exit_code == 0
    expected = read_output(output)
    paths = RunFiles(output, 1)
    paths.part(0).unlink()
    journal = Journal(paths.store, paths.names.journal(0, "dead"), Columns(modes=()).journaled)
    for row in completions_of(expected.drop_columns("id")):
        if row.key in [(0, 0), (2, 1)]:
            journal.append(row)
    journal.close()
    submitted = submitted_by(monkeypatch)
    assert run_job(*args).exit_code == 0
    everything = [(row_idx, sample_idx) for row_idx in range(4) for sample_idx in range(3)]
    assert submitted == [key for key in everything if key not in [(0, 0), (2, 1)]]
    assert read_output(output).equals(expected)


def test_samples_differ_and_do_not_depend_on_the_batch(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Law 5, with the model. Greedy samples would be equal, and are refused."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(3)])
    base = [
        *["run", "--model", tiny_model(), "--dataset", data, "--dtype", "float32", "--max-new-tokens", 6],
        *["--num-samples", 4],
    ]
    tables = []
    for number, options in enumerate((["--max-batch-rows", 12], ["--max-batch-rows", 1], ["--engine", "static"])):
        result = run_job(*base, "--temperature", 1, "--output", tmp_path / str(number), *options)
        assert result.exit_code == 0, result.stderr
        tables.append(read_output(tmp_path / str(number)))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    texts = tables[0]["completion"].to_pylist()
    assert all(len(set(texts[start : start + 4])) == 4 for start in (0, 4, 8))
    greedy = run_job(*base, "--output", tmp_path / "greedy")
    assert greedy.exit_code == 2 and not (tmp_path / "greedy").exists()
    assert greedy.stderr == (
        "job: --num-samples 4 with --temperature 0 gives the same completion each time. Set --temperature above 0.\n"
    )


def test_a_run_of_equal_samples_that_is_there_goes_on(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions began such runs without a word; they are not lost, and say it once."""
    args = [
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"],
        *["--num-samples", 2, "--rows-per-shard", 30],
    ]
    with monkeypatch.context() as patch:
        patch.setattr("job.run.examination.check_effects", lambda *args, **options: ())
        assert run_job(*args).exit_code == 0
    whole = read_output(tmp_path / "out")
    (tmp_path / "out/data/part-00001.parquet").unlink()
    result = run_job(*args)
    assert result.exit_code == 0
    assert result.stderr.count("--num-samples 2 with --temperature 0 gives the same completion each time\n") == 1
    assert read_output(tmp_path / "out").equals(whole)


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_log_probabilities_are_those_of_the_model(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, engine: str
) -> None:
    """Of the tokens that were drawn, before temperature and penalty; an error row has none."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text} for text in ("one", None, "a longer one", "three")])
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--engine", engine, "--max-new-tokens", 5, "--temperature", 0.7, "--repetition-penalty", 1.2, "--logprobs"],
        *["--max-error-rate", 1],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table.column_names[-4:] == ["error_kind", "token_ids", "token_logprobs", "cumulative_logprob"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    for row in table.to_pylist():
        if row["error"]:
            assert row["token_ids"] is row["token_logprobs"] is row["cumulative_logprob"] is None
            continue
        assert len(row["token_ids"]) == len(row["token_logprobs"]) == row["num_completion_tokens"] <= 5
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["completion"]
        expected = logprobs_of(tiny_model(), tokenizer(row["prompt"])["input_ids"], row["token_ids"])
        assert row["token_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["cumulative_logprob"] == pytest.approx(sum(row["token_logprobs"]), abs=1e-9)
    loaded = datasets.load_dataset("parquet", data_files=f"{tmp_path}/out/data/part-*.parquet", split="train")
    assert loaded.features["token_ids"] == datasets.List(datasets.Value("int32"))
    assert loaded.features["token_logprobs"] == datasets.List(datasets.Value("float32"))
    assert loaded.features["cumulative_logprob"] == datasets.Value("float64")


def test_log_probabilities_survive_in_a_journal(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a launch that was cut off are read as they were written: none is done again."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(6)])
    args = [
        *["run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--max-new-tokens", 5, "--logprobs"],
    ]
    with monkeypatch.context() as patch:
        patch.setattr(
            OpenShard, "finish", lambda self, *given: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        assert run_job(*args).exit_code == 1
    (journal,) = (tmp_path / "out/journal").glob("*.arrows")
    written = list(JournalReader(LocalStore(journal.parent), journal.name).read())
    assert len(written) == 6 and all(row.values["token_logprobs"] for row in written)
    monkeypatch.setattr(SharedCompletions, "submit", lambda self, request: pytest.fail("it was done again"))
    assert run_job(*args).exit_code == 0
    # The keys of rows go to an object of their own.
    written = [replace(row, values={k: v for k, v in row.values.items() if k != ROW_KEY}) for row in written]
    assert completions_of(read_output(tmp_path / "out")) == sorted(written, key=lambda row: row.key)


def test_a_stop_string_ends_the_text_before_it(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Several may be given; a comma is a part of one."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text[::-1]} for text in ("a,b;c", "x.y", "plain", ";z")])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    result = run_job(*args, "--stop", ",b", "--stop", ".", "--stop", ";", "--stop", "y,x")
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table["completion"].to_pylist() == ["a", "x", "plain", ""]
    assert table["finish_reason"].to_pylist() == ["stop"] * 4
    assert table["num_completion_tokens"].to_pylist() == [5, 3, 5, 2]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["identity"]["sampling"]["stop"] == [",b", ".", ";", "y,x"]
    again = run_job(*args, "--stop", ".")
    assert again.exit_code == 2 and "--stop was [',b', '.', ';', 'y,x'], now ['.']" in again.stderr


@pytest.mark.parametrize("engine", ["paged", "static"])
def test_the_model_stops_at_a_stop_string(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, engine: str
) -> None:
    """With the token that completes it; rows without it go on."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    ids = greedy(tiny_model(), [tokenizer(f"question {i}?")["input_ids"] for i in range(12)], 12)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    stop = next(
        text[i : i + 2]
        for text in texts
        for i in range(3, 8)
        if len(text) > i + 2 and text[i : i + 2].isprintable() and "\ufffd" not in text[i : i + 2]
    )
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--engine", engine, "--max-new-tokens", 12, "--limit", 12, "--stop", stop],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table["completion"].to_pylist() == [text.partition(stop)[0] for text in texts]
    num_tokens = [
        next((n for n in range(1, len(row)) if stop in tokenizer.decode(row[:n], skip_special_tokens=True)), len(row))
        for row in ids
    ]
    assert table["num_completion_tokens"].to_pylist() == num_tokens
    reasons = ["stop" if stop in text or 1 in row else "length" for text, row in zip(texts, ids, strict=True)]
    assert table["finish_reason"].to_pylist() == reasons
    assert min(num_tokens) < 12 and "length" in reasons


def test_an_engine_is_chosen_by_its_name(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paged unless the user or the model says otherwise; one line tells."""
    built: list[str] = []
    for name in ("PagedEngine", "StaticEngine"):
        engine = getattr(build, name)
        monkeypatch.setattr(build, name, lambda *args, n=name, e=engine: (built.append(n), e(*args))[1])
    base = ["run", "--dataset", questions, "--dtype", "float32", "--max-new-tokens", 2, "--limit", 3]
    notes = []
    for number, (model, options) in enumerate([("llama", []), ("llama", ["--engine", "static"]), ("gpt_neo", [])]):
        result = run_job(*base, "--model", tiny_model(model), "--output", tmp_path / str(number), *options)
        assert result.exit_code == 0, result.stderr
        notes.append([line for line in result.stderr.splitlines() if "static batches" in line])
    assert built == ["PagedEngine", "StaticEngine", "StaticEngine"]
    assert [len(lines) for lines in notes] == [0, 0, 1]
    assert "'gpt_neo'" in notes[2][0]


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1", 1),
        ("20GiB", 20 * 2**30),
        ("20GB", 20 * 2**30),
        ("20 g", 20 * 2**30),
        ("512MiB", 2**29),
        ("0.5g", 2**29),
        ("1.5TiB", 3 * 2**39),
        ("64kb", 2**16),
        ("100B", 100),
        (" 7 MB ", 7 * 2**20),
    ],
)
def test_sizes_are_numbers_with_a_unit_or_without(text: str, num_bytes: int) -> None:
    assert Size().convert(text, None, None) == num_bytes


def test_a_size_reaches_the_engine(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line and in a file."""
    sizes: list[int | None] = []
    own = build.build_paged

    def record(model: Any, config: Any, *args: Any, **options: Any) -> Any:
        sizes.append(config.kv_cache_memory)
        return own(model, config, *args, **options)

    monkeypatch.setattr(build, "build_paged", record)
    (tmp_path / "run.toml").write_text('kv-cache-memory = "2 MiB"\n')
    base = ["run", "--model", tiny_model(), "--dataset", questions, "--limit", 2, "--max-new-tokens", 2]
    for number, options in enumerate(([], ["--kv-cache-memory", "3MB"], ["--config", tmp_path / "run.toml"])):
        result = run_job(*base, *options, "--output", tmp_path / str(number))
        assert result.exit_code == 0, result.stderr
    assert sizes == [None, 3 * 2**20, 2 * 2**20]


def test_a_row_for_which_the_cache_is_too_small_is_an_error_row(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """The others are done, whatever becomes of it."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "x" * 20}, {"prompt": "y" * 200}, {"prompt": "z" * 20}])
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--max-new-tokens", 4, "--kv-cache-memory", "200kB"],
    )
    assert result.exit_code == 3
    errors = read_output(tmp_path / "out")["error"].to_pylist()
    assert errors[0] is None and errors[2] is None
    assert errors[1].startswith("kv_cache_full: 200 prompt tokens: ") and "--kv-cache-memory" in errors[1]


BAD_INPUT = {
    "missing column": (["--prompt-column", "text"], "has no column 'text'. Columns: id, prompt."),
    "missing kept column": (["--keep-columns", "label"], "no column 'label'"),
    "bad template": (["--prompt-template", "{{ prompt }\n}}"], "--prompt-template, line 1"),
    "template of unknown column": (["--prompt-template", "{{ promt }}"], "no column 'promt'. Did you mean 'prompt'?"),
    "template file missing": (["--prompt-template", "prompt.j2"], "neither a file nor a template"),
    "two ways": (["--prompt-column", "prompt", "--messages-column", "x"], "were given together"),
    "unknown dtype": (["--dtype", "float8"], "'float8' is not one of"),
    "negative temperature": (["--temperature", "-1"], "--temperature is -1.0; it must be"),
    "no room": (["--max-new-tokens", "512"], "the model has room for 512 tokens"),
    "chat without template": (["--chat"], "the tokenizer has no chat template"),
    "eight bits": (["--load-in-8bit"], "Use --quantize int8 or fp8"),
    "device map": (["--device-map", "auto"], "--tensor-parallel-size"),
    "kernel injection": (["--kernel-inject"], "AutoTP"),
    "wrong split": (["--split", "test"], "has no split 'test'. Splits: train"),
    "not enough processes": (
        ["--tensor-parallel-size", "2"],
        "this is a single one. Start them with: job launch --gpus 2",
    ),
    "reserved name": (["--keep-columns", "prompt"], "the output has its own column with that name"),
    "unknown option": (["--max-tokens", "5"], "No such option '--max-tokens'. Use --max-new-tokens."),
    "empty output": (["--output", ""], "--output is empty"),
    "empty dataset": (["--dataset", ""], "--dataset is ''"),
    "data files of a file": (["--data-files", "x"], "is a file"),
    "no samples": (["--num-samples", "0"], "--num-samples is 0; it must be at least 1"),
    "too many samples": (["--num-samples", "2147483648"], "--num-samples is 2147483648; it must be"),
    "half a sample": (["--num-samples", "1.5"], "'1.5' is not a valid integer"),
    "empty stop": (["--stop", "a", "--stop", ""], "--stop is ''; it must be a non-empty text"),
    "size without number": (["--kv-cache-memory", "GiB"], "'GiB' is not a size such as 20GiB or 512MiB"),
    "size of nothing": (["--kv-cache-memory", "0GiB"], "--kv-cache-memory is 0; it must be at least 1"),
    "empty size": (["--kv-cache-memory", ""], "'' is not a size"),
    "negative size": (["--kv-cache-memory", "-1GiB"], "'-1GiB' is not a size"),
    "unit that there is not": (["--kv-cache-memory", "3PB"], "'3PB' is not a size"),
    "size with words": (["--kv-cache-memory", "20 GB or so"], "'20 GB or so' is not a size"),
    "unknown engine": (["--engine", "vllm"], "'vllm' is not one of 'paged', 'static', 'fake'"),
    "reserved name of a log probability": (["--logprobs", "--keep-columns", "token_ids"], "no column 'token_ids'"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_one_line_and_exit_code_2(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, name: str
) -> None:
    """Before anything is started: the run directory has no part."""
    options, message = BAD_INPUT[name]
    base = ["--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"]
    result = run_job("run", *base, *options)
    assert result.exit_code == 2, result
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    *said_before, line = result.stderr.splitlines()
    assert line.startswith("job: ") and message in line and len(said_before) <= 1
    assert not list(tmp_path.glob("out/data/part-*"))


def test_a_model_directory_that_cannot_work_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """No weights, pickled weights, no such directory."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model().iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())

    def run(path: Any) -> Result:
        return run_job("run", "--model", path, "--dataset", questions, "--output", tmp_path / "out")

    assert run(model).exit_code == 2
    assert "has no weights" in run(model).stderr
    (model / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights (pytorch_model.bin)" in run(model).stderr
    missing = run(tmp_path / "none")
    assert missing.exit_code == 2
    assert missing.stderr.splitlines()[-1].startswith(f"job: --model {tmp_path / 'none'}: there is no such directory.")


def edit_weights(model: Path, edit: Any) -> None:
    """Change the weights of a model directory in place."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    edit(weights)
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_a_model_that_lacks_weights_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """transformers fills them with random numbers and only warns: a whole dataset of garbage, and exit code 0."""
    shutil.copytree(tiny_model(), tmp_path / "model")
    edit_weights(tmp_path / "model", lambda weights: weights.pop("lm_head.weight"))
    result = run_job("run", "--model", tmp_path / "model", "--dataset", questions, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "lacks 1 weights of LlamaForCausalLM, such as lm_head.weight" in result.stderr
    content = (tmp_path / "model/model.safetensors").read_bytes()
    (tmp_path / "model/model.safetensors").write_bytes(content[:-1000])
    torn = run_job("run", "--model", tmp_path / "model", "--dataset", questions, "--output", tmp_path / "out2")
    assert torn.exit_code == 2
    assert "but its header says" in torn.stderr and torn.stderr.count("\n") == 1


def test_a_model_in_an_unknown_quantization_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """It would crash, or run with its scales dropped."""
    shutil.copytree(tiny_model(), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "nvfp4"}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    result = run_job("run", "--model", tmp_path / "model", "--dataset", questions, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "quantized weights in the format 'nvfp4'" in result.stderr


def test_a_restart_with_changed_weights_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """Same names, same sizes, same beginning of the file: as a checkpoint merged and saved over the old one."""
    shutil.copytree(tiny_model(), tmp_path / "model")
    args = [
        "run",
        "--engine",
        "fake",
        "--model",
        tmp_path / "model",
        "--dataset",
        questions,
        "--output",
        tmp_path / "o",
    ]
    assert run_job(*args).exit_code == 0
    edit_weights(tmp_path / "model", lambda weights: weights["model.norm.weight"].add_(1))
    result = run_job(*args)
    assert result.exit_code == 2
    assert f"--model {tmp_path}/model has other contents than when the run started" in result.stderr


def test_a_stray_part_does_not_make_a_run_done(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """A regression: parts were counted, so one that is not in the plan stood for one that was missing, and the engine
    that stands in when there is nothing to do completed the missing rows: with reversed prompts.
    """
    args = [
        *["run", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--rows-per-shard", 20, "--max-new-tokens", 4],
    ]
    assert run_job(*args).exit_code == 0
    expected = read_output(tmp_path / "out")
    (tmp_path / "out/data/part-00001.parquet").rename(tmp_path / "out/data/part-00007.parquet")
    assert run_job(*args).exit_code == 0
    (tmp_path / "out/data/part-00007.parquet").unlink()
    assert read_output(tmp_path / "out").equals(expected)


def test_columns_of_mixed_types_reach_the_template_alike_from_json_and_json_lines(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """datasets stores such columns as JSON text: a string must not reach the model with its quotes."""
    rows = [{"meta": {"x": 1}, "m": [{"content": "a"}]}, {"meta": {"x": "y"}, "m": [{"content": ["b"]}]}]
    prompts = []
    for name in ("d.json", "d.jsonl"):
        if name == "d.json":
            (tmp_path / name).write_text(json.dumps(rows))
        else:
            write_jsonl(tmp_path / name, rows)
        result = run_job(
            *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / name],
            *["--prompt-template", "{{ meta.x }} {{ m[0].content }}", "--output", tmp_path / f"out-{name}"],
        )
        assert result.exit_code == 0, result.stderr
        prompts.append(read_output(tmp_path / f"out-{name}")["prompt"].to_pylist())
    assert prompts[0] == prompts[1] == ["1 a", "y ['b']"]


def test_a_directory_of_several_kinds_of_files_is_refused(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """datasets reads the most frequent kind and drops the rest without a word."""
    (tmp_path / "mixed").mkdir()
    write_jsonl(tmp_path / "mixed/a.jsonl", [{"prompt": "one"}])
    (tmp_path / "mixed/b.csv").write_text("prompt\ntwo\n")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "mixed"]
    result = run_job(*args, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "holds files of several kinds: a.jsonl, b.csv" in result.stderr
    chosen = run_job(*args, "--data-files", "*.csv", "--output", tmp_path / "out")
    assert chosen.exit_code == 0, chosen.stderr
    assert read_output(tmp_path / "out")["prompt"].to_pylist() == ["two"]


def test_a_parquet_file_that_lost_rows_ends_the_run(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: the shard could never become complete, and the run went round for ever."""
    from job.data.formats.parquet import ParquetSource

    pq.write_table(pa.table({"prompt": ["a"] * 100}), tmp_path / "d.parquet")
    read = ParquetSource.read

    def shortened(self: Any, start: int, stop: int, columns: Any, kept: Any) -> Any:
        return read(self, start, stop - 10, columns, kept)

    monkeypatch.setattr(ParquetSource, "read", shortened)
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "d.parquet"],
        *["--output", tmp_path / "out"],
    )
    assert result.exit_code == 1
    assert "The dataset returned 90 rows for 0 to 100" in result.stderr


def test_a_run_whose_first_rows_all_fail_alike_is_given_up(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: a model that overflows took a night for a million error rows, and ended with exit code 3. One good
    row anywhere in the run is hope; a restart goes on with the rows that are left.
    """
    poison = 2 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("x")
    broken = partial(FakeEngine, poison_id=poison)
    rows = [{"prompt": None}] + [{"prompt": f"x{number}"} for number in range(1500)]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--rows-per-shard", 200]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(job.engine.fake, "FakeEngine", broken)
        result = run_job(*args, "--output", out)
        assert result.exit_code == 3
        assert "job: Nothing has succeeded so far, and " in result.stderr
        assert "The first is row 1: engine_error: " in result.stderr
        num_done = Inspection(out).look().num_rows
        assert 257 <= num_done < 700
        assert run_job(*args, "--output", out).exit_code == 3
        assert num_done + 256 <= Inspection(out).look().num_rows < 1400, "they are not computed again"
        write_jsonl(data, [rows[0], {"prompt": "good"}, *rows[2:]])
        assert run_job(*args, "--output", tmp_path / "hope").exit_code == 3
        assert len(read_output(tmp_path / "hope")) == 1501
        write_jsonl(data, rows)
        assert run_job(*args, "--output", tmp_path / "all", "--max-error-rate", 1).exit_code == 0
    assert run_job(*args, "--output", out, "--max-error-rate", 1).exit_code == 0, "once it is fixed"
    errors = read_output(out)["error"].to_pylist()
    assert 512 < len([error for error in errors if error]) < 1400
    assert run_job("retry", out).exit_code == 0
    assert run_job(*args, "--output", out, "--max-error-rate", 1).exit_code == 0
    assert [error for error in read_output(out)["error"].to_pylist() if error] == [errors[0]]


@pytest.mark.parametrize(
    ("rows", "args", "num_done"),
    [
        ([{"q": n} for n in range(700)], ["--prompt-template", "{{ 'x' * (600 + q) }}"], 256),
        ([{"prompt": f"{'x' * 600}{n}"} for n in range(700)], [], 256),
        ([{"prompt": "x" * 600}] * 3000, [], 2560),
        ([{"prompt": "x" * 600}] * 700, [], None),
        ([{"prompt": f"{'x' * 600}{n}"} for n in range(255)], [], None),
        ([{"prompt": f"{'x' * 600}{n}"} for n in range(256)], [], None),
        ([{"prompt": None if n % 9 else f"x{n}"} for n in range(700)], [], None),
    ],
    ids=["too long by template", "too long", "copies", "few copies", "few rows", "no more rows", "good rows in flight"],
)
def test_a_run_of_which_nothing_succeeds_stops_whatever_the_error(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, rows: Any, args: list[str], num_done: int | None
) -> None:
    """But not because errors are known before the rows among them have left the engine."""
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    result = run_job(*base, *args)
    assert result.exit_code == 3
    found = Inspection(tmp_path / "out").look().num_rows
    if num_done is None:
        assert found == len(rows) and "The run stops here" not in result.stderr
    else:
        assert num_done <= found < num_done + 64 and "The run stops here" in result.stderr


TOML_TYPES = {
    "max-new-tokens = true": "max_new_tokens is True; it must be a whole number",
    "max-new-tokens = 3.7": "max_new_tokens is 3.7; it must be a whole number",
    "temperature = [1, 2]": "temperature is [1, 2]; it must be a number",
    'ignore-eos = "yes"': "ignore_eos is 'yes'; it must be true or false",
    "dataset = 5": "dataset is 5; it must be a string",
    "limit = 2\n[data]\nlimit = 3": "limit is given twice",
    "no-chat = true": "Write chat = false.",
    "stop = 5": "stop is 5; it must be a string or a list of strings",
    'stop = ["a", 5]': "stop is ['a', 5]; it must be a string or a list of strings",
    "num-samples = 2.5": "num_samples is 2.5; it must be a whole number",
    'logprobs = "yes"': "logprobs is 'yes'; it must be true or false",
    'stop = [""]\ndataset = "x"': "--stop is ''; it must be a non-empty text",
}


@pytest.mark.parametrize("text", TOML_TYPES)
def test_a_config_value_of_another_type_is_refused(run_job: RunJob, tmp_path: Path, text: str) -> None:
    """click would make 1 of true and 3 of 3.7."""
    (tmp_path / "run.toml").write_text(text)
    result = run_job("run", "--config", tmp_path / "run.toml", "--model", "m", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert TOML_TYPES[text] in result.stderr


def test_an_output_that_cannot_be_written_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """A file in the way: root ignores permissions, so they are no test here."""
    (tmp_path / "file").write_text("in the way")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions]
    for name, reason in (("file/out", "Not a directory"), ("file", "it is a file")):
        result = run_job(*args, "--output", tmp_path / name)
        assert result.exit_code == 2
        assert f"cannot be written: {reason}" in result.stderr


def test_a_directory_of_other_files_is_refused_and_what_lies_beside_a_run_is_not(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """A run wrote beside the files of a project without a word."""
    output = tmp_path / "out"
    output.mkdir()
    for name in (".DS_Store", ".nfs0001", "run.toml", "slurm-7.log", "README.md"):
        (output / name).write_text("x")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", output]
    for name in ("notes.txt", "src"):
        (output / name).mkdir()
    result = run_job(*args)
    assert result.exit_code == 2
    assert f"--output {output} holds notes.txt and 1 more, which no run wrote. Use a new or empty" in result.stderr
    assert not (output / "manifest.json").exists()
    for name in ("notes.txt", "src"):
        (output / name).rmdir()
    assert run_job(*args).exit_code == 0
    (output / "notes.txt").write_text("later")
    assert run_job(*args).exit_code == 0, "a restart works, whatever lies there"


ADDRESSES = {
    "--output": ["gs://b/o", "hf://datasets/x/y", "abfss://c@a/o", "hdfs:///o", "s3://bucket"],
    "--model": ["s3://bucket/model"],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in ADDRESSES for value in ADDRESSES[option]])
def test_addresses_are_refused(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    """``--output s3://...`` wrote to a local directory ``s3:``."""
    monkeypatch.chdir(tmp_path)
    options = {"--model": "m", "--dataset": "d.jsonl", "--output": "out", option: value}
    result = run_job("run", *(word for pair in options.items() for word in pair))
    assert result.exit_code == 2
    assert f"job: {option} {value[:3]}" in result.stderr
    if option == "--output":
        assert "s3://BUCKET/DIRECTORY" in result.stderr
    else:
        assert "is an address, not a path. " in result.stderr
    export = run_job("export", "out", "--to", "s3://bucket/x.csv")
    assert "--to s3://bucket/x.csv is an address, not a path. Name a local file" in export.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--output", "--dataset", "--model", "--choices", "--examples", "--config"])
def test_a_name_that_is_too_long_is_one_line(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path, option: str
) -> None:
    """It was an OSError with a traceback."""
    options = {"--model": tiny_model(), "--dataset": questions, "--output": tmp_path / "out", "--engine": "fake"}
    options[option] = f"./{'x' * 300}"
    result = run_job("run", *(word for pair in options.items() for word in pair))
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr and result.stderr.splitlines()[-1].startswith("job: ")


def test_a_config_file_gives_options_and_the_command_line_wins(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """Tables are free, keys take either dash."""
    (tmp_path / "run.toml").write_text(
        f'model = "{tiny_model()}"\nengine = "fake"\n[data]\ndataset = "{questions}"\nlimit = 5\nkeep-columns = "id"\n'
        "[sampling]\nmax_new_tokens = 3\n"
    )
    result = run_job("run", "--config", tmp_path / "run.toml", "--output", tmp_path / "out", "--limit", 4)
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table["completion"].to_pylist() == ["?0 ", "?1 ", "?2 ", "?3 "]
    assert table["id"].to_pylist() == ["q0", "q1", "q2", "q3"]
    (tmp_path / "bad.toml").write_text("max_token = 3\n")
    bad = run_job("run", "--config", tmp_path / "bad.toml", "--output", tmp_path / "out")
    assert bad.exit_code == 2
    assert "there is no option 'max_token'" in bad.stderr


@pytest.mark.parametrize(
    ("text", "completions"),
    [('stop = ["o,", "\\n"]', ["tw", "on"]), ('stop = "\\n"', ["two, 2", "on"]), ("stop = []", ["two, 2", "on\ne"])],
)
def test_a_config_file_may_list_stop_strings(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, text: str, completions: list[str]
) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text[::-1]} for text in ("two, 2", "on\ne")])
    (tmp_path / "run.toml").write_text(text)
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--config", tmp_path / "run.toml"]
    result = run_job(*args, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert read_output(tmp_path / "out")["completion"].to_pylist() == completions
    assert run_job(*args, "--output", tmp_path / "out2", "--stop", "w").exit_code == 0
    assert read_output(tmp_path / "out2")["completion"].to_pylist() == ["t", "on\ne"], "the command line wins"


def test_a_dataset_that_breaks_under_way_ends_with_its_name(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """A corrupt column chunk is found when it is read: exit code 1, the parts before it stay."""
    data = tmp_path / "data.parquet"
    table = pa.table({"prompt": [f"prompt number {i}" for i in range(4000)]})
    pq.write_table(table, data, row_group_size=1000, compression="none", use_dictionary=False)
    start = pq.read_metadata(data).row_group(3).column(0).data_page_offset
    content = bytearray(data.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    data.write_bytes(content)
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--rows-per-shard", 1000],
    )
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"job: --dataset {data} can no longer be read: ")
    assert (tmp_path / "out/data/part-00001.parquet").exists()
    assert not (tmp_path / "out/data/part-00003.parquet").exists()


def test_a_null_that_a_template_prints_is_an_error_of_the_row(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """No model should read the word None; a template may say what to write instead."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"a": "x", "b": "y"}, {"a": "x", "b": None}])
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data]
    run_job(*base, "--prompt-template", "{{ a }}{{ b }}", "--output", tmp_path / "out")
    assert "column 'b' is null" in read_output(tmp_path / "out")["error"].to_pylist()[1]
    run_job(*base, "--prompt-template", "{{ a }}{{ b or '-' }}", "--output", tmp_path / "out2")
    assert read_output(tmp_path / "out2")["prompt"].to_pylist() == ["xy", "x-"]


def test_a_directory_with_foreign_parts_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """They would pass for finished shards."""
    (tmp_path / "out/data").mkdir(parents=True)
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", tmp_path / "out"]
    for place in ("part-00000.parquet", "data/part-00000.parquet"):
        pq.write_table(pa.table({"x": [1]}), tmp_path / "out" / place)
        result = run_job(*base)
        assert result.exit_code == 2
        assert "holds 1 part of a run, but manifest.json is missing" in result.stderr
        (tmp_path / "out" / place).unlink()


def test_everything_in_the_run_directory_has_the_permissions_that_the_umask_allows(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """Whoever shares a group reads the output of the others."""
    before = os.umask(0o027)
    try:
        base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--lease-timeout", 15]
        assert run_job(*base, "--output", tmp_path / "out").exit_code == 0
    finally:
        os.umask(before)
    assert {(path.is_dir(), path.stat().st_mode & 0o777) for path in (tmp_path / "out").rglob("*")} == {
        (True, 0o750),
        (False, 0o640),
    }


def test_an_output_inside_another_run_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """The directory of a run holds its own files only: it can be another run's dataset, and be read as a whole."""
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output"]
    assert run_job(*args, tmp_path / "a").exit_code == 0
    for name in ("a/b", "a/data/b"):
        result = run_job(*args, tmp_path / name)
        assert result.exit_code == 2
        assert f"lies in {tmp_path / 'a'}, which is the directory of another run" in result.stderr
    assert run_job(*args, tmp_path / "a").exit_code == 0


def test_a_column_in_the_system_prompt_is_noted(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """It is not a template, so the braces would go to the model."""
    column = json.loads(questions.read_text().splitlines()[0]).popitem()[0]
    args = ["run", "--engine", "fake", "--model", tiny_model(chat=True), "--dataset", questions, "--output"]
    for idx, text in enumerate((f"Know {{{{ {column} }}}}.", f"Know {{{column}}}.")):
        result = run_job(*args, tmp_path / str(idx), "--system-prompt", text)
        assert result.exit_code == 0
        assert f"--system-prompt is not a template: {column} in braces stays as typed" in result.stderr
    assert "template" not in run_job(*args, tmp_path / "plain", "--system-prompt", "Know {this}.").stderr


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [
        ("--stop", r"\n", "\n"),
        ("--system-prompt", r"Be brief.\nBe kind.", "Be brief.\nBe kind."),
        ("--prompt-template", r"Q: {{ prompt }}\nA:", "Q: {{ prompt }}\nA:"),
    ],
)
def test_a_line_break_that_the_shell_did_not_make_is_noted(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, option: str, typed: str, meant: str
) -> None:
    r"""In bash, '\n' is a backslash and an n; the model read them, and stopped at them."""
    dataset = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    args = ["preview", "--model", tiny_model(chat=True), "--dataset", dataset, option]
    note = f"{option} has a backslash and an n, which is not a line break: {typed}; for a line break in bash, write"
    assert note in run_job(*args, typed).stdout
    assert "backslash" not in run_job(*args, meant).stdout


def test_an_output_whose_data_directory_is_in_use_is_refused(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """Whoever reads the directory of the parts would read the other files, too."""
    output = tmp_path / "out"
    (output / "data").mkdir(parents=True)
    (output / "data/mine.csv").write_text("a,b")
    base = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", questions, "--output", output]
    result = run_job(*base)
    assert result.exit_code == 2
    assert f"--output {output} holds data/mine.csv, which no run wrote. Use a new or empty directory." in result.stderr
    (output / "data/mine.csv").rename(output / "data/.mine.csv")
    assert run_job(*base).exit_code == 0, "readers skip hidden files"


def test_the_output_of_a_run_is_a_dataset_for_the_next(
    run_job: RunJob, tiny_model: Any, questions: Path, tmp_path: Path
) -> None:
    """Its parts, and none of the other files beside them."""
    base = ["run", "--engine", "fake", "--model", tiny_model()]
    run_job(*base, "--dataset", questions, "--output", tmp_path / "first", "--rows-per-shard", 10)
    result = run_job(
        *[*base, "--dataset", tmp_path / "first", "--prompt-column", "completion", "--no-include-prompt"],
        *["--keep-columns", "prompt", "--output", tmp_path / "second"],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "second")
    assert table["completion"].to_pylist() == table["prompt"].to_pylist() == [f"question {i}?" for i in range(57)]


def test_equal_prompts_beyond_what_may_be_pending_all_come_out(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """A regression: they come out in one step, which empties a full engine, and what was left of the slice was lost
    sight of: the run waited for itself for ever.
    """
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "the same"} for _ in range(600)])
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out", "--dtype", "float32"],
        *["--rows-per-shard", 300, "--max-batch-rows", 4, "--max-new-tokens", 3],
    )
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table["row_idx"].to_pylist() == list(range(600)) and len(set(table["completion"].to_pylist())) == 1


def test_text_that_is_no_utf_8_is_an_error_of_its_row(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """As a prompt it was a traceback for ever. Kept, the run ended well, and ``job verify`` said to do it again for
    ever.
    """
    raw = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    latin_1 = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "text": latin_1}), tmp_path / "d.parquet")
    for number, options in enumerate((["--prompt-column", "text"], ["--keep-columns", "text"])):
        output = tmp_path / f"out{number}"
        args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "d.parquet"]
        assert run_job(*args, "--output", output, "--max-error-rate", 1, *options).exit_code == 0
        preview = run_job("preview", *args[1:], "--output", output, *options, "--json")
        assert '"invalid_unicode"' in preview.stdout
        table = read_output(output)
        table.validate(full=True)
        errors = table["error"].to_pylist()
        assert errors[0] is errors[2] is None and errors[1].startswith("invalid_unicode: column 'text'")
        assert run_job("verify", output).exit_code == 0
    assert table["text"].to_pylist() == ["good", None, "fine"]
    assert table["completion"].to_pylist() == ["a", None, "c"]


def test_files_that_differ_in_a_needed_column_are_refused_before_the_model_is_loaded(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """The footers tell."""
    for number, value in enumerate([1, "two"]):
        pq.write_table(pa.table({"prompt": ["a"], "x": [value]}), tmp_path / f"{number}.parquet")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "*.parquet"]
    assert run_job(*args, "--output", tmp_path / "out").exit_code == 0
    for options in (["--keep-columns", "x"], ["--prompt-template", "{{ x }}"]):
        result = run_job(*args, "--output", tmp_path / "refused", *options)
        assert result.exit_code == 2
        assert "1.parquet: column 'x' is string, but int64 in " in result.stderr
    assert not (tmp_path / "refused").exists()


def test_keeping_all_columns_leaves_out_the_prompt_that_the_output_has_anyway(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """With the default prompt column it was always refused."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "p", "error": "mine", "text": "t"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--keep-columns", "*"]
    result = run_job(*args, "--output", tmp_path / "refused")
    assert result.exit_code == 2
    assert "--keep-columns 'error': the output has its own column with that name. " in result.stderr
    assert "Keep it under another name with --keep-columns '*,error=NAME'." in result.stderr
    write_jsonl(data, [{"prompt": "p", "x": 1, "text": "t"}])
    for name, options, kept in (
        ("a", (), ["x", "text", "prompt"]),
        ("b", ("--no-include-prompt",), ["prompt", "x", "text"]),
        ("c", ("--prompt-column", "text", "--no-include-prompt"), ["prompt", "x", "text"]),
    ):
        assert run_job(*args, *options, "--output", tmp_path / name).exit_code == 0
        assert read_output(tmp_path / name).column_names[2:5] == kept
    refused = run_job(*args, "--prompt-column", "text", "--output", tmp_path / "d")  # another text than the prompt
    assert refused.exit_code == 2
    assert "--keep-columns '*,prompt=NAME', or give --no-include-prompt." in refused.stderr

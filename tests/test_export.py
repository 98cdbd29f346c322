"""``job export``: the rows of a run in one file, read back by what people read such files with."""

import csv
import errno
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.config import EXPORT_FORMATS
from job.output.looking.exporting import run_table, writers
from job.output.looking.exporting.target import new_file
from job.output.looking.exporting.writers import WRITERS
from job.output.looking.found import find_run
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl
from tests.test_verify import PART, change_counts, change_letter, flip_data, make_run, rewrite

RunJob = Callable[..., Result]


@pytest.fixture
def output(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Path:
    """Return a finished run of 54 rows in 3 parts, 6 of them with an error."""
    return make_run(run_job, tiny_model(), tmp_path / "out")


def export(run_job: RunJob, output: Path, *args: Any) -> Result:
    """Export; it must succeed."""
    result = run_job("export", output, *args)
    assert result.exit_code == 0, result.stderr
    return result


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_format_can_be_chosen_and_written() -> None:
    assert tuple(WRITERS) == EXPORT_FORMATS


@pytest.mark.parametrize("to", ["rows.jsonl", "rows.ndjson"])
def test_json_lines_have_the_rows_of_the_parts_in_order(run_job: RunJob, output: Path, tmp_path: Path, to: str) -> None:
    result = export(run_job, output, "--to", tmp_path / to)
    assert lines_of(tmp_path / to) == read_output(output).to_pylist()
    assert result.stdout == ""
    assert result.stderr == f"{tmp_path / to}: 54 rows, 6 of them with an error\n"
    assert polars.read_ndjson(tmp_path / to)["row_idx"].to_list() == read_output(output)["row_idx"].to_pylist()


def test_without_a_file_json_lines_go_to_standard_output(run_job: RunJob, output: Path) -> None:
    result = export(run_job, output)
    assert [json.loads(line) for line in result.stdout.splitlines()] == read_output(output).to_pylist()
    assert result.stderr == "standard output: 54 rows, 6 of them with an error\n"
    assert export(run_job, output, "--format", "csv", "--to", "-").stdout.count("\n") == 55


def test_csv_is_read_by_pandas_and_polars(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    """Numbers stay numbers, and what was null is missing."""
    export(run_job, output, "--to", tmp_path / "rows.csv")
    expected = read_output(output)
    read = pandas.read_csv(tmp_path / "rows.csv")
    assert list(read.columns) == expected.column_names
    assert read["id"].tolist() == expected["id"].to_pylist()
    assert [None if pandas.isna(text) else text for text in read["completion"]] == expected["completion"].to_pylist()
    assert polars.read_csv(tmp_path / "rows.csv")["error"].to_list() == expected["error"].to_pylist()


def test_parquet_has_the_same_table(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    """In one row group; its metadata says which run it is, and not what one part counted."""
    export(run_job, output, "--to", tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").equals(read_output(output))
    metadata = pq.read_metadata(tmp_path / "rows.parquet")
    assert metadata.num_row_groups == 1
    assert metadata.metadata[b"job.manifest"].decode() == find_run(output).manifest.digest
    assert b"job.counts" not in metadata.metadata


def test_row_groups_end_before_they_are_large(
    run_job: RunJob, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_table, "ROWS_PER_BATCH", 7)
    monkeypatch.setattr(writers, "ROWS_PER_GROUP", 20)
    export(run_job, output, "--to", tmp_path / "rows.parquet")
    footer = pq.read_metadata(tmp_path / "rows.parquet")
    assert [footer.row_group(idx).num_rows for idx in range(footer.num_row_groups)] == [20, 20, 14]
    monkeypatch.setattr(writers, "BYTES_PER_GROUP", 1)
    export(run_job, output, "--to", tmp_path / "small.parquet")
    assert pq.read_metadata(tmp_path / "small.parquet").num_row_groups == 8, "7 + 7 + 6, twice, and 7 + 7"
    assert pq.read_table(tmp_path / "rows.parquet").equals(read_output(output))


ODD = {
    "text": 'quo"te, line\nend \U0001f600',
    "empty": "",
    "list": [1, 2],
    "object": {"a": None, "b": [{"c": "d"}]},
    "number": 2**60 + 1,
    "flag": True,
    "real": 0.1,
}
"""A value of each kind that JSON has."""


@pytest.fixture
def odd(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Path:
    """Return a run that keeps columns of all types, all null in its second row."""
    data = write_jsonl(tmp_path / "odd.jsonl", [{"prompt": "a", **ODD}, {"prompt": "b"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "odd"]
    assert run_job(*args, "--keep-columns", ",".join(ODD)).exit_code == 0
    return tmp_path / "odd"


def test_every_type_survives_json_lines(run_job: RunJob, odd: Path, tmp_path: Path) -> None:
    export(run_job, odd, "--to", tmp_path / "rows.jsonl", "--columns", ",".join(ODD))
    assert lines_of(tmp_path / "rows.jsonl") == [ODD, dict.fromkeys(ODD)]


def test_nested_columns_are_json_in_csv_and_nulls_are_empty(run_job: RunJob, odd: Path, tmp_path: Path) -> None:
    """An empty text is told from a null by its quotes."""
    export(run_job, odd, "--to", tmp_path / "rows.csv", "--columns", ",".join(ODD))
    content = (tmp_path / "rows.csv").read_text()
    assert ',"",' in content and content.endswith("\n,,,,,,\n")
    full, empty = csv.DictReader(io.StringIO(content))
    assert set(empty.values()) == {""}
    assert full["text"] == ODD["text"]
    assert (json.loads(full["list"]), json.loads(full["object"])) == (ODD["list"], ODD["object"])
    assert (int(full["number"]), full["flag"], float(full["real"])) == (2**60 + 1, "true", 0.1)


def test_what_json_and_csv_have_no_word_for(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Bytes in base64, times as ISO 8601, decimals by their digits, NaN as null."""
    import datetime
    import decimal

    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    columns = {
        "prompt": ["a"],
        "bytes": [b"\xff\x00"],
        "time": [moment],
        "price": [decimal.Decimal("1.50")],
        "nan": [float("nan")],
        "times": [[moment]],
        "span": [datetime.timedelta(seconds=90)],
    }
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    names = [name for name in columns if name != "prompt"]
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "d.parquet"]
    assert run_job(*args, "--output", tmp_path / "out", "--keep-columns", ",".join(names)).exit_code == 0
    export(run_job, tmp_path / "out", "--to", tmp_path / "rows.jsonl", "--columns", ",".join(names))
    iso = "2026-01-02T03:04:05"
    expected = {"bytes": "/wA=", "time": iso, "price": "1.50", "nan": None, "times": [iso], "span": 90.0}
    assert lines_of(tmp_path / "rows.jsonl") == [expected]
    export(run_job, tmp_path / "out", "--to", tmp_path / "rows.csv", "--columns", ",".join(names))
    (row,) = csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))
    assert row["bytes"] == "/wA=" and row["price"] == "1.50" and json.loads(row["times"]) == [iso]
    assert datetime.datetime.fromisoformat(row["time"]) == moment and float(row["span"]) == 90


@pytest.mark.parametrize(
    ("value", "data_type"),
    [
        (2**63 - 1, pa.timestamp("us")),
        (-(2**62), pa.timestamp("ms", "UTC")),
        (3_000_000, pa.date32()),
        (2**62, pa.duration("s")),
    ],
    ids=str,
)
def test_times_that_python_does_not_have_are_exported_as_parquet_alone(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, value: int, data_type: pa.DataType
) -> None:
    """JSON lines ended with a traceback, csv had "<value out of range>"."""
    integers = pa.int32() if data_type.bit_width == 32 else pa.int64()
    column = pa.array([1, value, None], integers).cast(data_type)
    nested = pa.StructArray.from_arrays([column], ["at"])
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "at": column, "nested": nested}), tmp_path / "d.parquet")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "d.parquet"]
    assert run_job(*args, "--output", tmp_path / "out", "--keep-columns", "at,nested").exit_code == 0
    assert run_job("verify", tmp_path / "out").exit_code == 0
    assert read_output(tmp_path / "out")["at"].combine_chunks().cast(integers).to_pylist() == [1, value, None]
    for to, name in itertools.product(("rows.jsonl", "rows.csv"), ("at", "nested")):
        result = run_job("export", tmp_path / "out", "--to", tmp_path / to, "--columns", name)
        assert result.exit_code == 1 and not (tmp_path / to).exists()
        assert f"job: column '{name}', " in result.stderr
        assert "Leave the column out with --columns, or export with --format parquet." in result.stderr
    export(run_job, tmp_path / "out", "--to", tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet")["at"].combine_chunks().cast(integers).to_pylist() == [
        1,
        value,
        None,
    ]


def test_columns_of_mixed_types_are_json_and_not_text_of_json(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """``datasets`` stores them as text."""
    values = [{"a": 1}, {"a": "t", "b": [1, "c"]}, 5, None]
    (tmp_path / "d.json").write_text(json.dumps([{"prompt": "p", "x": value} for value in values]))
    datasets.load_dataset("json", data_files=str(tmp_path / "d.json"), split="train").save_to_disk(tmp_path / "saved")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "saved"]
    assert run_job(*args, "--output", tmp_path / "out", "--keep-columns", "x").exit_code == 0
    export(run_job, tmp_path / "out", "--to", tmp_path / "rows.jsonl", "--columns", "x")
    assert lines_of(tmp_path / "rows.jsonl") == [{"x": value} for value in values]
    export(run_job, tmp_path / "out", "--to", tmp_path / "rows.csv", "--columns", "x")
    cells = [row["x"] for row in csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))]
    assert [json.loads(cell) for cell in cells] == values[:3]  # a line without anything is no row to csv


def test_huggingface_features_survive_and_follow_the_columns(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """A class label is one in the exported file, too, and columns that are left out are not promised."""
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [1, 0]}, features=features).save_to_disk(
        tmp_path / "saved"
    )
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "saved"]
    assert run_job(*args, "--output", tmp_path / "out", "--keep-columns", "label").exit_code == 0
    export(run_job, tmp_path / "out", "--to", tmp_path / "rows.parquet", "--columns", "completion,label")
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    assert loaded.features == datasets.Features({"completion": datasets.Value("string"), "label": features["label"]})
    assert loaded["label"][:] == [1, 0]
    metadata = pq.read_metadata(tmp_path / "rows.parquet").metadata
    assert list(json.loads(metadata[b"huggingface"])["info"]["features"]) == ["completion", "label"]


def test_columns_are_those_asked_for_in_that_order(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    export(run_job, output, "--to", tmp_path / "a.jsonl", "--columns", "completion,id", "--columns", "row_idx,id")
    assert lines_of(tmp_path / "a.jsonl") == read_output(output).select(["completion", "id", "row_idx"]).to_pylist()
    result = run_job("export", output, "--columns", "answer")
    assert result.exit_code == 2
    assert result.stderr.startswith("job: --columns answer: the run has no such column. Columns: row_idx, sample_idx, ")


@pytest.mark.parametrize("columns", [[], ["--columns", "row_idx"]], ids=str)
def test_errors_are_left_out_if_asked(run_job: RunJob, output: Path, tmp_path: Path, columns: list[str]) -> None:
    result = export(run_job, output, "--to", tmp_path / "a.jsonl", "--no-errors", *columns)
    rows = [row["row_idx"] for row in read_output(output).to_pylist() if row["error"] is None]
    assert [line["row_idx"] for line in lines_of(tmp_path / "a.jsonl")] == rows
    assert result.stderr == f"{tmp_path / 'a.jsonl'}: 48 rows, 6 with an error left out\n"


def test_an_empty_run_gives_empty_files(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "empty.parquet"]
    assert run_job(*args, "--output", tmp_path / "out").exit_code == 0
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        export(run_job, tmp_path / "out", "--to", tmp_path / name)
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert list(pandas.read_csv(tmp_path / "rows.csv")["completion"]) == []
    assert pq.read_table(tmp_path / "rows.parquet").equals(read_output(tmp_path / "out"))


def test_an_unfinished_run_is_refused_unless_partial(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    (output / PART).unlink()
    to = tmp_path / "rows.jsonl"
    result = run_job("export", output, "--to", to)
    assert result.exit_code == 2
    assert result.stderr == (
        f"job: {output} is not finished: 20 of 54 rows are not in a part yet. "
        "Finish it with the same job run command, or give --partial.\n"
    )
    assert not to.exists()
    result = export(run_job, output, "--to", to, "--partial")
    assert lines_of(to) == read_output(output).to_pylist()
    assert result.stderr == f"{to}: 34 rows, 4 of them with an error, 20 not finished yet\n"
    for part in output.glob("data/part-*"):
        part.unlink()
    assert run_job("export", output, "--to", to, "--partial", "--force").exit_code == 2
    assert len(lines_of(to)) == 34


def test_rows_that_are_to_be_done_again_are_not_the_last_word(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    assert run_job("retry", output).exit_code == 0
    result = run_job("export", output, "--to", tmp_path / "rows.jsonl")
    assert result.exit_code == 2
    assert "is not finished: job retry has marked error rows of 3 parts." in result.stderr
    assert export(run_job, output, "--partial").stdout.count("\n") == 54


def test_an_existing_file_is_kept_unless_forced(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    to = tmp_path / "rows.jsonl"
    to.write_text("mine")
    result = run_job("export", output, "--to", to)
    assert result.exit_code == 2
    assert result.stderr == f"job: --to {to} exists. Name another file, or give --force to replace it.\n"
    assert to.read_text() == "mine"
    link = tmp_path / "link.jsonl"
    link.symlink_to(to)
    export(run_job, output, "--to", link, "--force")
    assert link.is_symlink() and len(lines_of(to)) == 54
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "out", "out.jsonl", "rows.jsonl"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "{tmp}"], "--to {tmp} has no known extension. Set --format to one of jsonl, csv, parquet, openai-"),
        (["--to", "{tmp}", "--format", "csv"], "--to {tmp} is a directory. Name a file."),
        (["--to", "{tmp}/no/rows.csv"], "--to {tmp}/no/rows.csv: the directory {tmp}/no does not exist."),
        (["--to", "{out}/data/x.parquet"], "--to {out}/data/x.parquet is in the run directory, which holds "),
        (["--to", "{out}/journal/x.csv", "--force"], "--to {out}/journal/x.csv is in the run directory, which holds "),
        (["--format", "parquet"], "--format parquet cannot be written to standard output. Name a file with --to."),
        (["--format", "openai-batch", "--columns", "id"], "--columns cannot be used with --format openai-batch, "),
        (["--to", "{tmp}/" + "x" * 300 + ".csv"], "--to {tmp}/" + "x" * 300 + ".csv cannot be written: File name too"),
        (["--format", "xlsx"], "Invalid value for '--format': 'xlsx' is not one of 'jsonl', 'csv', 'parquet', "),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_written_is_told_before_anything_is_read(
    run_job: RunJob, output: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    names = {"{tmp}": str(tmp_path), "{out}": str(output)}
    for mark, name in names.items():
        args, message = [arg.replace(mark, name) for arg in args], message.replace(mark, name)
    before = sorted(output.rglob("*"))
    result = run_job("export", output, *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"job: {message}")
    assert result.stderr.count("\n") == 1
    assert sorted(output.rglob("*")) == before


def test_no_run_directory_is_told(run_job: RunJob, tmp_path: Path) -> None:
    result = run_job("export", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"job: {tmp_path} is not a run directory: it has no manifest.json. Name the --output of a run.\n"
    )


def with_another_type(part: Path) -> None:
    def change(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("id")
        return rows.set_column(at, "id", rows["id"].cast(pa.int32()))

    rewrite(part, change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / PART).write_bytes(b""), "cannot be read: Parquet file size is 0 bytes"),
        (lambda out: flip_data(out / PART), "cannot be read: "),
        (lambda out: change_letter(out / PART, b"p", checksums=True), "cannot be read: "),
        (lambda out: rewrite(out / PART, lambda rows: rows.slice(1)), "has 19 rows; the plan has 20."),
        (lambda out: with_another_type(out / PART), "does not have the columns of data/part-00000.parquet."),
        (
            lambda out: pq.write_table(pq.read_table(out / PART).replace_schema_metadata(), out / PART),
            "is not a part of ",
        ),
    ],
    ids=["empty", "page", "letter", "rows", "type", "foreign"],
)
def test_a_damaged_part_is_named_and_no_file_is_left(
    run_job: RunJob, output: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(output)
    before = sorted(tmp_path.iterdir())
    result = run_job("export", output, "--to", tmp_path / "rows.csv")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"job: {output / PART} {message}")
    assert result.stderr.endswith("Run job verify to see what to do.\n") and result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_full_disk_is_told_and_the_old_file_stays(
    run_job: RunJob, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    to = tmp_path / name
    to.write_text("mine")
    before = sorted(tmp_path.iterdir())

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    result = run_job("export", output, "--to", to, "--force")
    assert result.exit_code == 1
    assert result.stderr == f"job: --to {to} cannot be written: No space left on device.\n"
    assert sorted(tmp_path.iterdir()) == before and to.read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_device_is_written_as_it_is(run_job: RunJob, output: Path, form: str) -> None:
    """Renaming a file over /dev/null would be a disaster; and what a full device says arrives through each writer."""
    export(run_job, output, "--to", "/dev/null", "--format", form)
    assert not Path("/dev/null").is_file()
    result = run_job("export", output, "--to", "/dev/full", "--format", form)
    assert result.exit_code == 1
    assert result.stderr == "job: --to /dev/full cannot be written: No space left on device.\n"


def test_part_by_part_is_read(run_job: RunJob, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written of a part is written before the next one is opened: memory does not grow with the run."""
    events: list[str] = []
    open_part, to_json = pq.ParquetFile, writers.to_json

    def record_open(file: BinaryIO, **options: Any) -> Any:
        events.append(Path(file.name).name)
        return open_part(file, **options)

    def record_row(row: Any) -> str:
        events.append("row")
        return to_json(row)

    monkeypatch.setattr(pq, "ParquetFile", record_open)
    monkeypatch.setattr(writers, "to_json", record_row)
    export(run_job, output, "--to", tmp_path / "rows.jsonl")
    assert events == [
        *["part-00000.parquet", *["row"] * 20, "part-00001.parquet", *["row"] * 20],
        *["part-00002.parquet", *["row"] * 14],
    ]


def test_the_counts_of_a_part_need_not_be_right(run_job: RunJob, output: Path, tmp_path: Path) -> None:
    """They are nothing that an export needs."""
    change_counts(output / PART, None)
    export(run_job, output, "--to", tmp_path / "rows.jsonl")
    assert len(lines_of(tmp_path / "rows.jsonl")) == 54


def answers(run_job: RunJob, output: Path, *args: Any) -> list[dict[str, Any]]:
    """Export as a batch's output."""
    return [json.loads(line) for line in export(run_job, output, "--format", "openai-batch", *args).stdout.splitlines()]


def test_openai_lines_have_a_choice_for_each_sample(run_job: RunJob, output: Path) -> None:
    """One line per row of the dataset; without an id column, the row's number is its id."""
    lines = answers(run_job, output)
    manifest = find_run(output).manifest
    rows = read_output(output).to_pylist()
    name = f"{manifest.digest[:16]}-1"
    assert [line["custom_id"] for line in lines] == [f"row-{idx}" for idx in range(27)]
    assert list(lines[1]) == ["id", "custom_id", "response", "error"]
    assert lines[1] == {
        "id": f"batch_req_{name}",
        "custom_id": "row-1",
        "response": {
            "status_code": 200,
            "request_id": f"req_{name}",
            "body": {
                "id": f"chatcmpl-{name}",
                "object": "chat.completion",
                "created": lines[1]["response"]["body"]["created"],
                "model": manifest.about["model"],
                "choices": [
                    {
                        "index": idx,
                        "message": {"role": "assistant", "content": "?1 noitseuq"},
                        "finish_reason": "stop",
                        "logprobs": None,
                    }
                    for idx in range(2)
                ],
                "usage": {
                    "prompt_tokens": rows[2]["num_prompt_tokens"],
                    "completion_tokens": 2 * rows[2]["num_completion_tokens"],
                    "total_tokens": rows[2]["num_prompt_tokens"] + 2 * rows[2]["num_completion_tokens"],
                },
            },
        },
        "error": None,
    }
    assert abs(lines[1]["response"]["body"]["created"] - output.stat().st_mtime) < 3600
    assert lines[10]["response"] is None
    assert lines[10]["error"] == {"code": "null_prompt", "message": "column 'prompt' is null"}
    assert len(answers(run_job, output, "--no-errors")) == 24
    assert answers(run_job, output) == lines


def test_samples_of_a_row_stay_together_over_batches(
    run_job: RunJob, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(run_job, output)
    monkeypatch.setattr(run_table, "ROWS_PER_BATCH", 3)
    assert answers(run_job, output) == expected


def test_the_id_column_is_the_custom_id(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Also if it is no text; a row that has none gets its number."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"id": 7, "prompt": "a"}, {"prompt": "b"}, b"torn"])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    assert run_job(*args, "--id-column", "id", "--max-error-rate", 1).exit_code == 0
    assert [line["custom_id"] for line in answers(run_job, tmp_path / "out")] == ["7", "row-1", "row-2"]


def test_openai_choices_have_their_reasoning_and_log_probabilities(run_job: RunJob, r1: Path, tmp_path: Path) -> None:
    """As the API shapes them: ``bytes`` are those of each token, even where it is a part of a character."""
    rows = [{"prompt": "é?"}, {"prompt": None}, {"prompt": "ab?"}]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    args = ["run", "--model", r1, "--dtype", "float32", "--dataset", data, "--output", tmp_path / "out"]
    args += ["--max-reasoning-tokens", 4, "--max-new-tokens", 9, "--top-logprobs", 2, "--max-error-rate", 1]
    assert run_job(*args).exit_code == 0
    found = read_output(tmp_path / "out").to_pylist()
    lines = answers(run_job, tmp_path / "out")
    assert lines[1]["response"] is None
    for row, body in [(found[idx], lines[idx]["response"]["body"]) for idx in (0, 2)]:
        [choice] = body["choices"]
        assert choice["message"]["reasoning_content"] == row["reasoning"] is not None
        assert choice["message"]["content"] == row["completion"]
        assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": row["num_reasoning_tokens"]}
        content = choice["logprobs"]["content"]
        assert [token["logprob"] for token in content] == pytest.approx(row["token_logprobs"])
        text = b"".join(bytes(token["bytes"]) for token in content).decode(errors="replace")
        assert text.partition("</think>")[0].strip() == row["reasoning"] and row["completion"] in text
        each_is_a_byte = [
            len(token["bytes"]) == 1 for token, idx in zip(content, row["token_ids"], strict=True) if idx < 258
        ]
        assert len(each_is_a_byte) >= 4 and all(each_is_a_byte)
        for token, ids in zip(content, row["top_token_ids"], strict=True):
            assert token["token"] == bytes(token["bytes"]).decode(errors="replace")
            assert [sorted(top) for top in token["top_logprobs"]] == [["bytes", "logprob", "token"]] * len(ids)
    tokenizer = r1 / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace("</think>", "</thunk>"))
    try:
        result = run_job("export", tmp_path / "out", "--format", "openai-batch")
    finally:
        tokenizer.write_text(text)
    assert (
        result.exit_code == 0
        and "logprobs are left out" in result.stderr
        and "not the one of this run" in result.stderr
    )
    assert json.loads(result.stdout.splitlines()[0])["response"]["body"]["choices"][0]["logprobs"] is None


def test_openai_log_probabilities_in_both_shapes() -> None:
    from job.output.looking.exporting.openai_logprobs import of_chat, of_text

    sample = {"token_ids": [7, 8, 9], "token_logprobs": [-0.5, -1.0, -math.inf]}
    names = {7: b"a", 8: "é".encode()[:1], 9: "é".encode()[1:]}
    tops = {"top_token_ids": [[7, 9], [8, None], [None] * 2], "top_logprobs": [[-0.5, -2.0], [-1.0, None], [None] * 2]}
    chat = of_chat(sample | tops, names.__getitem__)["content"]
    assert chat[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\ufffd", "logprob": -2.0, "bytes": [0xA9]},
        ],
    }
    assert [token["logprob"] for token in chat] == [-0.5, -1.0, -9999.0] and chat[2]["top_logprobs"] == []
    assert [token["top_logprobs"] for token in of_chat(sample, names.__getitem__)["content"]] == [[]] * 3
    assert of_text(sample | tops, names.__getitem__) == {
        "text_offset": [0, 1, 1],
        "token_logprobs": [-0.5, -1.0, -9999.0],
        "tokens": ["a", "\ufffd", "\ufffd"],
        "top_logprobs": [{"a": -0.5, "\ufffd": -2.0}, {"\ufffd": -1.0}, {}],
    }


def test_what_some_samples_lack_is_told_beside_the_choices_of_others() -> None:
    from job.output.looking.exporting.openai_answers import error_of

    bad = {"error": "engine_error: out of memory: 3 GiB"}
    assert error_of([{"error": None}, bad, bad]) == {"code": "engine_error", "message": "out of memory: 3 GiB"}
    assert error_of([{"error": None}]) is None


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_reader_that_has_enough_ends_it_without_a_word(output: Path, form: str) -> None:
    """As ``job export runs/x | head -1`` does; here the reader is gone before the first row."""
    command = f"set -o pipefail; {sys.executable} -m job export {output} --format {form} | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_what_is_ended_on_the_way_leaves_no_hidden_file(tmp_path: Path, number: signal.Signals) -> None:
    """A time limit or a closed terminal left gigabytes under a name that begins with a dot."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, new_file(tmp_path / "a.csv", None, force=False) as file:
            file.write(b"1")
            os.kill(os.getpid(), number)
        assert ended.value.code == 128 + number and not list(tmp_path.iterdir())
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        with new_file(tmp_path / "a.csv", None, force=False) as file:
            os.kill(os.getpid(), number)
        assert (tmp_path / "a.csv").is_file() and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)

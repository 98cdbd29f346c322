"""Opening: what files of one dataset may differ in, what is empty, what is torn, what is no file."""

import datetime
import gzip
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.config import DataConfig
from job.data import finding, formats, lines, listing, opening, patterns
from job.data.dataset import OpenDataset
from job.data.formats import Format, format_of_reader
from job.data.formats.files import Opened
from job.data.opening import open_dataset
from job.data.source import Source, read_rows
from job.errors import JobError, UsageError
from job.records import Row, RowBlock


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def opened(dataset: Path | str, **options: Any) -> OpenDataset:
    return open_dataset(DataConfig(dataset=str(dataset), **options))


def rows_of(source: Source) -> list[Row]:
    blocks = source.read(0, source.num_rows, source.schema.names, [])
    return [row for block in blocks for row in block.rows]


def values_of(dataset: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in rows_of(opened(dataset, **options).source)]


@pytest.mark.parametrize("name", ["a.csv", "d/a.csv"])
def test_only_an_empty_cell_of_csv_is_a_null(tmp_path: Path, name: str) -> None:
    """Prompts NA, None and null were nulls, because pandas takes these words for missing values.

    A cell of two quotation marks is an empty text, as `job export` writes it, but in a column of numbers it is a null.
    """
    write(tmp_path / name, 'prompt,n,m\nNA,1,1\nNone,2,NA\n,"",3\n"",4,4\nnull,5,5\n')
    dataset = tmp_path / name if name == "a.csv" else tmp_path / "d"
    values = values_of(dataset)
    assert [row["prompt"] for row in values] == ["NA", "None", None, "", "null"]
    assert [row["n"] for row in values] == [1, 2, None, 4, 5]
    assert [row["m"] for row in values] == ["1", "NA", "3", "4", "5"]


def test_a_dataset_may_say_itself_what_is_missing_in_csv(tmp_path: Path) -> None:
    write(
        tmp_path / "README.md",
        "---\nconfigs:\n- config_name: c\n  data_files: '*.csv'\n  sep: ';'\n  na_values: ['zz']\n---\n",
    )
    write(tmp_path / "a.csv", "prompt;n\nyes;1\nzz;2\n")
    assert values_of(tmp_path) == [{"prompt": "yes", "n": 1}, {"prompt": None, "n": 2}]


def test_csv_columns_are_found_by_their_names(tmp_path: Path) -> None:
    """Files with the same columns in another order were refused: "Schema at index 1 was different"."""
    write(tmp_path / "a.csv", "prompt,x\na,1\n")
    write(tmp_path / "b.csv", "x,prompt\n2,b\n")
    assert values_of(tmp_path / "*.csv") == [{"prompt": "a", "x": 1}, {"prompt": "b", "x": 2}]


def test_a_csv_column_of_several_types_is_text_as_it_stands_in_the_files(tmp_path: Path) -> None:
    """A late text among numbers ended the reading: at the start, or of a stream after hours. Large integers would not
    survive as doubles, nor zeros in front."""
    numbers = ["007", str(2**60 + 1), "", *map(str, range(10_000))]
    write(tmp_path / "a.csv", "prompt,x,y,b\n" + "".join(f"p,{n},1,true\n" for n in numbers) + "p,foo,2,\n")
    write(tmp_path / "b.csv", "prompt,x,y,b\np,1.50,3,false\n")
    source = opened(tmp_path / "*.csv").source
    values = [row.values for row in rows_of(source)]
    assert [row["x"] for row in values] == [number or None for number in numbers] + ["foo", "1.50"]
    assert [row["y"] for row in values][-3:] == [1, 2, 3]
    assert [row["b"] for row in values][-3:] == [True, None, False]


@pytest.mark.parametrize("dataset", ["*.csv", ""])
def test_csv_files_with_other_columns_are_refused_with_their_names(tmp_path: Path, dataset: str) -> None:
    """The message was "Schema at index 1 was different: (and there is no such file or directory)"."""
    write(tmp_path / "a.csv", "prompt,x\na,1\n")
    write(tmp_path / "b.csv", "prompt,x,y\nb,1,2\n")
    message = f"{tmp_path}/a.csv has no column 'y', but {tmp_path}/b.csv has. Give files with the same columns."
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        opened(tmp_path / dataset)


def test_json_files_may_lack_columns_and_have_them_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "a.json", '[{"prompt": "a", "x": 1, "n": null}]')
    write(tmp_path / "b.json", '[{"y": 2, "prompt": "b", "n": "text"}]')
    assert values_of(tmp_path / "*.json") == [
        {"prompt": "a", "x": 1, "n": None},
        {"prompt": "b", "n": "text", "y": 2},
    ]


def test_a_json_column_of_several_types_is_text_as_in_json_lines(tmp_path: Path) -> None:
    """Files of other types were refused; within one file, the types of the first rows decided."""
    write(tmp_path / "a.json", '[{"prompt": "a", "x": 1}]')
    write(tmp_path / "b.json", '[{"prompt": "b", "x": "text"}]')
    source = opened(tmp_path / "*.json").source
    source.fix_columns(["x"])
    (block,) = source.read(0, 2, [], ["x"])
    assert block.kept["x"].to_pylist() == ["1", "text"]


@pytest.mark.parametrize("damage", ["cut", "bytes"])
def test_a_torn_file_is_told_with_its_name(tmp_path: Path, damage: str) -> None:
    """All that was said was "Aborted!", which click makes of an EOFError."""
    whole = gzip.compress(b"".join(json.dumps({"prompt": os.urandom(20).hex()}).encode() + b"\n" for _ in range(3000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    (tmp_path / "b.jsonl.gz").write_bytes(
        whole[:20_000] if damage == "cut" else whole[:500] + b"\xff" * 300 + whole[800:]
    )
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path))}/b.jsonl.gz: the file is truncated or damaged: "):
        opened(tmp_path / "*.jsonl.gz")


class Failing:
    """A source that gives a row, and fails."""

    num_rows = 2
    schema = pa.schema([("text", pa.string())])

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.problems: dict[str, str] = {}

    def read(self, start: int, stop: int, columns: Sequence[str], kept: Sequence[str]) -> Iterator[RowBlock]:
        yield RowBlock(rows=[Row(row_idx=0, values={"text": "a"})], kept=self.schema.empty_table())
        raise self._error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            EOFError("ended early"),
            "can no longer be read: ended early. Finished rows are safe; run the same command again",
        ),
        (OSError("gone"), "can no longer be read: gone. Finished rows are safe; run the same command again once the"),
        (
            pa.ArrowInvalid("'foo'"),
            "cannot be read: 'foo'. Finished rows are safe, but the same command will stop here",
        ),
        (
            OverflowError("too large"),
            "cannot be read: too large. Finished rows are safe, but the same command will stop here",
        ),
    ],
    ids=["torn", "gone", "wrong", "any other"],
)
def test_only_data_that_can_come_back_is_promised_to_continue(error: Exception, message: str) -> None:
    """An EOFError ended a run with "Aborted!"; and of a wrong type it was said that it goes on "once it is back"."""
    with pytest.raises(JobError, match=f"^--dataset d {re.escape(message)}"):
        list(read_rows(Failing(error), "d", range(2), ["text"], []))


def test_a_csv_file_of_a_header_alone_is_refused(tmp_path: Path) -> None:
    """The model was loaded for nothing, and the run ended with "0 rows" and exit code 0."""
    with pytest.raises(UsageError, match=r"a\.csv has a header and no rows\.$"):
        opened(write(tmp_path / "a.csv", "prompt,x\n"))


def test_a_json_file_of_no_rows_is_refused_since_it_has_no_columns(tmp_path: Path) -> None:
    """It was refused for 'Instruction "train" corresponds to no data!'."""
    with pytest.raises(UsageError, match=r"a.json: it has no rows, so no columns either.$"):
        opened(write(tmp_path / "a.json", "[]"))


def test_a_saved_split_may_have_no_rows(tmp_path: Path) -> None:
    """It was an IndexError out of datasets."""
    full = datasets.Dataset.from_dict({"prompt": ["a"]})
    datasets.DatasetDict({"train": full, "test": full.select([])}).save_to_disk(tmp_path / "both")
    datasets.Dataset(full.data.table.slice(0, 0), split=datasets.Split.TEST).save_to_disk(tmp_path / "one")
    for name in ("both", "one"):
        source = opened(tmp_path / name, split="test").source
        assert (source.num_rows, source.schema.names, rows_of(source)) == (0, ["prompt"], [])
    assert opened(tmp_path / "one").split == "test", "as it was saved"


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            "saved",
            {"data_files": ("*.arrow",)},
            "--data-files is for directories and Hub datasets, but --dataset saved is",
        ),
        ("saved", {"dataset_config": "x"}, "--dataset-config is for .* is from save_to_disk. Leave it out."),
        ("saved", {"csv_delimiter": ";"}, "--csv-delimiter is for .*, which --dataset saved is not. Leave it out."),
        ("d/*.jsonl", {"data_files": ("a.jsonl",)}, "--data-files is for .* is a pattern. Leave it out."),
        ("d/a.jsonl", {"data_files": ("a.jsonl",)}, "--data-files is for .* is a file. Leave it out."),
        ("d", {"data_files": ("a.jsonl",), "dataset_config": "x"}, "--dataset-config x has no effect: no README.md"),
    ],
)
def test_options_without_an_effect_on_a_dataset_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, options: dict[str, Any], message: str
) -> None:
    """They were ignored; a run that an older version started goes on."""
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_dict({"prompt": ["a"]}).save_to_disk("saved")
    write(tmp_path / "d" / "a.jsonl", '{"prompt": "a"}\n')
    with pytest.raises(UsageError, match=message):
        opened(dataset, **options)
    if "csv_delimiter" not in options and dataset != "d/a.jsonl":
        assert open_dataset(DataConfig(dataset=dataset, **options), is_older=True).source.num_rows == 1


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    """V.JSONL and V.PARQUET were refused."""
    pq.write_table(pa.table({"prompt": ["NA"]}), tmp_path / "V.PARQUET")
    write(tmp_path / "V.JSONL", '{"prompt": "NA"}\nno json\n')
    (tmp_path / "V.CSV.GZ").write_bytes(gzip.compress(b"prompt\nNA\n"))
    for name in ("V.PARQUET", "V.CSV.GZ"):
        assert values_of(tmp_path / name) == [{"prompt": "NA"}]
    first, second = rows_of(opened(tmp_path / "V.JSONL").source)
    assert first.values == {"prompt": "NA"} and second.error is not None, "read in place, like v.jsonl"


@pytest.mark.parametrize("name", ["B.JSONL", "sub/B.jsonl.GZ"])
def test_a_directory_may_have_endings_in_capitals(tmp_path: Path, name: str) -> None:
    """datasets looks for small letters: the rows of B.JSONL beside a.jsonl were dropped without a word."""
    write(tmp_path / "a.jsonl", '{"prompt": "a"}\n')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(gzip.compress(b'{"prompt": "b"}\n') if name.endswith("GZ") else b'{"prompt": "b"}\n')
    assert sorted(row["prompt"] for row in values_of(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl"])
def test_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    """The message was 'pop from an empty set'."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        UsageError, match=f"{name} is a pipe, a socket or a device, which can be read only once. Copy it"
    ):
        opened(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"{not json",
        b"\xff",
        b"[]",
        b'{"info": null}',
        json.dumps({"info": {"features": {"x": {"_type": "Hologram"}, "n": {"_type": "ClassLabel", "names": "ab"}}}}),
        json.dumps({"info": {"features": {"x": {"dtype": "int1024", "_type": "Value"}}}}),
        json.dumps({"info": {"features": {"x": {"_type": "ClassLabel", "color": 1}}}}),
    ],
)
def test_features_that_datasets_cannot_read_do_not_matter(tmp_path: Path, content: Any) -> None:
    """A file written by a newer ``datasets`` was a traceback, even if the column was not used."""
    schema = pa.table({"x": ["a"], "n": [1]}).schema.with_metadata({"huggingface": content, "other": "kept"})
    pq.write_table(pa.table({"x": ["a"], "n": [1]}, schema=schema), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet").source
    assert [row.values for row in rows_of(source)] == [{"x": "a", "n": 1}]
    assert source.schema.metadata[b"other"] == b"kept"
    features = datasets.Features.from_arrow_schema(source.schema)
    assert features["x"] == datasets.Value("string")
    assert isinstance(features["n"], datasets.ClassLabel) == (
        "ClassLabel" in str(content) and "Hologram" in str(content)
    )


@pytest.mark.parametrize("num_bytes", [0, 100, 2000])
def test_a_damaged_file_is_named(tmp_path: Path, num_bytes: int) -> None:
    """Of ten thousand files it was not said which one is not Parquet."""
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1" * (num_bytes // 4))
    with pytest.raises(UsageError, match=f"^{re.escape(f'--dataset {tmp_path}: {tmp_path}/b.parquet: Parquet ')}"):
        opened(tmp_path)


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    for name in "ab":
        pq.write_table(pa.table({"x": [name * 1000]}), tmp_path / f"{name}.parquet", compression="none")
    damaged = bytearray((tmp_path / "b.parquet").read_bytes())
    damaged[4:40] = b"\xff" * 36
    (tmp_path / "b.parquet").write_bytes(damaged)
    source = opened(tmp_path).source
    with pytest.raises(JobError, match=f"^--dataset d can.* be read: {re.escape(str(tmp_path))}/b.parquet: "):
        list(read_rows(source, "d", range(2), ["x"], []))


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "fingerprint", lambda: None)
    with pytest.raises(TypeError, match="argument"):
        opened(write(tmp_path / "a.jsonl", '{"x": 1}\n'))


def test_a_glob_of_directories_alone_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match=r"/\*: there is no such file\.$"):
        opened(tmp_path / "*")


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_value_that_python_cannot_have_is_an_error_of_its_row(tmp_path: Path, form: str) -> None:
    """One timestamp of the year 148,000, or one string in Latin-1, was a traceback: no row was done."""
    times = pa.array([0 if idx != 25 else 2**62 for idx in range(300)]).cast(pa.timestamp("us"))
    latin = pa.array([b"caf\xe9" if idx == 7 else b"good" for idx in range(300)], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 300, latin.buffers()), "time": times})
    if form == "parquet":
        pq.write_table(table, tmp_path / "d.parquet")
    else:
        datasets.Dataset(table).save_to_disk(tmp_path / "d.parquet")
    rows = rows_of(opened(tmp_path / "d.parquet").source)
    assert [row.row_idx for row in rows] == list(range(300))
    assert {row.row_idx: str(row.error) for row in rows if row.error} == {
        7: "invalid_unicode: column 'text': 'utf-8' codec can't decode byte 0xe9 in position 3: unexpected end of data",
        25: "invalid_value: column 'time', timestamp[us]: date value out of range",
    }
    assert all(row.values == {"text": "good", "time": datetime.datetime(1970, 1, 1)} for row in rows if not row.error)


def make_mixed(directory: Path) -> Path:
    write(directory / "a.jsonl", '{"prompt": "a"}\n' * 3)
    write(directory / "b.csv", "prompt\nb\n")
    return directory


@pytest.mark.parametrize("place", ["mixed", "sub/../mixed", "../mixed", ".cache/mixed", "__staging__/mixed"])
def test_files_of_several_kinds_are_refused_wherever_their_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Below ``..`` or a hidden directory every file counted as hidden: the rows of b.csv were dropped."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make_mixed(tmp_path / Path(place).relative_to(".." if place.startswith("..") else "."))
    for dataset in (place if place.startswith("..") else f"../{place}", tmp_path / place.removeprefix("../")):
        with pytest.raises(UsageError, match=r"holds files of several kinds: a\.jsonl, b\.csv\. Choose with"):
            opened(dataset)


def test_a_file_whose_own_name_begins_with_underscores_counts(tmp_path: Path) -> None:
    """datasets passes over such directories, not such files: the rows of one of the two were dropped."""
    make_mixed(tmp_path)
    (tmp_path / "b.csv").rename(tmp_path / "__b.csv")
    with pytest.raises(UsageError, match=r"holds files of several kinds: __b\.csv, a\.jsonl"):
        opened(tmp_path)


def test_what_is_hidden_below_a_directory_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"prompt": "a"}\n')
    for name in ("._b.csv", ".git/b.csv", "__pycache__/b.csv"):
        write(tmp_path / name, "prompt\nb\n")
    assert values_of(tmp_path) == [{"prompt": "a"}]


def test_a_directory_whose_parents_look_like_globs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets joins the working directory to the name, and takes all of it for a glob."""
    write(tmp_path / "x[1]" / "d" / "a.jsonl", '{"prompt": "a"}\n')
    monkeypatch.chdir(tmp_path / "x[1]")
    assert values_of("d") == [{"prompt": "a"}]
    write(tmp_path / "x[1]" / "d" / "README.md", "---\nconfigs:\n- config_name: c\n  data_files: a.jsonl\n---\n")
    with pytest.raises(UsageError, match=r"a directory whose README.md lists configs may not contain"):
        opened("d")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("a*.jsonl", "a1.jsonl"), ["a1", "a2"]),
        (("a2.jsonl", "a*.jsonl"), ["a2", "a1"]),
        (("a1.jsonl", "a1.jsonl"), ["a1"]),
        (("a1.jsonl", "../d/a1.jsonl"), ["a1"]),
        (("*.jsonl",), ["a1", "a2"]),
        (("**/*.jsonl",), ["a1", "a2"]),
        ((".*.jsonl", "a1.jsonl"), ["hidden", "a1"]),
        (("._a1.jsonl",), ["hidden"]),
        ((".h/*.jsonl",), ["below"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["directory", "reader"])
def test_each_file_is_read_once_and_hidden_ones_if_they_are_named(
    tmp_path: Path, patterns: tuple[str, ...], expected: list[str], form: str
) -> None:
    """Rows of a1.jsonl came twice; a glob took the ``._a1.jsonl`` that macOS leaves on foreign disks for data."""
    names = {"a1": "a1", "a2": "a2", "._a1": "hidden", ".h/x": "below"}
    for name, text in names.items():
        write(tmp_path / ".up" / "d" / f"{name}.jsonl", json.dumps({"prompt": text}) + "\n")
    directory = tmp_path / ".up" / "d"
    if form == "directory":
        values = values_of(directory, data_files=patterns)
    else:
        values = values_of("json", data_files=tuple(f"{directory}/{pattern}" for pattern in patterns))
    assert [row["prompt"] for row in values] == expected


def test_two_links_to_one_file_are_two_files(tmp_path: Path) -> None:
    """As in a Hub cache, where parts of equal contents are links to one file: their rows are not the same rows."""
    blob = write(tmp_path / "blob", '{"prompt": "a"}\n')
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).symlink_to(blob)
    assert len(values_of(tmp_path / "*.jsonl")) == 2


def test_the_table_of_formats_says_what_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new format is a module with ``open_files`` and one line in the table; ``datasets`` need not know it."""
    lower = ModuleType("job.data.formats.lower")
    lower.open_files = lambda files: Opened(  # type: ignore[attr-defined]
        source=Failing(OSError(",".join(Path(n).name for n in files.names)))
    )
    monkeypatch.setitem(sys.modules, lower.__name__, lower)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Format(module="lower", endings=(".low",))))
    for module in (finding, listing, patterns):
        monkeypatch.setattr(module, "ENDINGS", (*formats.ENDINGS, ".low"))
    write(tmp_path / "a.low", "")
    write(tmp_path / "b.low", "")
    for dataset in (tmp_path, tmp_path / "*.low"):
        with pytest.raises(OSError, match=r"^a\.low,b\.low$"):
            rows_of(opened(dataset).source)
    with pytest.raises(UsageError, match="no such file or directory"):
        opened("missing.low")


@pytest.mark.parametrize(
    ("reader", "names", "module"),
    [
        ("json", ["a.jsonl", "b.NDJSON.gz"], "json_lines"),
        ("json", ["a.txt"], "json_lines"),
        ("json", ["a.jsonl", "b.json"], "json_file"),
        ("json", ["a.log"], "json_file"),
        ("csv", ["a.tsv"], "tsv"),
        ("csv", ["a.tsv", "b.csv"], "csv"),
        ("csv", ["a.log"], "csv"),
        ("text", ["a.jsonl"], "text"),
        ("text", ["a.log"], "text"),
        ("parquet", ["https://host/a.parquet"], "parquet"),
        ("imagefolder", ["a.png"], "converted"),
        ("parquet", [], "parquet"),
    ],
)
def test_files_of_a_reader_have_the_format_of_their_names(reader: str, names: list[str], module: str) -> None:
    assert format_of_reader(reader, names).module == module


def test_a_run_keeps_and_reads_columns_that_occur_late(tmp_path: Path, run_job: Any, tiny_model: Any) -> None:
    """``--keep-columns '*'`` lost the column, and a template that named it was refused."""
    rows = [{"prompt": "p"}] * 1000 + [{"prompt": "p", "label": "late"}]
    data = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data]
    result = run_job(*args, "--keep-columns", "*", "--output", tmp_path / "kept")
    assert result.exit_code == 0, result.stderr
    assert pq.read_table(tmp_path / "kept/data/part-00000.parquet")["label"].to_pylist() == [None] * 1000 + ["late"]
    template = ["--prompt-template", "{{ label or 'none' }}"]
    result = run_job(*args, *template, "--output", tmp_path / "read")
    assert result.exit_code == 0, result.stderr
    assert pq.read_table(tmp_path / "read/data/part-00000.parquet")["prompt"].to_pylist() == ["none"] * 1000 + ["late"]


def test_a_batch_of_requests_is_indexed_once(tmp_path: Path, run_job: Any, tiny_model: Any, monkeypatch: Any) -> None:
    """Its lines were counted twice: it was opened again when its ids were found to be kept."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    data = write(tmp_path / "x.jsonl", json.dumps({"custom_id": "a", "body": body}) + "\n")
    indexed: list[str] = []
    index = lines.index_lines
    monkeypatch.setattr(lines, "index_lines", lambda path, **options: indexed.append(path) or index(path, **options))
    args = ["run", "--engine", "fake", "--model", tiny_model(chat=True), "--dataset", data]
    result = run_job(*args, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert indexed == [str(data)]
    assert pq.read_table(tmp_path / "out" / "data/part-00000.parquet")["custom_id"].to_pylist() == ["a"]


@pytest.mark.parametrize("dataset", ["a.tsv", "*.tsv", ""])
def test_cells_of_tsv_are_separated_by_tabs(tmp_path: Path, dataset: str) -> None:
    write(tmp_path / "a.tsv", "prompt\tn\na, b\t1\nNA\t2\n")
    expected = [{"prompt": "a, b", "n": 1}, {"prompt": "NA", "n": 2}]
    assert values_of(tmp_path / dataset) == expected
    assert values_of("csv", data_files=(f"{tmp_path}/a.tsv",)) == expected


@pytest.mark.parametrize("zone", ["Mars/Base", "tzutc()"])
def test_times_in_an_unknown_zone_are_given_in_utc(tmp_path: Path, zone: str) -> None:
    """Every row was an error: "The zoneinfo module or pytz package must be installed"."""
    times = pa.array([0, None], pa.timestamp("us", zone))
    lists = pa.array([[{"t": 0}], []], pa.list_(pa.struct([("t", pa.timestamp("us", zone))])))
    pq.write_table(pa.table({"time": times, "list": lists}), tmp_path / "d.parquet")
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert values_of(tmp_path / "d.parquet") == [{"time": start, "list": [{"t": start}]}, {"time": None, "list": []}]

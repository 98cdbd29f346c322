"""Tables of text: every cell is in the column and in the form that the file gives it, or the file is refused."""

import codecs
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job.config import DataConfig
from job.data.formats import cells, csv, csv_text
from job.data.opening import OpenDataset, open_dataset
from job.errors import UsageError
from tests.test_run import read_output


def opened(tmp_path: Path, text: str | bytes, name: str = "a.csv", **options: Any) -> OpenDataset:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return open_dataset(DataConfig(dataset=str(tmp_path / name), **options))


def rows_of(dataset: OpenDataset) -> list[dict[str, Any]]:
    source = dataset.source
    blocks = source.read(0, source.num_rows, source.schema.names, [])
    return [dict(row.values) for block in blocks for row in block.rows]


def column(tmp_path: Path, cells: list[str]) -> list[Any]:
    """Return the values of a column with these cells."""
    text = "prompt,x\n" + "".join(f"p,{cell}\n" for cell in cells)
    return [row["x"] for row in rows_of(opened(tmp_path, text))]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_empty_cells_beyond_the_header_are_left_out(tmp_path: Path, name: str) -> None:
    """pandas took the first column for an index: all others moved to the left, and the ids were lost."""
    text = b"id,prompt,label\n11,What is rain?,weather,\n12,What is a cat?,animal,\n"
    dataset = opened(tmp_path, gzip.compress(text) if "gz" in name else text, name)
    assert rows_of(dataset) == [
        {"id": 11, "prompt": "What is rain?", "label": "weather"},
        {"id": 12, "prompt": "What is a cat?", "label": "animal"},
    ]
    assert dataset.notes == (f"{name}: each row has 1 empty cell more than the header, left out",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,prompt\n1,a,\n2,b\n", "line 2 has 3 cells, but the header has 2: '1,a,'"),
        ("id,prompt\n1,a\n2,b,\n", "line 3 has 3 cells, but the header has 2: '2,b,'"),
        ("id,prompt\n1,a,\n2,b,x\n", "line 3 has 3 cells, but the header has 2: '2,b,x'"),
        ("id,prompt\n1,a, b\n2,c, d\n", "line 2 has 3 cells, but the header has 2: '1,a, b'"),
        ('id,prompt\n1,"a\nb"\n2\n', "line 4 has 1 cell, but the header has 2: '2'"),
        ("\nid,prompt\n\n1,a\n\n2\n", "line 6 has 1 cell, but the header has 2: '2'"),
        ("# made by X\nprompt,id\na,1\n", "line 2 has 2 cells, but the header has 1: 'prompt,id'"),
        ('id,prompt\n1,a\n2,"b\n3,c\n', "line 3: a quotation mark opens a cell that does not end"),
        ('prompt\na\n"b\nc\n', "line 3: a quotation mark opens a cell that does not end"),
        ('id,prompt\n1,"a', "line 2: a quotation mark opens a cell that does not end"),
        ("", "is empty"),
        ("id,prompt\n", "has a header and no rows"),
    ],
)
def test_rows_that_do_not_fit_the_header_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path / 'a.csv'))},? {re.escape(message)}"):
        opened(tmp_path, text)


def test_rows_are_found_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell may be longer than what is read at once, and may hold line ends and quotation marks."""
    monkeypatch.setattr(csv_text, "READ_BYTES", 7)
    monkeypatch.setattr("job.data.formats.csv.BLOCK_BYTES", (64, 1 << 20))
    cells = [f'{idx}é\r\n"{"x" * (idx * 7 % 90)}"' for idx in range(40)]
    text = "prompt,n\n" + "".join('"{}",{}\n'.format(cell.replace('"', '""'), idx) for idx, cell in enumerate(cells))
    assert rows_of(opened(tmp_path, text)) == [{"prompt": cell, "n": idx} for idx, cell in enumerate(cells)]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
def test_line_ends_and_the_last_line(tmp_path: Path, end: str) -> None:
    text = (end or "\n").join(["prompt,n", "a,1", "b,2"]) + end
    assert rows_of(opened(tmp_path, text)) == [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]


def test_a_blank_line_is_a_row_only_in_a_single_column(tmp_path: Path) -> None:
    """Rows of a column of prompts were lost: all later ones had another row_idx than their line."""
    assert rows_of(opened(tmp_path, "prompt\na\n\nb\n")) == [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}]
    assert rows_of(opened(tmp_path, "prompt,n\na,1\n\nb,2\n")) == [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", "", "0"], [1, -2, None, 0]),
        (["1234567890123456789", ""], [1234567890123456789, None]),
        (["0012", "12"], ["0012", "12"]),
        (["-0", "1"], ["-0", "1"]),
        (["+4930", "4930"], ["+4930", "4930"]),
        (["18446744073709551616", "7"], ["18446744073709551616", "7"]),
        (["99999999999999999999.5", "-.5", "1e-320"], [1e20, -0.5, 1e-320]),
        (["1.5", "2", "1e+05", "1.0E5"], [1.5, 2.0, 1e5, 1e5]),
        (["1.5", str(2**53 + 1)], ["1.5", str(2**53 + 1)]),
        (["1E5", "2E3"], ["1E5", "2E3"]),
        (["1e400", "1.5"], ["1e400", "1.5"]),
        (["1.5", "nan"], ["1.5", "nan"]),
        (["00.5", "1.5"], ["00.5", "1.5"]),
        (["1_000", "1"], ["1_000", "1"]),
        (["true", "FALSE", ""], [True, False, None]),
        (["true", "1"], ["true", "1"]),
        (["2024-01-05", ""], ["2024-01-05", None]),
        (["", '""'], [None, ""]),
        (["1", '""'], [1, None]),
        ([" 1", "2"], [" 1", "2"]),
        (['5" disk', 'the "x" y'], ['5" disk', 'the "x" y']),
    ],
    ids=str,
)
def test_a_column_is_of_numbers_only_if_nothing_is_lost(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    """Zeros in front, large integers and plus signs were lost, integers with gaps were doubles, and 20 digits were a
    traceback."""
    found = column(tmp_path, cells)
    assert found == values and [type(value) for value in found] == [type(value) for value in values]


def test_types_fit_all_files(tmp_path: Path) -> None:
    """A column is one type in one file and another in the next, whose columns are in another order."""
    (tmp_path / "a.csv").write_text("prompt,x,y\na,1,1\n")
    (tmp_path / "b.csv").write_text("y;prompt;x\n1.5;b;007\n")
    dataset = open_dataset(DataConfig(dataset=str(tmp_path / "*.csv")))
    assert rows_of(dataset) == [{"prompt": "a", "x": "1", "y": 1.0}, {"prompt": "b", "x": "007", "y": 1.5}]
    assert dataset.reading == {"reader": "csv-2", "csv_delimiter": ",;", "csv_encoding": "utf-8"}


def test_short_files_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 files of a row and 100 columns took 80 seconds: every batch of rows costs time for every column."""
    for idx in range(20):
        header = "prompt,x" if idx % 2 else "x,prompt"
        (tmp_path / f"{idx:02}.csv").write_text(f"{header}\n{idx},{idx}\n")
    num_looks = 0
    add = cells.ColumnType.add

    def counted(self: cells.ColumnType, column: pa.Array) -> None:
        nonlocal num_looks
        num_looks += 1
        add(self, column)

    monkeypatch.setattr(cells.ColumnType, "add", counted)
    assert rows_of(open_dataset(DataConfig(dataset=str(tmp_path)))) == [{"x": idx, "prompt": idx} for idx in range(20)]
    assert num_looks == 2
    monkeypatch.setattr(csv, "MIN_BATCH_BYTES", 0)
    open_dataset(DataConfig(dataset=str(tmp_path), limit=20))  # with a limit, it is converted anew
    assert num_looks == 2 + 40


def test_a_limit_leaves_the_rows_after_it_out_of_the_types(tmp_path: Path) -> None:
    dataset = opened(tmp_path, "prompt,x\na,1\nb,2\nc,text\n", limit=2)
    assert rows_of(dataset) == [{"prompt": "a", "x": 1}, {"prompt": "b", "x": 2}]


@pytest.mark.parametrize(
    ("text", "name", "options", "delimiter"),
    [
        ("prompt;id\nhello, you;1\n", "a.csv", {}, ";"),
        ("prompt;id\n", "a.csv", {}, None),
        ("prompt\tid\nhello\t1\n", "a.csv", {}, "\t"),
        ("prompt|id\nhello|1\n", "a.csv", {}, "|"),
        ("id;preis\n1;2,5\n2;3,7\n", "a.csv", {}, ";"),
        ("sep=;\nprompt;id\nhello;1\n", "a.csv", {}, ";"),
        ("sep=;\r\nprompt;id\r\nhello;1\r\n", "a.csv", {"csv_delimiter": ";"}, ";"),
        ("sep=|\nprompt|id\nhello|1\n", "a.csv", {}, "|"),
        ("prompt^id\nhello^1\n", "a.csv", {"csv_delimiter": "^"}, "^"),
        ("prompt;id\nhello;1\n", "a.tsv", {"csv_delimiter": ";"}, ";"),
        ("prompt\tid\nhello;you\t1\n", "a.tsv", {}, "\t"),
        ("a;b,c\n1;2,3\n", "a.csv", {}, ","),
        ("What; is it?\nyes\n", "a.csv", {}, ","),
        ('"a;b"\n"1;2"\n', "a.csv", {}, ","),
    ],
    ids=repr,
)
def test_what_separates_the_cells_is_recognized_or_given(
    tmp_path: Path, text: str, name: str, options: dict[str, Any], delimiter: str | None
) -> None:
    """Semicolons, as European spreadsheets write them, gave a single column."""
    if delimiter is None:
        with pytest.raises(UsageError, match="has a header and no rows"):
            opened(tmp_path, text, name, **options)
        return
    dataset = opened(tmp_path, text, name, **options)
    assert dataset.reading["csv_delimiter"] == delimiter
    was_said = options or delimiter == "," or (delimiter == "\t" and name == "a.tsv")
    assert bool(dataset.notes) == (not was_said)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (codecs.BOM_UTF8 + "prompt,é\nü,1\n".encode(), None),
        (codecs.BOM_UTF8 + "prompt,é\nü,1\n".encode(), "utf-8-sig"),
        ("prompt,é\nü,1\n".encode("utf-16"), None),
        ("prompt,é\nü,1\n".encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + "prompt,é\nü,1\n".encode("utf-16-be"), None),
        ("prompt,é\nü,1\n".encode("utf-16-le"), "utf-16-le"),
        ("prompt,é\nü,1\n".encode("cp1252"), "cp1252"),
        ("prompt,é\nü,1\n".encode("latin-1"), "ISO-8859-1"),
    ],
    ids=str,
)
def test_encodings_are_recognized_or_given(tmp_path: Path, content: bytes, encoding: str | None) -> None:
    assert rows_of(opened(tmp_path, content, csv_encoding=encoding)) == [{"prompt": "ü", "é": 1}]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("prompt,x\na,1\ncafé,2\n".encode("cp1252"), None, "line 3: the byte 0xe9 is not UTF-8. Set --csv-encoding"),
        ("prompt,é\na,1\n".encode("cp1252"), None, "line 1: the byte 0xe9 is not UTF-8. Set --csv-encoding"),
        (b"prompt\na\xe9\n", "ascii", "line 2: a byte is not ASCII. Set --csv-encoding"),
        ("prompt,x\na,1\n".encode("utf-16-le"), None, "is not UTF-8 text. Set --csv-encoding, for example"),
        (
            codecs.BOM_UTF8 + b"prompt\na\n",
            "cp1252",
            "begins with the mark of UTF-8, which is not --csv-encoding cp1252",
        ),
    ],
    ids=str,
)
def test_wrong_bytes_are_refused_with_the_way(
    tmp_path: Path, content: bytes, encoding: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        opened(tmp_path, content, csv_encoding=encoding)


@pytest.mark.parametrize(
    ("text", "columns", "note"),
    [
        ("prompt,prompt,id\nA,B,1\n", ["prompt", "prompt_2", "id"], "column 2 is another 'prompt'; it is called"),
        (",prompt\n0,a\n", ["column_1", "prompt"], "column 1 has no name; it is called 'column_1' here"),
        ("prompt,,\na,,\n", ["prompt"], "column 2 has no name and no values; it is left out"),
        ("prompt,,\na,,2\n", ["prompt", "column_3"], "column 3 has no name; it is called 'column_3' here"),
    ],
)
def test_columns_without_a_name_of_their_own_are_told(tmp_path: Path, text: str, columns: list[str], note: str) -> None:
    dataset = opened(tmp_path, text)
    assert dataset.source.schema.names == columns
    assert any(note in line for line in dataset.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"csv_delimiter": ";;"}, "--csv-delimiter is ';;'; it must be a single character"),
        ({"csv_delimiter": ""}, "--csv-delimiter is ''; it must be a single character"),
        ({"csv_delimiter": '"'}, "it must be a single character"),
        ({"csv_encoding": "utf-9"}, "--csv-encoding is 'utf-9'; it must be one that Python knows"),
        ({"csv_encoding": "base64"}, "it must be one that Python knows"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        DataConfig(dataset="a.csv", **options)


def test_options_of_csv_are_refused_for_other_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--csv-delimiter is for \.tsv, \.csv, which --dataset .*a\.jsonl is not"):
        opened(tmp_path, '{"prompt": "a"}\n', "a.jsonl", csv_delimiter=";")


def test_how_csv_is_read_belongs_to_the_run(tmp_path: Path, run_job: Any, tiny_model: Any) -> None:
    (tmp_path / "a.csv").write_text("prompt;zip\nhello;00123\n")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--output", tmp_path / "o"]
    args += ["--dataset", tmp_path / "a.csv"]
    result = run_job(*args, "--keep-columns", "zip")
    assert result.exit_code == 0 and "a.csv: semicolons separate the cells" in result.stderr
    assert read_output(tmp_path / "o")["zip"].to_pylist() == ["00123"]
    assert json.loads((tmp_path / "o/manifest.json").read_text())["identity"]["dataset"]["csv_delimiter"] == ";"
    assert run_job(*args, "--keep-columns", "zip", "--csv-delimiter", ";").exit_code == 0
    other = run_job(*args, "--prompt-column", "prompt;zip", "--csv-delimiter", "tab")
    assert other.exit_code == 2 and '--csv-delimiter was ";", now "\\t"' in other.stderr


def test_arrow_types_of_columns(tmp_path: Path) -> None:
    schema = opened(tmp_path, "prompt,n,x,b,none\na,1,1.5,true,\n").source.schema
    assert schema.types == [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string()]

"""Spreadsheets: cells come out as they are in the sheet, with one type for each column."""

import datetime
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job.config import DataConfig
from job.data.opening import OpenDataset, open_dataset
from job.errors import UsageError

openpyxl = pytest.importorskip("openpyxl")

DAY = datetime.datetime(2024, 1, 5)


def make(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def opened(path: Path, **options: Any) -> OpenDataset:
    return open_dataset(DataConfig(dataset=str(path), **options))


def rows_of(path: Path, **options: Any) -> list[dict[str, Any]]:
    source = opened(path, **options).source
    blocks = source.read(0, source.num_rows, source.schema.names, [])
    return [dict(row.values) for block in blocks for row in block.rows]


@pytest.mark.parametrize(
    ("cells", "data_type", "values"),
    [
        ([1, 2, None], pa.int64(), [1, 2, None]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        (["0012", "0013"], pa.string(), ["0012", "0013"]),
        (["0012", 12, 1.5], pa.string(), ["0012", "12", "1.5"]),
        ([True, False], pa.bool_(), [True, False]),
        ([True, "x"], pa.string(), ["TRUE", "x"]),
        ([DAY, DAY], pa.date32(), [DAY.date(), DAY.date()]),
        ([DAY, DAY.replace(hour=3)], pa.timestamp("us"), [DAY, DAY.replace(hour=3)]),
        ([DAY, "soon"], pa.string(), ["2024-01-05 00:00:00", "soon"]),
        ([datetime.time(1, 2), None], pa.string(), ["01:02:00", None]),
        (["#DIV/0!", 1], pa.string(), ["#DIV/0!", "1"]),
        (["a\nb", "é", ""], pa.string(), ["a\nb", "é", None]),
        ([2**53 + 2, 1], pa.string(), [str(2**53 + 2), "1"]),
    ],
    ids=str,
)
def test_a_column_has_the_type_of_its_cells(
    tmp_path: Path, cells: list[Any], data_type: pa.DataType, values: list[Any]
) -> None:
    path = make(tmp_path / "a.xlsx", S=[["prompt", "x"], *(["p", cell] for cell in cells)])
    assert opened(path).source.schema.field("x").type == data_type
    assert [row["x"] for row in rows_of(path)] == values


def test_the_first_sheet_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a.xlsx", One=[["prompt"], ["a"]], Two=[["prompt"], ["b"]])
    assert rows_of(path) == [{"prompt": "a"}]
    assert opened(path).remarks == ("a.xlsx: reading sheet 'One', not Two; choose with --sheet",)
    assert opened(path).reading == {"reader": "spreadsheet-1", "sheet": "One"}
    assert rows_of(path, sheet="Two") == [{"prompt": "b"}] and opened(path, sheet="Two").remarks == ()
    with pytest.raises(UsageError, match=r"a\.xlsx has no sheet 'Three'\. Sheets: One, Two\. Set --sheet\."):
        opened(path, sheet="Three")


def test_blank_rows_and_columns(tmp_path: Path) -> None:
    """Rows at the end, which have only a format, are none; within the table, they are rows."""
    rows = [[None], ["prompt", None, "n", None], ["a", None, 1], [None], ["b", None, 2], [None, ""], [None]]
    path = make(tmp_path / "a.xlsx", S=rows)
    assert rows_of(path) == [{"prompt": "a", "n": 1}, {"prompt": None, "n": None}, {"prompt": "b", "n": 2}]
    assert opened(path).remarks == ("a.xlsx: column 2 has no name and no values; it is left out",)
    more = make(tmp_path / "b.xlsx", S=[["prompt"], ["a", "more"]])
    assert rows_of(more) == [{"prompt": "a", "column_2": "more"}]
    assert rows_of(path, limit=1) == [{"prompt": "a", "n": 1}]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    make(tmp_path / "a.xlsx", S=[["prompt", "x"], ["a", 1]])
    make(tmp_path / "b.xlsx", S=[["x", "prompt"], ["two", "b"]])
    assert rows_of(tmp_path) == [{"prompt": "a", "x": "1"}, {"prompt": "b", "x": "two"}]
    make(tmp_path / "c.xlsx", S=[["prompt"], ["c"]])
    with pytest.raises(UsageError, match=r"has other columns than .*Give files with the same columns"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "sheet 'S' is empty. Its first row must be the names of its columns"),
        ([["prompt"]], "has a header and no rows"),
        ([["prompt", "x"], ["a", "=1+1"]], "cell B2: the file has no value for the formula. Open it in a spreadsheet"),
    ],
)
def test_sheets_that_cannot_be_read_are_refused(tmp_path: Path, rows: list[list[Any]], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        opened(make(tmp_path / "a.xlsx", S=rows))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"\xd0\xcf\x11\xe0 encrypted")
    with pytest.raises(UsageError, match=r"a\.xlsx is not an \.xlsx file, or is protected by a password"):
        opened(tmp_path / "a.xlsx")
    with pytest.raises(UsageError, match="there is no such file"):
        opened(tmp_path / "b.xlsx")


def test_without_the_library_a_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.xlsx", S=[["prompt"], ["a"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UsageError, match=r"Install it \(pip install openpyxl\), or save the sheet as csv"):
        opened(path)


def test_the_option_is_refused_for_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\n")
    with pytest.raises(UsageError, match=r"--sheet is for \.xlsx, \.xlsm, which --dataset .* is not"):
        opened(tmp_path / "a.csv", sheet="S")

"""Options that take a text or a file with it."""

import os
from pathlib import Path

import pytest

from job.errors import UsageError
from job.modes.texts import read_text_or_file


def read(value: str, *, drops_last_newline: bool = False) -> str:
    return read_text_or_file(
        "--grammar",
        value,
        is_text=lambda text: ":" in text,
        example="a grammar, such as 'start: /x/'",
        drops_last_newline=drops_last_newline,
    )


def test_a_value_is_a_text_or_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffé: \r\n\n".encode())
    assert read(str(tmp_path / "a")) == "é: \n\n"
    assert read(str(tmp_path / "a"), drops_last_newline=True) == "é: \n"
    assert read("start: x\n", drops_last_newline=True) == "start: x\n"


def test_a_file_comes_before_a_text_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_text("text")
    assert read("a:b") == "text"


@pytest.mark.parametrize("value", ["missing.lark", ".", "x" * 5000, "nul\0"], ids=["missing", "folder", "long", "nul"])
def test_what_is_neither_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(value)
    assert str(caught.value) == f"--grammar {value!r} is neither a file nor a grammar, such as 'start: /x/'."


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xe4: \n")
    with pytest.raises(UsageError, match=r"/a' cannot be read: 'utf-8' codec can't decode"):
        read(str(path))
    path.chmod(0)
    if os.geteuid():  # root may read anything
        with pytest.raises(UsageError, match=r"/a' cannot be read: Permission denied\.$"):
            read(str(path))

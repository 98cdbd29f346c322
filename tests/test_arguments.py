"""The command line as such: what no option of any command may be."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result

RunJob = Callable[..., Result]

BYTES = os.fsdecode(b"caf\xe9")
"""As Python hands on an argument in Latin-1."""

RUN = ("run", "--model", "m", "--dataset", "d.jsonl", "--output", "o")


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ([*RUN, "--stop", BYTES], " after --stop"),
        ([*RUN, "--prompt-template", "{{ x }}" + BYTES], " after --prompt-template"),
        ([*RUN, "--system-prompt", BYTES], " after --system-prompt"),
        ([*RUN, "--choices", "a", "--choices", BYTES], " after --choices"),
        ([*RUN[:3], "--dataset", BYTES, *RUN[5:]], " after --dataset"),
        (["preview", *RUN[1:], "--regex", BYTES], " after --regex"),
        (["verify", BYTES], ""),
    ],
    ids=str,
)
def test_arguments_that_are_no_text_are_refused(run_job: RunJob, args: Sequence[str], where: str) -> None:
    """It was a UnicodeEncodeError with a traceback, at another place for each option."""
    result = run_job(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"job: The argument{where} is not UTF-8 text: b'") and r"caf\xe9" in line


def test_bytes_of_a_shell_are_refused() -> None:
    args = [sys.executable, "-m", "job", "status", b"o\xff"]
    result = subprocess.run(args, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "job: The argument is not UTF-8 text: b'o\\xff'.\n"


@pytest.mark.parametrize(
    ("args", "option"), [(["export", "o", "--columns", ""], "--columns"), (["retry", "o", "--kind", " ,"], "--kind")]
)
def test_lists_that_name_nothing_are_refused(run_job: RunJob, args: Sequence[str], option: str) -> None:
    """``--columns ''`` exported all columns, as ``--kind ''`` would have marked all rows."""
    result: Any = run_job(*args)
    assert result.exit_code == 2
    assert option in result.stderr and "contains no name. Give one, or leave the option out." in result.stderr

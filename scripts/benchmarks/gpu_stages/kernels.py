"""The tests of the kernels: on a GPU compiled, half precision and bfloat16 included; in a rehearsal interpreted."""

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest

from .device import ON_CUDA
from .figures import save

ROOT = Path(__file__).parents[3]


class Outcomes:
    """A plugin of pytest that counts tests."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how a test ended; a failure of its fixtures counts, too."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self.failures[report.nodeid] = (report.longreprtext.strip().splitlines() or ["no message"])[-1]


def main(*, files: list[str], expression: str = "", cases: int, workers: int) -> None:
    """Run tests.

    Args:
        files: of the repository.
        expression: what a test's name must match (pytest's ``-k``); empty for all.
        cases: random cases.
        workers: processes, if pytest-xdist is there: most of the time is spent compiling.
    """
    os.environ |= {"JOB_TEST_CASES": str(cases), "DS_ACCELERATOR": "cuda" if ON_CUDA else "cpu"}
    os.environ["TRITON_INTERPRET"] = "0" if ON_CUDA else "1"
    args = ["-q", "-p", "no:cacheprovider", "--timeout=120", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    args += ["-k", expression] if expression else []
    if workers > 1 and importlib.util.find_spec("xdist"):
        args += ["-n", str(workers)]
    outcomes, begin = Outcomes(), time.perf_counter()
    os.chdir(ROOT)
    code = pytest.main([*args, *(str(ROOT / file) for file in files)], plugins=[outcomes])
    save(", ".join(files), {"failed": 0}, **outcomes.counts, secs=time.perf_counter() - begin)
    for name, message in outcomes.failures.items():
        save(name.rpartition("::")[2], failed=message[:200])
    assert code == 0, f"pytest ended with {code}"

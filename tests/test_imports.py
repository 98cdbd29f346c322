"""Who may import whom (law 7), read from the source; and that ``--help`` imports nothing heavy."""

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "job").rglob("*.py")
    if path.name != "__main__.py"
)
STAGES = ("data", "engine", "output", "observe")
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "pyarrow", "numpy"}


def source_of(module: str) -> ast.Module:
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def imports_of(module: str, *, at_load: bool = False) -> Iterator[str]:
    """Yield the full names that a module imports; with ``at_load`` only those outside of functions."""
    waiting: list[ast.AST] = [source_of(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


def stage_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "job" and len(parts) > 1 and parts[1] in STAGES else None


def test_the_modules_are_found() -> None:
    """Or else the tests below would hold for nothing."""
    assert {stage_of(module) for module in MODULES} == {*STAGES, None} and "job.cli.run" in MODULES
    assert "job.data.source.BLOCK_ROWS" in imports_of("job.data.lines")
    assert "datasets" in imports_of("job.data.opening")
    assert "datasets" not in imports_of("job.data.opening", at_load=True)


@pytest.mark.parametrize("module", [module for module in MODULES if stage_of(module)])
def test_a_stage_imports_no_other_stage(module: str) -> None:
    foreign = [name for name in imports_of(module) if stage_of(name) not in (None, stage_of(module))]
    assert foreign == []


@pytest.mark.parametrize("module", [module for module in MODULES if stage_of(module)])
def test_a_stage_does_not_know_who_puts_the_stages_together(module: str) -> None:
    above = ("job.run.", "job.cli")
    assert [name for name in imports_of(module) if name.startswith(above)] == []


@pytest.mark.parametrize("module", MODULES)
def test_only_the_engine_imports_deepspeed(module: str) -> None:
    if stage_of(module) != "engine":
        assert [name for name in imports_of(module) if name.split(".")[0] == "deepspeed"] == []


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_imports_click(module: str) -> None:
    if not module.startswith("job.cli"):
        assert [name for name in imports_of(module) if name.split(".")[0] == "click"] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("job.cli")])
def test_the_command_line_imports_nothing_heavy_when_it_is_loaded(module: str) -> None:
    assert {name.split(".")[0] for name in imports_of(module, at_load=True)} & HEAVY == set()


def output_and_modules_of(*args: Any) -> tuple[str, set[str]]:
    """Return what ``job`` prints in a process of its own, and the packages that it has imported by then."""
    code = (
        "import os, runpy, sys\n"
        "sys.argv[0], os._exit = 'job', sys.exit\n"
        "try: runpy.run_module('job', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    output, _, loaded = result.stdout.partition("LOADED ")
    return output, set(loaded.split())


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    output, loaded = output_and_modules_of(*args)
    assert output.startswith("Usage: ")
    assert "click" in loaded and loaded & HEAVY == set()


def test_the_table_of_formats_can_be_listed_without_anything_heavy() -> None:
    """``--help`` names the endings."""
    code = "import sys, job.data.formats as f; print(*f.ENDINGS, *{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".jsonl" in result.stdout.split() and set(result.stdout.split()) & HEAVY == set()


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples_in_docstrings() -> None:
    modules = [importlib.import_module(module) for module in MODULES]
    assert sum(len(test.examples) for module in modules for test in doctest.DocTestFinder().find(module)) > 8

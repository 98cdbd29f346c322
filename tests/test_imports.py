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


def path_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def source_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def imports_of(module: str, *, at_load: bool = False, for_types: bool = True) -> Iterator[str]:
    """Yield the full names that a module imports.

    Args:
        at_load: only those outside of functions.
        for_types: those under ``if TYPE_CHECKING``, too.
    """
    waiting: list[ast.AST] = [source_of(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not for_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
        elif not (at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


def stage_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "job" and len(parts) > 1 and parts[1] in STAGES else None


def test_the_modules_are_found() -> None:
    """Or else the tests below would hold for nothing."""
    assert {stage_of(module) for module in MODULES} == {*STAGES, None} and "job.cli.run" in MODULES
    assert "job.data.source.BLOCK_ROWS" in imports_of("job.data.lines")
    assert "datasets" in imports_of("job.data.formats.files")
    assert "datasets" not in imports_of("job.data.formats.files", at_load=True)


@pytest.mark.parametrize("module", [module for module in MODULES if stage_of(module)])
def test_a_stage_imports_no_other_stage(module: str) -> None:
    foreign = [name for name in imports_of(module) if stage_of(name) not in (None, stage_of(module))]
    assert foreign == []


@pytest.mark.parametrize("module", [module for module in MODULES if stage_of(module)])
def test_a_stage_does_not_know_who_puts_the_stages_together(module: str) -> None:
    above = ("job.run.", "job.cli")
    assert [name for name in imports_of(module) if name.startswith(above)] == []


LAYERS = (
    (
        "job.errors",
        "job.wording",
        "job.records",
        "job.tasks",
        "job.modes.options",
        "job.modes.texts",
        "job.draws",
        "job.fingerprint",
        "job.arrow",
        "job.engine.registry",
    ),
    ("job.modes", "job.config"),
    ("job.launch", "job.remote"),
    ("job.data", "job.engine", "job.output", "job.observe"),
    ("job.report",),
    ("job.run",),
    ("job.cli",),
)
"""From the vocabulary to the command line: a module imports what is in its own row or above it."""

OUTPUT_LAYERS = (
    ("job.output.store",),
    ("job.output.parts",),
    ("job.output.sharing",),
    ("job.output.looking",),
    ("job.output.publishing",),
)
"""The same within job/output."""


def layer_of(name: str, layers: tuple[tuple[str, ...], ...]) -> int | None:
    """Return the row of the longest entry that a module is in."""
    found = [
        (len(entry), row) for row, of_row in enumerate(layers) for entry in of_row if f"{name}.".startswith(f"{entry}.")
    ]
    return max(found)[1] if found else None


@pytest.mark.parametrize("layers", [LAYERS, OUTPUT_LAYERS], ids=["job", "job.output"])
def test_imports_go_one_way(layers: tuple[tuple[str, ...], ...]) -> None:
    """Imports that only types need do not count."""
    wrong = []
    for module in MODULES:
        own = layer_of(module, layers)
        for name in imports_of(module, for_types=False):
            other = layer_of(name, layers)
            if own is not None and other is not None and other > own:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_module_is_long_and_the_top_level_is_small() -> None:
    """A reader finds a subject by its folder, and reads a module in one sitting."""
    lengths = {module: len(path_of(module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > 300} == {}
    assert len(list((ROOT / "job").glob("*.py"))) <= 8


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

"""Text in files is UTF-8, whatever the locale says: what one process writes, another reads, on any machine."""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result, finish, start_processes

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("job", "scripts") for path in (ROOT / folder).rglob("*.py"))


OPENERS = (
    *("store", "archive", "_parts", "known", "dataset", "limit=limit)), found)"),
    *("file", "_files[file_idx]", "OtherRun", "opener", "_live"),
)
"""What has a method ``open`` that is not about text."""


def calls_without_encoding(path: Path) -> Iterator[int]:
    """Yield the lines of a module where a file is read or written in the locale's encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        if not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in ("read_text", "write_text"):
            yield node.lineno
        if node.func.attr == "open":
            owner = ast.unparse(node.func.value)
            is_path = owner.partition(".")[0] not in ("os", "fsspec") and not owner.endswith(OPENERS)
            is_path = is_path and not owner.startswith("find_dataset(")
            modes = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
            if is_path and not any("b" in mode for mode in modes):
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_opened_with_their_encoding(path: Path) -> None:
    """ruff's PLW1514 sees only what it can tell to be a path; this sees ``self._path``, too."""
    assert list(calls_without_encoding(path)) == []


def test_a_run_continues_in_a_locale_without_umlauts(
    tmp_path: Path, tiny_model: Any, run_job: Callable[..., Result]
) -> None:
    """The manifest was written in UTF-8 and read in the locale's encoding: with ISO-8859-1, as on many clusters, the
    very first start was refused as "another run"; in the C locale it was a traceback. So was a --config file.
    """
    (tmp_path / "data.jsonl").write_text('{"prompt": "Größe?"}\n' * 3, encoding="utf-8")
    (tmp_path / "system.jinja").write_text("Größe: {{ prompt }} €", encoding="utf-8")
    options = {"model": str(tiny_model(chat=True)), "dataset": str(tmp_path / "data.jsonl"), "engine": "fake"}
    options |= {"output": str(tmp_path / "out"), "system-prompt": "Grüße €"}
    options |= {"prompt-template": str(tmp_path / "system.jinja")}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in options.items()]
    (tmp_path / "run.toml").write_text("".join(lines), encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    [result] = finish(start_processes(["-m", "job", "run", "--config", tmp_path / "run.toml"], env=locale))
    for again in (result, run_job("run", "--config", tmp_path / "run.toml")):
        assert again.exit_code == 0, again.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert "Grüße €" in json.dumps(manifest, ensure_ascii=False)

"""The package as users install it: its version, what is in the wheel, and that the installed command works anywhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import job

ROOT = Path(__file__).parents[1]
SOURCES = ("job", "pyproject.toml", "README.md", "LICENSE")


def test_version_is_written_in_one_place() -> None:
    """``pyproject.toml`` reads it from the package; two numbers would drift apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "job.__version__"}


def test_changelog_describes_this_version() -> None:
    """Its newest numbered section is the version of the package."""
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## [")]
    numbered = [line for line in headings if "Unreleased" not in line]
    assert numbered[0].startswith(f"## [{job.__version__}]")


def test_license_is_the_one_that_the_metadata_names() -> None:
    """The full text, not a reference to it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a copy of the sources, so that the build leaves nothing in the repository."""
    pytest.importorskip("setuptools", minversion="77")  # older ones do not know license expressions
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    [wheel] = target.glob("*.whl")
    return wheel


def pip(*args: Any) -> None:
    """Run pip without a network."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``job`` command of an environment that has the wheel, and the dependencies from this environment."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True).stdout.strip()
    # A path in a .pth file is only appended to sys.path: .pth files within it, such as that of an editable install of
    # this repository, are not read. So `job` can only be the one of the wheel.
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin" / "job"


@pytest.mark.slow
def test_wheel_holds_all_that_the_package_needs(wheel: Path) -> None:
    """Every module, the source of the C++ kernel (compiled at the first start), the type marker, the license."""
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "job").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "job/py.typed" in wanted and any(name.endswith(".cpp") for name in wanted)
    assert wanted == {name for name in names if name.startswith("job/")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"job", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


@pytest.mark.slow
def test_installed_command_works_outside_the_repository(
    installed: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Version, preview, a run with the fake engine, and its verification, from another directory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    (tmp_path / "data.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')

    def run(*args: Any) -> str:
        command = [str(installed), *map(str, args)]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert run("--version") == f"job, version {job.__version__}\n"
    options = ("--model", tiny_model(), "--dataset", "data.jsonl", "--output", "out", "--engine", "fake")
    assert "2 rows" in run("preview", *options)
    assert run("run", *options, "--max-new-tokens", 4).startswith("2 rows in 1 part")
    assert "Correct and complete." in run("verify", "out")

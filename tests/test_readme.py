"""The documentation says what the code does: options, error kinds, exit codes, links."""

import re
from pathlib import Path

import click
import pytest

from job import errors
from job.cli import main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "scripts/examples/README.md", "slurm/README.md", "CHANGELOG.md")
OF_OTHERS = frozenset(
    [
        *("--no_python", "--num_gpus", "--master_port", "--hostfile", "--module"),  # deepspeed
        *("--no-python", "--nproc-per-node", "--master-port"),  # torchrun
        "--help",  # click
        "--repo-type",  # hf
    ]
)
"""Options of other programs that the README uses."""

KIND = re.compile(r'(?:RowError|RowRejected)\(\s*"(\w+)"|fail(?:ed)?\([^,()]*(?:\([^()]*\))?[^,()]*,\s*"(\w+)"')
"""Where the source names the kind of a row's error."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


@pytest.mark.parametrize("page", ["README.md", "scripts/examples/README.md", "CHANGELOG.md"])
def test_every_option_that_is_named_exists(page: str) -> None:
    """Of some command of ``job``; a renamed option would otherwise live on in the documentation."""
    options = {
        name
        for command in (main, *main.commands.values())
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text_of(page)))
    assert named - options - OF_OTHERS == set()


def test_every_error_kind_is_explained() -> None:
    """The README's table has each kind that the source can give a row."""
    sources = [path.read_text("utf-8") for path in (ROOT / "job").rglob("*.py")]
    kinds = {a or b for source in sources for a, b in KIND.findall(source)}
    assert {"null_prompt", "prompt_too_long", "non_finite_logits", "kv_cache_full", "engine_error"} <= kinds
    table = text_of("README.md").partition("| error kind |")[2].partition("\n\n")[0]
    assert kinds - set(re.findall(r"`(\w+)`", table)) == set()


def test_every_exit_code_is_explained() -> None:
    """In the README's table, and no others."""
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = text_of("README.md").partition("| exit code")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == codes


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Relative links name files that are there, and headings that those files have."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(page)):
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}
            assert heading in slugs, target

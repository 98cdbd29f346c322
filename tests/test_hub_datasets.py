"""Datasets of the Hub: the files of one split at one commit, read as if they were here."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, snapshot_download

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.dataset import OpenDataset
from job.data.opening import find_dataset
from job.data.remote_files import contents_of
from job.remote import beginning, cache
from job.remote import hub as hub_module
from job.remote.model_files import ModelFiles
from job.remote.tree import RemoteFile
from job.run import process
from tests.conftest import Result
from tests.hub import Hub
from tests.run_files import files_of

ONLY_NAMES = {"de.jsonl": "ja", "en.jsonl": "yes"}


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts).encode()


def long_lines(num_rows: int) -> bytes:
    """Rows of 2 kB."""
    return "".join(f'{{"prompt": "row {idx}", "junk": "{"x" * 2000}"}}\n' for idx in range(num_rows)).encode()


def parquet(num_rows: int, group: int = 100, *, name: str = "row") -> bytes:
    """Rows of 2 kB, most of it in a column that no prompt needs."""
    stream = io.BytesIO()
    table = pa.table({"prompt": [f"{name} {idx}" for idx in range(num_rows)], "junk": [os.urandom(2000)] * num_rows})
    pq.write_table(table, stream, row_group_size=group, compression="none", use_dictionary=False)
    return stream.getvalue()


def card(text: str) -> bytes:
    return f"---\n{text}\n---\n# A dataset\n".encode()


def describing(**splits: str) -> bytes:
    """Return a card with one configuration that gives each split a pattern."""
    files = "".join(f"\n  - split: {split}\n    path: '{pattern}'" for split, pattern in splits.items())
    return card(f"configs:\n- config_name: default\n  data_files:{files}")


@pytest.fixture
def run(hub: Hub, run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path) -> Any:
    """Return a function that runs a fake engine on ``acme/data``, with the output in ``out``."""
    base = ["--model", tiny_model(), "--engine", "fake", "--no-chat", "--max-new-tokens", 4]

    def run(*args: Any, command: str = "run") -> Result:
        place = [] if command == "preview" else ["--output", tmp_path / "out"]
        return run_job(command, *base, "--dataset", "acme/data", *place, *args)

    return run


def prompts(output: Path) -> list[str]:
    return [text for path in sorted(output.rglob("part-*")) for text in pq.read_table(path)["prompt"].to_pylist()]


def manifest(output: Path) -> Any:
    return json.loads((output / "manifest.json").read_text())


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


FORMS: dict[str, tuple[dict[str, bytes], tuple[str, ...], list[str]]] = {
    "lines": ({"a.jsonl": lines("a"), "b.jsonl": lines("b")}, (), ["a", "b"]),
    "parquet": ({"data/train-00000-of-00001.parquet": parquet(3)}, (), ["row 0", "row 1", "row 2"]),
    "streaming": ({"data/train-00000-of-00001.parquet": parquet(3)}, ("--streaming",), ["row 0", "row 1", "row 2"]),
    "csv": ({"a.csv": b"prompt,n\nNA,1\nNone,2\n"}, (), ["NA", "None"]),
    "text": ({"a.txt": b"one\ntwo\n"}, ("--prompt-column", "text"), ["one", "two"]),
    "json": ({"a.json": b'[{"prompt": "a"}]', "state.json": b'{"version": 1}'}, (), ["a"]),
    "splits": ({"train.jsonl": lines("a"), "test.jsonl": lines("b")}, ("--split", "test"), ["b"]),
    "card": (
        {"README.md": describing(train="x/*.jsonl", dev="y/*.jsonl"), "x/a.jsonl": lines("a"), "y/b.jsonl": lines("b")},
        ("--split", "dev"),
        ["b"],
    ),
    "archive": (
        {"README.md": describing(train="a.zip"), "a.zip": zipped("a.jsonl", lines("a")), "b.jsonl": lines("b")},
        (),
        ["a"],
    ),
    "named archive": (
        {"a.jsonl.zip": zipped("a.jsonl", lines("a")), "README.md": describing(train="*.zip")},
        (),
        ["a"],
    ),
    "patterns": ({"x/a.jsonl": lines("a"), "y.csv": b"prompt\nb\n"}, ("--data-files", "x/*"), ["a"]),
    "limit": ({"a.jsonl": lines("a", "b"), "b.jsonl": lines("c")}, ("--limit", "1"), ["a"]),
    "converted": (
        {"de/train/0000.parquet": parquet(1, name="de"), "en/train/0000.parquet": parquet(1, name="en")},
        ("--dataset-config", "en"),
        ["en 0"],
    ),
}
"""Files, options, and the prompts that are expected."""


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_and_is_the_same_run_offline_after_a_download(
    form: str, hub: Hub, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online and offline starts of a run refused each other, and csv, --data-files and what ``hf download`` had fetched
    could not be read offline at all.
    """
    files, options, expected = FORMS[form]
    repo = hub.create("dataset", "acme/data")
    commit = repo.commit(files)
    assert run(*options).exit_code == 0
    assert prompts(tmp_path / "out") == expected
    assert manifest(tmp_path / "out")["about"]["dataset_commit"] == commit
    if form == "streaming":
        return
    repo.commit({".note": b"x"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another-hub"))
    snapshot_download("acme/data", repo_type="dataset")
    offline(monkeypatch)
    hub.log.clear()
    for path in files_of(tmp_path / "out").root.rglob("part-*"):
        path.unlink()
    result = run("--dataset-revision", "main", *options)
    assert result.exit_code == 0, result.stderr
    assert prompts(tmp_path / "out") == expected
    assert hub.log == []


def test_a_readme_that_is_edited_does_not_end_a_run(hub: Hub, run: Any, tmp_path: Path) -> None:
    """The identity was the address of the files, which holds the commit."""
    repo = hub.create("dataset", "acme/data")
    repo.commit({"train.jsonl": lines("a")})
    assert run().exit_code == 0
    repo.commit({"README.md": b"# a better text\n"})
    assert run("--dataset-revision", "main").exit_code == 0


def test_a_run_goes_on_at_its_commit_without_asking_the_hub(hub: Hub, run: Any, tmp_path: Path) -> None:
    repo = hub.create("dataset", "acme/data")
    old = repo.commit({"train.jsonl": lines("old", "older")})
    assert run("--rows-per-shard", "1").exit_code == 0
    new = repo.commit({"train.jsonl": lines("new", "newer")})
    next((tmp_path / "out").rglob("part-00001*")).unlink()
    hub.log.clear()
    assert run("--rows-per-shard", "1").exit_code == 0
    assert prompts(tmp_path / "out") == ["old", "older"]
    assert hub.log == []
    result = run("--rows-per-shard", "1", "--dataset-revision", "main")
    assert result.exit_code == 2
    assert all(text in result.stderr for text in ("--dataset-revision", old, new))


def test_the_same_command_goes_on_after_a_branch_has_moved(hub: Hub, run: Any, tmp_path: Path) -> None:
    repo = hub.create("dataset", "acme/data")
    repo.commit({"train.jsonl": lines("old")})
    assert run("--dataset-revision", "main").exit_code == 0
    repo.commit({"train.jsonl": lines("new")})
    assert run("--dataset-revision", "main").exit_code == 0
    assert prompts(tmp_path / "out") == ["old"]


def test_a_refusal_says_which_revision_goes_on(hub: Hub, run: Any) -> None:
    repo = hub.create("dataset", "acme/data")
    old = repo.commit({"train.jsonl": lines("old")})
    assert run().exit_code == 0
    repo.commit({"train.jsonl": lines("new")})
    result = run("--dataset-revision", "main")
    assert result.exit_code == 2
    assert f"or --dataset-revision {old} to go on." in result.stderr


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_revision_is_never_replaced_by_another_that_is_cached(
    is_offline: bool, hub: Hub, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``datasets`` took the latest cached version, whatever had been asked for, and without a word."""
    repo = hub.create("dataset", "acme/data")
    old = repo.commit({"train.jsonl": lines("old")})
    new = repo.commit({"train.jsonl": lines("new")})
    for commit in (old, new):
        assert run("--dataset-revision", commit, "--output", tmp_path / commit).exit_code == 0
    if is_offline:
        offline(monkeypatch)
    assert run("--dataset-revision", old, "--output", tmp_path / "again").exit_code == 0
    assert prompts(tmp_path / "again") == ["old"]
    for revision in ("v9", "f" * 40):
        result = run("--dataset-revision", revision)
        assert result.exit_code == 2
        assert revision in result.stderr


def test_a_run_of_a_version_that_did_not_know_its_commit_is_refused(hub: Hub, run: Any, tmp_path: Path) -> None:
    hub.create("dataset", "acme/data").commit({"train.jsonl": lines("a")})
    assert run().exit_code == 0
    content = manifest(tmp_path / "out")
    del content["about"]["dataset_commit"]
    content["about"] |= {"files": {"train.jsonl": [None, None]}, "versions": {"job": "0.3.0"}}
    (tmp_path / "out/manifest.json").write_text(json.dumps(content))
    result = run()
    assert result.exit_code == 2
    assert "started by version 0.3.0, which read datasets of the Hub in another way" in result.stderr


def test_a_card_that_miscounts_changes_nothing(hub: Hub, run: Any, tmp_path: Path) -> None:
    text = "dataset_info:\n  features:\n  - name: prompt\n    dtype: string\n  splits:\n  - name: train\n"
    text += "    num_bytes: 1\n    num_examples: 1"
    hub.create("dataset", "acme/data").commit({"README.md": card(text), "train.jsonl": lines("a", "b", "c")})
    for options in ((), ("--streaming",)):
        assert run(*options, "--output", tmp_path / f"out{len(options)}").exit_code == 0
        assert prompts(tmp_path / f"out{len(options)}") == ["a", "b", "c"]


def test_a_bad_line_is_one_error_row(hub: Hub, run: Any, tmp_path: Path) -> None:
    hub.create("dataset", "acme/data").commit({"train.jsonl": lines("a") + b"{\n" + lines("c")})
    assert run("--max-error-rate", "1").exit_code == 0
    assert prompts(tmp_path / "out") == ["a", None, "c"]


PYTHON = b"print()"

TWO_CONFIGS = card("configs:\n- config_name: de\n  data_files: de.jsonl\n- config_name: en\n  data_files: en.jsonl")

REFUSED: dict[str, tuple[dict[str, bytes], tuple[str, ...], str]] = {
    "kinds": (
        {"a.csv": b"prompt\n", "b.jsonl": lines("b")},
        (),
        "acme/data holds files of several kinds: a.csv",
    ),
    "archive": ({"a.jsonl": lines("a"), "b.zip": b"PK"}, (), "--dataset acme/data: b.zip may hold rows"),
    "configs": (
        {
            "README.md": card(
                "configs:\n- config_name: de\n  data_files: de.jsonl\n- config_name: en\n  data_files: en.jsonl"
            ),
            "de.jsonl": lines("ja"),
            "en.jsonl": lines("yes"),
        },
        (),
        "--dataset acme/data has the configurations de, en. Choose with --dataset-config.",
    ),
    "unknown config": (
        {"README.md": describing(train="a.jsonl"), "a.jsonl": lines("a")},
        ("--dataset-config", "fr"),
        "--dataset acme/data has no configuration 'fr'. Configurations: default. Set --dataset-config.",
    ),
    "yaml": (
        {"README.md": card("a: b: c"), "a.jsonl": lines("a")},
        (),
        "README.md has a header that is not YAML",
    ),
    "empty": ({}, (), "--dataset acme/data holds no files that can be read. Supported"),
    "script": ({"data.py": PYTHON, "a.jsonl": lines("a")}, (), "is read by a script, data.py, which is not run"),
    "saved": (
        {"dataset_info.json": b"{}", "state.json": b"{}", "data-00000-of-00001.arrow": b"ARROW1"},
        (),
        "acme/data was written by save_to_disk of datasets. Download it",
    ),
    "no split": (
        {"train.jsonl": lines("a")},
        ("--split", "test"),
        "acme/data has no split 'test'. Splits: train.",
    ),
    "no match": ({"a.jsonl": lines("a")}, ("--data-files", "b*"), "--dataset acme/data/b*: there is no such file"),
    "outside": (
        {"a.jsonl": lines("a")},
        ("--data-files", "../*"),
        "--data-files ../* is not inside --dataset",
    ),
    "damaged": ({"a.parquet": b"PAR1 and no more"}, (), "--dataset acme/data: acme/data/a.parquet: "),
    "not json": ({"a.json": b"[{]"}, (), "acme/data/a.json, line 1: "),
    "lfs": ({"a.jsonl": b"version https://git-lfs.github.com/spec/v1\n"}, (), "acme/data/a.jsonl is a Git LFS pointer"),
    "converted": (
        {"de/train/0000.parquet": b"", "en/train/0000.parquet": b""},
        (),
        "has the configurations de, en. Choose with --dataset-config.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_the_words_of_the_user(case: str, hub: Hub, run: Any, tmp_path: Path) -> None:
    """Every message said that there was no such file or directory, or named a file of the cache, or was a traceback."""
    files, options, message = REFUSED[case]
    hub.create("dataset", "acme/data").commit(files)
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "outline-" not in result.stderr and str(tmp_path / "hf") not in result.stderr


def test_capital_endings_are_read(hub: Hub, run: Any, tmp_path: Path) -> None:
    """``datasets`` passed over them."""
    hub.create("dataset", "acme/data").commit({"a.jsonl": lines("a"), "b.JSONL": lines("b")})
    assert run().exit_code == 0
    assert prompts(tmp_path / "out") == ["a", "b"]


def test_a_file_that_is_not_cached_is_missed_offline(hub: Hub, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial download never passes for the whole."""
    hub.create("dataset", "acme/data").commit({"a.jsonl": lines("a"), "b.jsonl": lines("b")})
    snapshot_download("acme/data", repo_type="dataset", allow_patterns="a.jsonl")
    offline(monkeypatch)
    result = run()
    if "does not say which files" not in result.stderr:  # version 1 of the client keeps no listing
        assert result.exit_code == 2
        assert "b.jsonl of acme/data is not in the cache" in result.stderr
    result = run("--dataset-revision", "v9")
    assert result.exit_code == 2
    assert "job: --dataset acme/data: revision v9 is not in the cache (HF_HOME), and" in result.stderr


def test_numbers_in_names_show_what_is_missing(
    hub: Hub, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"data/train-0000{idx}-of-00002.parquet" for idx in range(2)]
    hub.create("dataset", "acme/data").commit({name: parquet(1) for name in names})
    snapshot_download("acme/data", repo_type="dataset", allow_patterns=names[0])
    for listing in (tmp_path / "hf").rglob("trees/*"):
        listing.unlink()
    offline(monkeypatch)
    result = run()
    assert result.exit_code == 2
    assert f"{names[1]} of acme/data is not in the cache" in result.stderr
    (next((tmp_path / "hf").rglob("snapshots/*/data")) / Path(names[1]).name).write_bytes(parquet(1))
    result = run()
    assert result.exit_code == 0
    assert "the cache does not say which files acme/data has" in result.stderr


def test_a_snapshot_of_copies_is_known_by_its_contents(
    hub: Hub, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems without links: the names of files are not hashes there."""
    hub.create("dataset", "acme/data").commit({"a.jsonl": lines("a", "b")})
    snapshot_download("acme/data", repo_type="dataset")
    for listing in (tmp_path / "hf").rglob("trees/*"):
        listing.unlink()
    file = next((tmp_path / "hf").rglob("a.jsonl"))
    file.unlink()
    file.write_bytes(lines("a", "b"))
    offline(monkeypatch)
    assert run("--rows-per-shard", 1).exit_code == 0
    file.write_bytes(lines("c", "d"))
    next((tmp_path / "out").rglob("part-00001*")).unlink()
    result = run("--rows-per-shard", 1)
    assert result.exit_code == 2
    assert "has other contents" in result.stderr


CSV_CARD = "configs:\n- config_name: default\n  data_files: a.csv\n  {option}"


def test_an_edit_of_a_card_is_another_run_only_if_rows_may_change(hub: Hub, run: Any, tmp_path: Path) -> None:
    repo = hub.create("dataset", "acme/data")
    repo.commit({"README.md": card(CSV_CARD.format(option="skiprows: 1")), "a.csv": b"x\nprompt\na\nb\n"})
    assert run().exit_code == 0
    assert prompts(tmp_path / "out") == ["a", "b"]
    repo.commit({"README.md": card(CSV_CARD.format(option="skiprows: 1\nlicense: mit"))})
    assert run("--dataset-revision", "main").exit_code == 0
    repo.commit({"README.md": card(CSV_CARD.format(option="skiprows: 2"))})
    result = run("--dataset-revision", "main", "--prompt-column", "a")
    assert result.exit_code == 2
    assert "what the dataset's card says about reading the files was" in result.stderr


def test_only_the_split_is_fetched(hub: Hub, run: Any) -> None:
    hub.create("dataset", "acme/data").commit({"train.parquet": parquet(500), "test.parquet": parquet(2)})
    assert run("--split", "test").exit_code == 0
    assert sum(request.sent for request in hub.requests("/cdn/")) < 100_000


LARGE = {"data/train.parquet": parquet(500)}, {"train.jsonl": long_lines(500)}


def fetched(hub: Hub) -> int:
    """Return how much of the data was sent."""
    return sum(request.sent for request in hub.requests(r"/cdn/|/resolve/|/resolve-cache/"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt-column", "question"), "no column 'question'"),
        (("--keep-columns", "nope"), "no column 'nope'"),
        (("--prompt-template", "{{ question }}"), "'question'"),
        (("--regex", "("), "--regex"),
        (("--max-new-tokens", "5000"), "--max-new-tokens is 5000"),
        (("--output", "a-file"), "it is a file"),
    ],
)
@pytest.mark.parametrize("files", LARGE, ids=["parquet", "lines"])
def test_what_the_options_show_is_refused_before_data_is_fetched(
    files: dict[str, bytes],
    options: tuple[str, ...],
    message: str,
    hub: Hub,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of the dataset had been downloaded and converted by then."""
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("x", encoding="utf-8")
    hub.create("dataset", "acme/data").commit(files)
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert fetched(hub) < 150_000


def test_a_column_that_only_later_rows_have_can_be_read_once_the_data_is_here(
    hub: Hub, run: Any, tmp_path: Path
) -> None:
    content = lines(*("x" * 2000 for _ in range(100))) + b'{"late": "a"}\n'
    hub.create("dataset", "acme/data").commit({"train.jsonl": content})
    result = run("--prompt-column", "late")
    assert result.exit_code == 2
    assert "only the beginning of acme/data/train.jsonl has been looked at" in result.stderr
    snapshot_download("acme/data", repo_type="dataset")
    assert run("--prompt-column", "late", "--max-error-rate", "1").exit_code == 0
    assert prompts(tmp_path / "out")[-1] == "a"


def test_a_limit_fetches_the_files_that_hold_its_rows(hub: Hub, run: Any, tmp_path: Path) -> None:
    """Every file of every split had been fetched and converted for ten rows."""
    files = {f"data/train-{idx:05}-of-00020.parquet": parquet(30, name=f"{idx}:") for idx in range(20)}
    hub.create("dataset", "acme/data").commit(files)
    for limit in (40, 40, 400):
        output = tmp_path / f"out{limit}"
        assert run("--limit", limit, "--output", output).exit_code == 0
        assert prompts(output)[39] == "1: 9"
        assert len(prompts(output)) == limit
        if limit == 40:
            assert len(hub.requests("GET /cdn/")) <= 4
    assert run("--limit", 4000, "--output", tmp_path / "all").exit_code == 0
    assert len(prompts(tmp_path / "all")) == 600


def test_a_limit_fetches_the_first_lines_of_a_large_file(
    hub: Hub, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """47 MB were fetched for ten rows of a file of 24 MB."""
    content = long_lines(3000).replace(b"\n", b"\n\n", 100)
    hub.create("dataset", "acme/data").commit({"a.jsonl": content, "b.jsonl": lines("z")})
    options = ("--limit", 500, "--rows-per-shard", 300)
    assert run(*options).exit_code == 0
    assert [len(prompts(tmp_path / "out")), prompts(tmp_path / "out")[499]] == [500, "row 499"]
    assert fetched(hub) < 2_500_000
    next((tmp_path / "out").rglob("part-00001*")).unlink()
    offline(monkeypatch)
    result = run(*options)
    assert result.exit_code == 0, result.stderr
    assert "the first 500 rows" in result.stderr
    assert len(prompts(tmp_path / "out")) == 500


def test_two_processes_fetch_the_first_lines_of_a_file(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came second found a directory in the way, which was an error of usage."""
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    hub.create("dataset", "acme/data").commit({"a.jsonl": long_lines(300)})
    tree = hub_module.pin("dataset", "acme/data", None)
    rename = Path.rename

    def rename_late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert beginning.first_lines(tree, "a.jsonl", 3) is not None
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", rename_late)
    local = beginning.first_lines(tree, "a.jsonl", 3)
    assert local is not None and local.read_bytes().startswith(b'{"prompt": "row 0"')
    assert [path.parent for path in (tmp_path / "cache").rglob("*.jsonl")] == [local.parent]


def test_what_is_not_parquet_is_not_fetched_for_its_footer(hub: Hub, run: Any) -> None:
    """Its last bytes were taken for the length of a footer, which may be gigabytes."""
    hub.create("dataset", "acme/data").commit({"a.parquet": b"\x00\x0f" * 200_000})
    result = run("--streaming")
    assert result.exit_code == 2 and "a.parquet" in result.stderr
    assert fetched(hub) < 100_000


def test_the_identity_of_files_without_hashes_includes_their_names() -> None:
    """A web server's ETag is the time and size of a file; those unpacked together are often the same in both."""
    digests = {"a.csv": "etag:5f-10", "b.csv": "etag:5f-10", "x.txt.gz": "sha256:1", "x.jsonl.gz": "sha256:1"}
    files = {path: RemoteFile(path=path, num_bytes=10, digest=digest) for path, digest in digests.items()}
    tree: Any = SimpleNamespace(files=files)
    assert len({contents_of(tree, [path]) for path in files}) == len(files)


def test_what_is_kept_in_a_shared_cache_can_be_read_by_others(tmp_path: Path) -> None:
    cache.write_whole(tmp_path / "refs" / "main", "0123")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "refs" / "main").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("files", LARGE, ids=["parquet", "lines"])
def test_a_preview_fetches_what_it_shows(files: dict[str, bytes], hub: Hub, run: Any) -> None:
    hub.create("dataset", "acme/data").commit(files)
    result = run("--rows", 20, command="preview")
    assert result.exit_code == 0, result.stderr
    assert "row 0" in result.stdout
    assert ("rows were fetched to be looked at" in result.stdout) == ("train.jsonl" in files)  # Parquet counts its rows
    assert fetched(hub) < 150_000
    result = run("--rows", "all", command="preview")
    assert "500 rows" in result.stdout and "were fetched" not in result.stdout


def test_all_leaders_of_a_launch_read_one_commit(
    hub: Hub, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new run in float16 has no manifest yet: each leader looked up the branch, which may have moved by then."""
    repo = hub.create("dataset", "acme/data")
    old = repo.commit({"train.jsonl": lines("old")})
    data = DataConfig(dataset="acme/data")
    read: list[OpenDataset] = []

    def prepare(config: RunConfig, *args: Any, **options: Any) -> Any:
        read.append(find_dataset(config.data).open())
        repo.commit({"train.jsonl": lines("new")})
        return SimpleNamespace(dataset=read[-1], model_info=SimpleNamespace(files=ModelFiles(name="m")))

    class Launch:
        """Rank 0 of a launch, or another leader, which hears what rank 0 says."""

        device, said = None, None

        def __init__(self, *, speaks: bool) -> None:
            self.info = SimpleNamespace(speaks=speaks, is_leader=True)

        def check_world(self, failure: Exception | None) -> None:
            assert failure is None

        def agree_in_world(self, value: Any) -> Any:
            Launch.said = value if self.info.speaks else Launch.said
            return Launch.said

    monkeypatch.setattr(process, "prepare", prepare)
    config = RunConfig(
        model=ModelConfig(model=str(tiny_model())),
        data=data,
        prompt=PromptConfig(),
        sampling=SamplingConfig(),
        output=OutputConfig(output=tmp_path / "out"),
    )
    for speaks in (True, False):
        launch: Any = Launch(speaks=speaks)
        assert process._prepare_in_turn(config, launch, lambda examined: None)[1] == ModelFiles(name="m")
    assert [dataset.commit for dataset in read] == [old, old]

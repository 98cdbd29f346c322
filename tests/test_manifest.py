"""The manifest: the first one makes the run, everybody after must agree, and a disagreement is told field by field."""

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from job.errors import UsageError
from job.output.parts.manifest import Manifest, claim_run_directory, read_manifest
from job.output.store.local import LocalStore

IDENTITY = {
    "sampling": {"max_new_tokens": 128},
    "dataset": {"split": "train"},
    "columns": {"kept": {}},
    "modes": {},
}


def manifest(about: str = "", **changes: Any) -> Manifest:
    return Manifest({**IDENTITY, **changes}, {"host": about})


def claim_and_report(root: Path, name: str, barrier: Any, results: Any) -> None:
    barrier.wait(timeout=60)
    results.put((name, claim_run_directory(LocalStore(root), manifest(name)).about["host"]))


def test_the_first_claim_writes_and_the_second_reads(tmp_path: Path) -> None:
    assert claim_run_directory(LocalStore(tmp_path), manifest("first")) == manifest("first")
    assert claim_run_directory(LocalStore(tmp_path), manifest("second")) == manifest("first")
    assert read_manifest(LocalStore(tmp_path)) == manifest("first")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_there_is_no_manifest_before_the_first_claim(tmp_path: Path) -> None:
    assert read_manifest(LocalStore(tmp_path)) is None


def test_of_many_threads_one_writes_and_all_read_the_same(tmp_path: Path) -> None:
    barrier, found = threading.Barrier(8), []

    def claim(name: str) -> None:
        barrier.wait()
        found.append(claim_run_directory(LocalStore(tmp_path), manifest(name)).about["host"])

    threads = [threading.Thread(target=claim, args=(f"w{idx}",)) for idx in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_of_several_processes_one_writes_and_all_read_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.SimpleQueue()
    processes = [
        context.Process(target=claim_and_report, args=(tmp_path, f"w{idx}", barrier, results)) for idx in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = dict(results.get() for _ in processes)
    assert found.keys() == {"w0", "w1", "w2"} and len(set(found.values())) == 1


def refusal(root: Path, wanted: Manifest) -> str:
    with pytest.raises(UsageError) as caught:
        claim_run_directory(LocalStore(root), wanted)
    return str(caught.value)


def test_each_changed_field_is_told_with_both_values(tmp_path: Path) -> None:
    claim_run_directory(LocalStore(tmp_path), manifest())
    changed = manifest(sampling={"max_new_tokens": 512}, dataset={"split": "test"})
    assert refusal(tmp_path, changed) == (
        f"{tmp_path}/manifest.json is another run: --max-new-tokens was 128, now 512; "
        '--split was "train", now "test". Use a new --output, or the old values.'
    )
    assert read_manifest(LocalStore(tmp_path)) == manifest()


def test_a_field_that_came_or_went_is_told(tmp_path: Path) -> None:
    claim_run_directory(LocalStore(tmp_path), manifest(columns={"kept": {"id": "string"}}))
    message = refusal(tmp_path, manifest(columns={"kept": {"n": "int64"}}))
    assert 'columns.kept.id was "string", which this version does not know; ' in message
    assert 'columns.kept.n was unknown to the version that wrote it, now "int64"' in message


def test_long_values_and_many_fields_are_told_in_short(tmp_path: Path) -> None:
    claim_run_directory(LocalStore(tmp_path), manifest(prompt={str(idx): "x" * 500 for idx in range(9)}))
    message = refusal(tmp_path, manifest(prompt={str(idx): "y" for idx in range(9)}))
    assert message.count(" was ") == 9 and message.count("xxx...") == 9
    assert len(message) < 1500 and "\n" not in message


def test_what_is_about_people_may_differ(tmp_path: Path) -> None:
    claim_run_directory(LocalStore(tmp_path), manifest("one"))
    assert claim_run_directory(LocalStore(tmp_path), manifest("two")).digest == manifest("three").digest


def test_a_tuple_is_the_list_that_it_becomes(tmp_path: Path) -> None:
    """JSON knows no tuples: a run with one in its identity could never have been continued."""
    wanted = manifest(sampling={"stop": ("a", "b")})
    claim_run_directory(LocalStore(tmp_path), wanted)
    assert claim_run_directory(LocalStore(tmp_path), wanted).digest == wanted.digest


def test_the_digest_follows_the_identity_alone() -> None:
    reordered = Manifest(dict(reversed(IDENTITY.items())), {"host": "elsewhere"})
    assert reordered.digest == manifest().digest
    assert manifest(dataset={"split": "test"}).digest != manifest().digest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b'{"format_version": 2, "identity": {',
        b"[]",
        b"null",
        b'"text"',
        b'{"format_version": 2}',
        b"\xff\xfe",
        json.dumps({"format_version": 99, "identity": {}, "about": {}}).encode(),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    """Another format's version ended with exit code 1, as if a run had been started."""
    (tmp_path / "manifest.json").write_bytes(content)
    message = refusal(tmp_path, manifest())
    assert str(tmp_path / "manifest.json") in message and message.endswith("To start a run, use a new --output.")
    assert "\n" not in message
    assert (tmp_path / "manifest.json").read_bytes() == content

"""Hashes of local files: computed once for a state of a file, and right after any change."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from job.remote import contents
from job.remote.contents import hashes_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the names of the files that are read in full, in a cache of its own."""
    names: list[str] = []
    digest = hashlib.file_digest

    def observe(stream: object, name: str) -> object:
        names.append(Path(stream.name).name)  # type: ignore[attr-defined]
        return digest(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(contents.hashlib, "file_digest", observe)
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    return names


def old_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, (0, 0))
    return path


def test_a_file_is_read_once_for_each_state(read: list[str], tmp_path: Path) -> None:
    paths = [old_file(tmp_path / name, name.encode()) for name in "ab"]
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert hashes_of(paths, "files") == hashes_of(paths, "files") == expected
    assert sorted(read) == ["a", "b"]
    old_file(paths[0], b"x")  # the same size and time
    assert hashes_of(paths, "files") == [hashlib.sha256(b"x").hexdigest(), expected[1]]
    assert sorted(read) == ["a", "a", "b"]


def test_what_has_just_changed_is_read_again(read: list[str], tmp_path: Path) -> None:
    """A second change within one tick of the clock would leave no trace in the times."""
    path = tmp_path / "a"
    path.write_bytes(b"a")
    os.utime(path, (time.time(), time.time()))
    hashes_of([path, path], "files")
    hashes_of([path], "files")
    assert read == ["a"] * 3


def test_a_blob_of_the_hub_is_known_by_its_name(read: list[str], tmp_path: Path) -> None:
    digest = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / digest)
    assert hashes_of([tmp_path / "model.safetensors"], "files") == [digest] and read == []


def test_a_cache_that_cannot_be_written_costs_only_time(
    read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    path = old_file(tmp_path / "a", b"a")
    (tmp_path / "cache").write_text("a file")
    assert hashes_of([path], "files") == [hashlib.sha256(b"a").hexdigest()]

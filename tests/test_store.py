"""The store: what each verb guarantees; and that nothing else in ``job.output`` calls a file system."""

import ast
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job.output.store import local
from job.output.store.local import LocalStore
from job.output.store.store import Store

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "job" / "output"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "run")
    store.prepare(["", "sub"])
    return store


def names(store: Store, directory: str = "") -> list[str]:
    return sorted(entry.name for entry in store.list(directory))


def files(store: LocalStore) -> list[str]:
    """All files, half-written ones included."""
    root = Path(store.describe())
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_local_store_has_all_verbs(store: LocalStore) -> None:
    kept: Store = store
    assert kept.describe("sub/x").endswith("/run/sub/x")


def test_preparing_leaves_nothing_behind_and_says_what_cannot_be_written(store: LocalStore, tmp_path: Path) -> None:
    assert files(store) == [] and names(store) == ["sub"]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        LocalStore(tmp_path / "file").prepare([""])


def test_a_directory_that_is_not_there_is_empty_but_a_run_that_is_not_there_is_missing(store: LocalStore) -> None:
    assert store.list("retry") == []
    Path(store.describe("sub")).rmdir()
    Path(store.describe()).rmdir()
    for directory in ("", "sub"):
        with pytest.raises(FileNotFoundError) as caught:
            store.list(directory)
        assert caught.value.filename == store.describe()


def test_an_object_keeps_its_identity_until_it_is_replaced(store: LocalStore) -> None:
    store.replace("x", b"1")
    (before,) = (entry for entry in store.list() if entry.name == "x")
    with store.append("x") as end:
        end.append(b"2")
    store.touch("x")
    data, stamp = store.look("x")
    assert (data, stamp.num_bytes, stamp.identity) == (b"12", 2, before.identity)
    store.replace("x", b"3")
    assert store.stamp("x").identity != before.identity


@pytest.mark.parametrize(("start", "expected"), [(0, b"0123"), (2, b"23"), (4, b""), (-1, b"3"), (-9, b"0123")])
def test_reading_may_begin_anywhere(store: LocalStore, start: int, expected: bytes) -> None:
    store.replace("x", b"0123")
    assert store.read("x", start) == store.look("x", start)[0] == expected


def test_of_many_who_create_one_succeeds_and_all_see_whole_contents(store: LocalStore) -> None:
    barrier, created, seen = threading.Barrier(8), [], []

    def create(number: int) -> None:
        own = LocalStore(Path(store.describe()))
        barrier.wait()
        created.append(own.create_exclusively("sub/x", bytes([number]) * 1000))
        seen.append(own.read("sub/x"))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]
    assert len(set(seen)) == 1 and len(seen[0]) == 1000
    assert files(store) == ["sub/x"]


def test_what_is_being_written_is_not_there_before_it_is_whole(store: LocalStore) -> None:
    with store.writing("sub/x") as file:
        file.write(b"new")
        assert names(store, "sub") == [] and not store.exists("sub/x")
        file.seek(0)
        assert file.read() == b"new", "it can be read back"
    assert store.read("sub/x") == b"new" and files(store) == ["sub/x"]


def test_what_fails_while_it_is_written_leaves_nothing(store: LocalStore) -> None:
    """A full disk gets its space back, and the old contents stay."""
    store.replace("x", b"old")
    with pytest.raises(ValueError), store.writing("x") as file:
        file.write(b"new")
        raise ValueError
    assert store.read("x") == b"old" and files(store) == ["x"]


def test_a_reader_of_what_is_replaced_goes_on_reading_the_old_contents(store: LocalStore) -> None:
    store.replace("x", b"old")
    with store.open("x") as file:
        store.replace("x", b"new")
        assert file.read() == b"old"


def test_what_a_full_disk_cut_off_is_removed_from_the_end(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could read what was appended after half a batch."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.append("x") as end:
        end.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left") as caught:
                end.append(b"half")
        assert caught.value.filename == store.describe("x")
        end.append(b"second")
    assert store.read("x") == b"firstsecond"


def test_touching_tells_the_time_of_the_store(store: LocalStore) -> None:
    store.replace("x", b"")
    os.utime(store.describe("x"), (1, 1))
    assert store.stamp("x").written == 1
    touched, now = store.touch("x"), store.now()
    assert now is not None and touched == store.stamp("x").written and abs(touched - time.time()) < 60
    assert 0 <= now - touched < 60
    with pytest.raises(FileNotFoundError):
        store.touch("y")
    assert not store.exists("y") and store.touch("y", create=True) >= touched


def test_where_nothing_can_be_written_nobody_knows_the_time(tmp_path: Path) -> None:
    assert LocalStore(tmp_path / "missing").now() is None


def test_only_what_was_looked_at_is_deleted(store: LocalStore) -> None:
    store.replace("x", b"old")
    seen = store.look("x")
    store.replace("x", b"new")
    assert not store.delete_if_same("x", seen)
    assert store.read("x") == b"new" and files(store) == ["x"]
    store.touch("x")
    assert store.delete_if_same("x", store.look("x")) and files(store) == []
    assert store.delete_if_same("x", seen), "somebody else has removed it"


def test_a_file_that_another_worker_deletes_at_once_has_been_touched(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a run, one worker swept another's clock away between its touch and its look at the time."""
    touch = os.utime

    def touched_and_deleted(file: int) -> None:
        touch(file)
        store.delete("x")

    monkeypatch.setattr(os, "utime", touched_and_deleted)
    assert abs(store.touch("x", create=True) - time.time()) < 60 and not store.exists("x")


@pytest.mark.parametrize("verb", ["stamp", "read", "open", "touch"])
def test_what_another_client_has_removed_is_missing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """NFS answers ESTALE where a local disk has no such file."""
    store.replace("x", b"")

    def stale(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError) as caught:
        for module, name in ((os, "fstat"), (os, "utime"), (Path, "open")):
            patch.setattr(module, name, stale)
        getattr(store, verb)("x")
    assert caught.value.filename == store.describe("x")


def test_a_link_that_leads_nowhere_is_there(store: LocalStore) -> None:
    """To readers its name is: it is damaged, and not missing."""
    Path(store.describe("x")).symlink_to("nowhere")
    assert store.exists("x") and names(store) == ["sub", "x"]


def test_a_reader_that_takes_every_file_of_a_directory_finds_no_half_written_one(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """polars refuses a directory that has a file of another ending, and does not skip hidden ones."""
    root, probes, remove = Path(store.describe()), [], local.remove

    def record_and_remove(path: Path) -> None:
        probes.append((path.parent.name, path.is_file()))
        remove(path)

    monkeypatch.setattr(local, "remove", record_and_remove)
    store.prepare(["", "sub"])
    assert probes == [("run", True), ("sub", False)]
    with store.writing("sub/x") as file:
        file.write(b"half")
        assert [*(root / "sub").iterdir()] == []
        assert len(files(store)) == 1
    assert [path.name for path in (root / "sub").iterdir()] == ["x"] and files(store) == ["sub/x"]


def test_a_probe_that_a_killed_process_left_is_removed(store: LocalStore) -> None:
    probe = Path(store.describe("sub/.probe-w"))
    probe.mkdir()
    assert store.list("sub") == []
    os.utime(probe, (1, 1))
    store.discard("sub", "*", min_age_secs=3600)
    assert not probe.exists()


def test_half_written_objects_are_discarded_by_the_name_they_were_to_get(store: LocalStore) -> None:
    root = Path(store.describe())
    for name in (".part-1.parquet.w-1-a.tmp", ".part-2.parquet.w-1-a.tmp", ".README.md.w-1-a.tmp", ".gitattributes"):
        (root / name).touch()
    assert names(store) == [".gitattributes", "sub"]
    store.discard("", "part-1*")
    assert len(files(store)) == 3
    store.discard("", "*", min_age_secs=3600)
    assert len(files(store)) == 3
    os.utime(root / ".README.md.w-1-a.tmp", (1, 1))
    store.discard("", "*", min_age_secs=3600)
    assert files(store) == [".gitattributes", ".part-2.parquet.w-1-a.tmp"]
    store.discard("missing", "*")


def test_a_writer_whose_half_written_object_was_discarded_learns_it(store: LocalStore) -> None:
    with pytest.raises(FileNotFoundError), store.writing("x") as file:
        file.write(b"1")
        LocalStore(Path(store.describe())).discard("", "x")
    assert files(store) == []


ADDRESSES = {"store/addresses.py", "looking/found.py"}
"""They say which store an address means, and so know paths; they call no file system."""

TARGET = "looking/exporting/target.py"
"""The user's own file that an export goes to, outside of the run directory."""

HARMLESS = {"environ", "getpid"}


def calls_of_file_systems(path: Path) -> Iterator[str]:
    """Yield what a module imports or calls that reaches a file system past the store."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in ("shutil", "glob", "tempfile", "fsspec", "pathlib"))
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name != "PurePath"]
            if node.module in ("os", "shutil", "glob", "tempfile", "fsspec", "pathlib", "pyarrow.fs"):
                yield from names
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr not in HARMLESS:
                yield f"os.{node.attr}"
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name == "open" and isinstance(node.func, ast.Name):
                yield "open"
            if name in ("ParquetFile", "ParquetWriter", "read_table", "read_metadata", "read_schema", "CSVWriter"):
                opened = node.args[0]
                if not (isinstance(opened, ast.Name) and opened.id in ("file", "source")):
                    yield f"{name}({ast.unparse(opened)})"


@pytest.mark.parametrize("path", sorted(OUTPUT.rglob("*.py")), ids=lambda path: str(path.relative_to(OUTPUT)))
def test_only_the_local_store_calls_a_file_system(path: Path) -> None:
    """An object store under a run directory is then one new file, and not twenty changes."""
    name = str(path.relative_to(OUTPUT))
    found = list(calls_of_file_systems(path))
    if name in ("store/local.py", "store/files.py", TARGET):
        assert found, "or else this test sees nothing"
    else:
        assert found == (["Path"] if name in ADDRESSES else [])

"""Both stores: what each verb guarantees; and that nothing else in ``job.output`` calls a file system."""

import ast
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job.output.store import local
from job.output.store.addresses import open_store
from job.output.store.local import LocalStore
from job.output.store.store import Store

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "job" / "output"


@pytest.fixture
def local_store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "run")
    store.prepare(["", "sub", "journal"])
    return store


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a run may be: in a directory, or in a bucket."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/runs/a"
    return str(tmp_path / "run")


@pytest.fixture
def store(place: str) -> Store:
    store = open_store(place)
    store.prepare(["", "sub", "journal"])
    return store


def names(store: Store, directory: str = "") -> list[str]:
    return sorted(entry.name for entry in store.list(directory) if entry.name not in ("sub", "journal"))


def files(store: Store) -> list[str]:
    """All files, half-written ones included."""
    root = Path(store.describe())
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_store_has_all_verbs(store: Store, place: str) -> None:
    assert store.describe("sub/x") == f"{place}/sub/x"
    assert store.describe() == place


def test_preparing_leaves_nothing_behind(store: Store) -> None:
    assert names(store) == names(store, "sub") == []


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        LocalStore(tmp_path / "file").prepare([""])


def test_a_directory_that_is_not_there_is_empty_but_a_run_that_is_not_there_is_missing(
    store: Store, place: str
) -> None:
    assert store.list("retry") == []
    other = open_store(f"{place}/other")
    for directory in ("", "sub"):
        with pytest.raises(FileNotFoundError) as caught:
            other.list(directory)
        assert caught.value.filename == other.describe()


def test_an_object_keeps_its_identity_until_it_is_replaced(store: Store) -> None:
    store.replace("x", b"1")
    (before,) = (entry for entry in store.list() if entry.name == "x")
    store.touch("x")
    data, stamp = store.look("x")
    assert (data, stamp.num_bytes, stamp.identity) == (b"1", 1, before.identity)
    store.replace("x", b"3")
    assert store.stamp("x").identity != before.identity


def test_what_is_appended_to_grows_and_keeps_its_identity(store: Store) -> None:
    name = "journal/x"
    with store.append(name) as end:
        end.append(b"1")
        before, (listed,) = store.stamp(name), store.list("journal")
        end.append(b"2", durable=False)
    with store.append(name) as end:
        end.append(b"34")
    assert store.look(name) == (b"1234", store.stamp(name)) and store.list("journal") == [listed]
    with store.open(name) as file:
        assert file.read() == b"1234"
    after = store.stamp(name)
    assert (after.num_bytes, after.identity) == (4, before.identity) and store.exists(name)
    store.delete(name)
    assert not store.exists(name) and store.list("journal") == []
    with pytest.raises(FileNotFoundError):
        store.read(name)
    with store.append(name) as end:
        end.append(b"5")
    assert store.read(name) == b"5"


@pytest.mark.parametrize(("start", "expected"), [(0, b"0123"), (2, b"23"), (4, b""), (-1, b"3"), (-9, b"0123")])
@pytest.mark.parametrize("name", ["x", "journal/x"])
def test_reading_may_begin_anywhere(store: Store, name: str, start: int, expected: bytes) -> None:
    if name == "x":
        store.replace(name, b"0123")
    else:
        with store.append(name) as end:
            end.append(b"0123")
    data, stamp = store.look(name, start)
    assert store.read(name, start) == data == expected and stamp.num_bytes == 4


def test_an_empty_object_can_be_read_from_anywhere(store: Store) -> None:
    store.replace("x", b"")
    assert store.read("x") == store.read("x", 3) == store.read("x", -3) == b""
    with store.open("x") as file:
        assert file.read() == b""


def test_of_many_who_create_one_succeeds_and_all_see_whole_contents(store: Store, place: str) -> None:
    num = 8 if place[:2] != "s3" else 3  # a client of S3 takes a while to start
    barrier, created, seen = threading.Barrier(num), [], []

    def create(number: int) -> None:
        own = open_store(place)
        barrier.wait()
        created.append(own.create_exclusively("sub/x", bytes([number]) * 1000))
        seen.append(own.read("sub/x"))

    in_threads(create, num)
    assert sorted(created) == [False] * (num - 1) + [True]
    assert len(set(seen)) == 1 and len(seen[0]) == 1000
    assert names(store) == [] and names(store, "sub") == ["x"]


def in_threads(work: Callable[[int], None], num: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_many_who_replace_what_they_saw_one_succeeds_at_most(store: Store, place: str) -> None:
    """Whoever comes late must not replace what is new."""
    store.create_exclusively("x", b"old", durable=False)
    seen, barrier, done = store.look("x"), threading.Barrier(3), []

    def replace(number: int) -> None:
        own = open_store(place)
        barrier.wait()
        if own.replace_if_same("x", seen, b"%d" % number):
            done.append(b"%d" % number)

    in_threads(replace, 3)
    # In a directory, the slowest may rename the new file away for an instant, in which a third creates its own.
    assert done and store.read("x") in done
    assert place[:2] != "s3" or len(done) == 1
    assert not store.replace_if_same("x", seen, b"late") and names(store) == ["x"]
    store.delete("x")
    assert store.replace_if_same("x", seen, b"late") == (place[:2] != "s3"), "a directory cannot tell"


def test_what_is_being_written_is_not_there_before_it_is_whole(store: Store) -> None:
    with store.writing("sub/x") as file:
        file.write(b"new")
        assert names(store, "sub") == [] and not store.exists("sub/x")
        file.seek(0)
        assert file.read() == b"new", "it can be read back"
    assert store.read("sub/x") == b"new" and names(store, "sub") == ["x"] and names(store) == []


def test_what_fails_while_it_is_written_leaves_nothing(store: Store) -> None:
    """A full disk gets its space back, and the old contents stay."""
    store.replace("x", b"old")
    with pytest.raises(ValueError), store.writing("x", store.stamp("x")) as file:
        file.write(b"new")
        raise ValueError
    assert store.read("x") == b"old" and names(store) == ["x"]


def test_what_was_written_before_can_be_replaced(store: Store) -> None:
    store.replace("x", b"old")
    with store.writing("x", store.stamp("x")) as file:
        file.write(b"new")
    assert store.read("x") == b"new"


def test_a_reader_of_what_is_replaced_goes_on_reading_the_old_contents(local_store: LocalStore) -> None:
    local_store.replace("x", b"old")
    with local_store.open("x") as file:
        local_store.replace("x", b"new")
        assert file.read() == b"old"


def test_what_a_full_disk_cut_off_is_removed_from_the_end(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could read what was appended after half a batch."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with local_store.append("x") as end:
        end.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left") as caught:
                end.append(b"half")
        assert caught.value.filename == local_store.describe("x")
        end.append(b"second")
    assert local_store.read("x") == b"firstsecond"


def test_touching_tells_the_time_of_the_store(store: Store) -> None:
    store.create_exclusively("x", b"", durable=False)
    touched, now = store.touch("x"), store.now()
    assert now is not None and abs(touched - store.stamp("x").written) <= 1 and abs(touched - time.time()) < 60
    assert 0 <= now - touched < 60
    with pytest.raises(FileNotFoundError):
        store.touch("y")
    assert not store.exists("y") and store.touch("y", create=True) >= touched


def test_touching_a_file_makes_it_new(local_store: LocalStore) -> None:
    local_store.replace("x", b"")
    os.utime(local_store.describe("x"), (1, 1))
    assert local_store.stamp("x").written == 1
    assert local_store.touch("x") == local_store.stamp("x").written > 1


def test_where_nothing_can_be_written_nobody_knows_the_time(tmp_path: Path) -> None:
    assert LocalStore(tmp_path / "missing").now() is None


def test_only_what_was_looked_at_is_replaced(store: Store) -> None:
    store.replace("x", b"old")
    seen = store.look("x")
    store.replace("x", b"new")
    assert not store.replace_if_same("x", seen, b"ours")
    assert store.read("x") == b"new" and names(store) == ["x"]
    store.touch("x")
    assert store.replace_if_same("x", store.look("x"), b"ours")
    assert store.read("x") == b"ours" and names(store) == ["x"]


def test_a_file_that_another_worker_deletes_at_once_has_been_touched(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a run, one worker swept another's clock away between its touch and its look at the time."""
    touch = os.utime

    def touched_and_deleted(file: int) -> None:
        touch(file)
        local_store.delete("x")

    monkeypatch.setattr(os, "utime", touched_and_deleted)
    assert abs(local_store.touch("x", create=True) - time.time()) < 60 and not local_store.exists("x")


@pytest.mark.parametrize("verb", ["stamp", "read", "open", "touch"])
def test_what_another_client_has_removed_is_missing(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """NFS answers ESTALE where a local disk has no such file."""
    local_store.replace("x", b"")

    def stale(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError) as caught:
        for module, name in ((os, "fstat"), (os, "utime"), (Path, "open")):
            patch.setattr(module, name, stale)
        getattr(local_store, verb)("x")
    assert caught.value.filename == local_store.describe("x")


def test_a_link_that_leads_nowhere_is_there(local_store: LocalStore) -> None:
    """To readers its name is: it is damaged, and not missing."""
    Path(local_store.describe("x")).symlink_to("nowhere")
    assert local_store.exists("x") and names(local_store) == ["x"]


def test_a_reader_that_takes_every_file_of_a_directory_finds_no_half_written_one(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """polars refuses a directory that has a file of another ending, and does not skip hidden ones."""
    root, probes, remove = Path(local_store.describe()), [], local.remove

    def record_and_remove(path: Path) -> None:
        probes.append((path.parent.name, path.is_file()))
        remove(path)

    monkeypatch.setattr(local, "remove", record_and_remove)
    local_store.prepare(["", "sub"])
    assert probes == [("run", True), ("sub", False)]
    with local_store.writing("sub/x") as file:
        file.write(b"half")
        assert [*(root / "sub").iterdir()] == []
        assert len(files(local_store)) == 1
    assert [path.name for path in (root / "sub").iterdir()] == ["x"] and files(local_store) == ["sub/x"]


def test_a_probe_that_a_killed_process_left_is_removed(local_store: LocalStore) -> None:
    probe = Path(local_store.describe("sub/.probe-w"))
    probe.mkdir()
    assert local_store.list("sub") == []
    os.utime(probe, (1, 1))
    local_store.discard("sub", "*", min_age_secs=3600)
    assert not probe.exists()


def test_half_written_objects_are_discarded_by_the_name_they_were_to_get(local_store: LocalStore) -> None:
    root = Path(local_store.describe())
    for name in (".part-1.parquet.w-1-a.tmp", ".part-2.parquet.w-1-a.tmp", ".README.md.w-1-a.tmp", ".gitattributes"):
        (root / name).touch()
    assert names(local_store) == [".gitattributes"]
    local_store.discard("", "part-1*")
    assert len(files(local_store)) == 3
    local_store.discard("", "*", min_age_secs=3600)
    assert len(files(local_store)) == 3
    os.utime(root / ".README.md.w-1-a.tmp", (1, 1))
    local_store.discard("", "*", min_age_secs=3600)
    assert files(local_store) == [".gitattributes", ".part-2.parquet.w-1-a.tmp"]
    local_store.discard("missing", "*")


def test_a_writer_whose_half_written_object_was_discarded_learns_it(local_store: LocalStore) -> None:
    with pytest.raises(FileNotFoundError), local_store.writing("x") as file:
        file.write(b"1")
        LocalStore(Path(local_store.describe())).discard("", "x")
    assert files(local_store) == []


ADDRESSES = {"store/addresses.py", "looking/found.py", "publishing/repository.py"}
"""They say which store an address means, or give files to a client, and so know paths; they call no file system."""

TARGET = "looking/exporting/target.py"
"""The user's own file that an export goes to, outside of the run directory."""

HARMLESS = {"environ", "getpid", "strerror"}


def calls_of_file_systems(path: Path) -> Iterator[str]:
    """Yield what a module imports or calls that reaches a file system past the store."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in ("shutil", "glob", "tempfile", "fsspec", "pathlib"))
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if not alias.name.startswith("Pure")]
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
def test_only_the_stores_call_a_file_system(path: Path) -> None:
    """A new kind of store is then one new file, and not twenty changes."""
    name = str(path.relative_to(OUTPUT))
    found = list(calls_of_file_systems(path))
    if name in ("store/local.py", "store/files.py", "store/objects.py", "publishing/contents.py", TARGET):
        assert found, "or else this test sees nothing"
    else:
        assert found == (["Path"] if name in ADDRESSES else [])


def test_a_link_whose_answer_was_lost_is_our_own(
    local_store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NFS, the first attempt works, and the second finds what it has made. A worker took its own lease for
    another's, and its shard waited until that was stale."""
    real_link = os.link

    def lost(source: Path, target: Path) -> None:
        real_link(source, target)
        real_link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lost)
        assert local_store.create_exclusively("lease", b"ours")
    assert local_store.read("lease") == b"ours"
    assert not local_store.create_exclusively("lease", b"another's") and local_store.read("lease") == b"ours"
    assert list((tmp_path / "run").glob(".*.tmp")) == []

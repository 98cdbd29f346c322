"""Converted data: right for the contents of the files, whole, made once, and not kept for ever."""

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job.config import DataConfig
from job.data.conversions import converted
from job.data.formats.json_file import Values
from job.data.opening import open_dataset
from job.errors import UsageError
from job.remote import once


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/datasets"


def rows_of(path: Path, **options: Any) -> list[Any]:
    """Return the values of rows, or their errors."""
    source = open_dataset(DataConfig(dataset=str(path), **options)).source
    blocks = source.read(0, source.num_rows, source.schema.names, [])
    return [row.error.kind if row.error else dict(row.values) for block in blocks for row in block.rows]


def prompts_of(path: Path) -> list[str]:
    return [row["prompt"] for row in rows_of(path)]


def zipped(data: bytes, *more: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("x.jsonl", *more):
            archive.writestr(name, data)
    return buffer.getvalue()


def zstandard(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
    ".zip": zipped,
}


@pytest.mark.parametrize("name", ["d.csv", "d.json", "d.jsonl.gz", "link/d.csv"])
def test_changed_contents_are_read_even_if_the_time_stays(tmp_path: Path, name: str) -> None:
    """The rows of before were answered, and the manifest certified the new contents."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(version)
        text = json.dumps({"prompt": version})
        content = f"prompt\n{version}\n" if ".csv" in name else f"[{text}]" if ".jsonl" not in name else f"{text}\n"
        (tmp_path / name).write_bytes(gzip.compress(content.encode(), mtime=0) if ".gz" in name else content.encode())
        os.utime(tmp_path / name, (1_500_000_000, 1_500_000_000))
        assert prompts_of(tmp_path / name) == [version]


def test_a_conversion_is_made_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.csv").write_text("prompt\na\n")
    assert prompts_of(tmp_path / "d.csv") == ["a"]
    (made,) = [path for path in cache.iterdir() if path.is_dir()]
    before = (made / "table.arrow").stat()
    (tmp_path / "d.csv").touch()
    assert prompts_of(tmp_path / "d.csv") == ["a"]
    assert (made / "table.arrow").stat() == before
    (tmp_path / "d.csv").write_text("prompt;x\na;1\n")
    assert rows_of(tmp_path / "d.csv", csv_delimiter=",") == [{"prompt;x": "a;1"}]
    assert rows_of(tmp_path / "d.csv") == [{"prompt": "a", "x": 1}], "the options count as well as the contents"


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_are_read_like_plain_ones(tmp_path: Path, ending: str) -> None:
    """A line that is not JSON made the whole file unreadable; of the endings, .gz alone could be read."""
    compress = COMPRESS[ending]
    (tmp_path / f"d.jsonl{ending}").write_bytes(compress(b'{"prompt": "a"}\nno json\n{"prompt": "b"}\n'))
    assert rows_of(tmp_path / f"d.jsonl{ending}") == [*({"prompt": "a"}, "invalid_json", {"prompt": "b"})]
    (tmp_path / f"d.csv{ending}").write_bytes(compress(b"prompt,n\na,1\n"))
    assert rows_of(tmp_path / f"d.csv{ending}") == [{"prompt": "a", "n": 1}]
    (tmp_path / f"d.json{ending}").write_bytes(compress(b'[{"prompt": "a"}]'))
    assert rows_of(tmp_path / f"d.json{ending}") == [{"prompt": "a"}]
    (tmp_path / f"d.txt{ending}").write_bytes(compress(b"a\n\nb"))
    assert rows_of(tmp_path / f"d.txt{ending}") == [{"text": "a"}, {"text": ""}, {"text": "b"}]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_may_have_several_parts(tmp_path: Path, ending: str) -> None:
    parts = [COMPRESS[ending](json.dumps({"prompt": f"p{idx}"}).encode() + b"\n") for idx in range(50)]
    (tmp_path / f"d.jsonl{ending}").write_bytes(b"".join(parts))
    assert prompts_of(tmp_path / f"d.jsonl{ending}") == [f"p{idx}" for idx in range(50)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
@pytest.mark.parametrize("ending", COMPRESS)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, ending: str, cache: Path) -> None:
    data = os.urandom(200_000).hex().encode()
    content = {"jsonl": b'{"prompt": "%s"}\n', "csv": b"prompt\n%s\n", "json": b'[{"prompt": "%s"}]'}[kind] % data
    path = tmp_path / f"d.{kind}{ending}"
    path.write_bytes(COMPRESS[ending](content)[:100_000])
    with pytest.raises(UsageError, match=rf"d\.{kind}{ending}: the file is truncated or damaged: "):
        rows_of(path)
    assert not [entry for entry in cache.glob("*") if entry.is_dir()], "nothing half made is left"


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.zip").write_bytes(zipped(b"{}", "y.jsonl"))
    with pytest.raises(UsageError, match=r"archive of 2 files \(x\.jsonl, y\.jsonl, \.\.\.\)\. Unpack it"):
        rows_of(tmp_path / "d.jsonl.zip")


def test_what_nobody_uses_is_deleted(tmp_path: Path, cache: Path) -> None:
    for name in ("old", "used", "new"):
        (tmp_path / f"{name}.csv").write_text(f"prompt\n{name}\n")
    found = {}
    for name in ("old", "used"):
        before = set(cache.iterdir()) if cache.exists() else set()
        assert prompts_of(tmp_path / f"{name}.csv") == [name]
        (found[name],) = [path for path in {*cache.iterdir()} - before if path.is_dir()]
        os.utime(found[name], (1_500_000_000, 1_500_000_000))
    assert prompts_of(tmp_path / "used.csv") == ["used"], "which counts as use"
    assert prompts_of(tmp_path / "new.csv") == ["new"]
    assert found["used"].exists() and not found["old"].exists()


def test_a_process_that_dies_leaves_no_lock_and_nothing_half_made(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt\na\n")
    code = (
        "import os, sys, signal; from pathlib import Path; from job.data.conversions import converted\n"
        "def make(directory):\n"
        "    (directory / 'half').write_text('x'); print('made', flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "converted([sys.argv[1]], 'r', None, make)"
    )
    died = subprocess.run([sys.executable, "-c", code, tmp_path / "d.csv"], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL and died.stdout == b"made\n", died.stderr
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".tmp"]
    found = converted([str(tmp_path / "d.csv")], "r", None, lambda directory: (directory / "whole").touch())
    assert [path.name for path in found.iterdir()] == ["whole"]
    assert [path for path in cache.iterdir() if path.is_dir()] == [found]


def test_one_process_converts_and_the_others_wait_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They waited without a word. (Two threads are like two processes here: each opens the lock on its own.)"""
    monkeypatch.setattr(once, "PATIENCE_SECS", 0.0)
    monkeypatch.setattr(once, "POLL_SECS", 0.001)
    (tmp_path / "d.csv").write_text("prompt\na\n")
    started, may_end, made = threading.Event(), threading.Event(), []

    def make(directory: Path) -> None:
        made.append(directory)
        started.set()
        assert may_end.wait(60)

    def convert() -> None:
        converted([str(tmp_path / "d.csv")], "r", None, make)

    first, second = threading.Thread(target=convert), threading.Thread(target=convert)
    monkeypatch.setattr(time, "sleep", lambda seconds: may_end.set())  # once the second waits
    first.start()
    assert started.wait(60)
    second.start()
    first.join()
    second.join()
    assert len(made) == 1
    assert f"waiting for process {os.getpid()} on " in capsys.readouterr().err


def test_without_a_cache_that_can_be_written_a_temporary_directory_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.csv").write_text("prompt\na\n")
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert prompts_of(tmp_path / "d.csv") == ["a"]
    assert f"the cache is {tmp_path}/temporary/" in capsys.readouterr().err
    assert prompts_of(tmp_path / "d.csv") == ["a"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"There is no place for a cache .* Set JOB_CACHE to a directory"):
        prompts_of(tmp_path / "d.csv")


def test_a_directory_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make the directory first that we would use in a shared temporary directory."""
    (tmp_path / "d.csv").write_text("prompt\na\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"dataset-inference-job-{os.getuid()}").symlink_to("elsewhere")
    (tmp_path / "file").touch()
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="There is no place for a cache"):
        prompts_of(tmp_path / "d.csv")


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("prompt\na\n")
    with pytest.raises(UsageError, match=r"d\.csv has changed while it was read"):
        converted([str(path)], "r", None, lambda directory: path.write_text("prompt\na\nb\n") and None)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('[{"a": 1}, {"a": "x\\ny"}]', [{"a": 1}, {"a": "x\ny"}]),
        ('\ufeff [\r\n {"a":\n 1}\n]\n', [{"a": 1}]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{\n  "a": 1\n}\n{\n  "a": 2\n}', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}', [{"a": 1}]),
        ('["x", "y"]', [{"text": "x"}, {"text": "y"}]),
        ('[{"a": 1}, 1.5e3, -2]', [{"a": 1}, "invalid_json", "invalid_json"]),
        ('[{"a": 12345678901234567890123, "b": NaN}]', None),
    ],
)
def test_json_of_several_forms(tmp_path: Path, text: str, values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for num_chars in (1, 2, 5, 1 << 20):
        monkeypatch.setattr("job.data.formats.json_file.READ_CHARS", num_chars)
        (tmp_path / "d.json").write_text(text + " " * (num_chars % 7))
        assert rows_of(tmp_path / "d.json") == values or (values is None and len(rows_of(tmp_path / "d.json")) == 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', "line 2: a comma or the end of the list is missing"),
        ('[{"a": 1},\n {"a": tru}]', "line 2: Expecting value"),
        ('[{"a": 1}', "line 1: the list does not end"),
        ('[{"a": 1}, {"a": "x', "line 1: Unterminated string"),
        ('[{"a": 1},\n]', "line 2: Expecting value"),
        ('[{"a": 1}]\n[]', "line 2: there is something after the end of the list"),
        ("[]", "it has no rows, so no columns either"),
        ("", "it has no rows, so no columns either"),
        ('[{"a": "caf\\xe9"}]', "the byte 0xe9 is not UTF-8"),
        ("[" * 100_000, "line 1: lists or objects are nested too deeply"),
    ],
)
def test_json_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.json").write_bytes(text.replace("\\xe9", "\xe9").encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        rows_of(tmp_path / "d.json")


def test_a_single_object_with_the_rows_inside_is_told(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"version": "1", "data": [{"prompt": "a"}, {"prompt": "b"}]}')
    for _ in range(2):
        notes = open_dataset(DataConfig(dataset=str(tmp_path / "d.json"))).notes
        assert len(notes) == 1 and "is a single object, so it is one row" in notes[0] and "jq '.[\"data\"]'" in notes[0]


def test_the_way_that_data_was_read_is_told_if_a_column_is_missing(
    tmp_path: Path, tiny_model: Any, run_job: Any
) -> None:
    """The rows within a single object were not looked for: a refusal named its two keys, and the note was lost."""
    (tmp_path / "d.json").write_text('{"version": "1", "data": [{"prompt": "a"}, {"prompt": "b"}]}')
    found = run_job("preview", "--model", tiny_model(), "--dataset", tmp_path / "d.json")
    assert found.exit_code == 2
    assert (
        "no column 'prompt'. " in found.stderr and "Note: d.json is a single object, so it is one row" in found.stderr
    )


def test_memory_for_json_grows_with_a_row_not_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.data.formats.json_file.READ_CHARS", 100)
    (tmp_path / "d.json").write_text(json.dumps([{"a": "x" * 50}] * 1000))
    values = Values(str(tmp_path / "d.json"))
    assert max(len(values._text) for _ in values) < 400

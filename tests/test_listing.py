"""Which files of a directory, or of patterns, are rows. What lies there and is not read is named or refused."""

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.config import DataConfig
from job.data.dataset import OpenDataset
from job.data.opening import open_dataset
from job.data.splits import splits_of
from job.errors import UsageError
from job.fingerprint import SAMPLED_BYTES, digest_of_ends
from job.output.parts.manifest import read_manifest
from job.output.store.local import LocalStore

Result = Any


def fill(root: Path, *names: str) -> Path:
    """Write files, each of them with a row that holds its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"prompt": [name]}), path)
        elif path.suffix == ".csv":
            path.write_text(f"prompt\n{name}\n")
        else:
            path.write_text(json.dumps({"prompt": name}) + "\n")
    return root


def opened(dataset: Path | str, **options: Any) -> OpenDataset:
    output = options.pop("output", None)
    is_older = options.pop("is_older", False)
    return open_dataset(DataConfig(dataset=str(dataset), **options), output=output, is_older=is_older)


def prompts_of(dataset: OpenDataset) -> list[str]:
    blocks = dataset.source.read(0, dataset.source.num_rows, ["prompt"], [])
    return [str(row.values["prompt"]) for block in blocks for row in block.rows]


def read(dataset: Path | str, **options: Any) -> list[str]:
    return prompts_of(opened(dataset, **options))


def not_read(dataset: Path | str, **options: Any) -> list[str]:
    return [str(unread) for unread in opened(dataset, **options).unread]


@pytest.mark.parametrize(
    "names",
    [
        ["alpha.jsonl", "beta.jsonl", "chemistry_test_tubes.jsonl"],
        ["extra/y.jsonl", "train/x.jsonl"],
        ["eval_notes.jsonl", "reviews-2023.jsonl"],
        ["dev-to_articles.jsonl", "medium_articles.jsonl"],
        ["shard 1/a.jsonl", "shard-test-run/a.jsonl"],
        ["data/reviews-00000-of-00001.jsonl", "more.jsonl"],
        ["a.parquet", "train.parquet"],
        ["a.csv", "validation/b.csv"],
        ["a.eval.jsonl", "b.jsonl"],
        ["logs.jsonl", "test", "training-runs.jsonl"],
        ["train/a.jsonl", "x.jsonl", "y/test/b.jsonl"],
    ],
    ids=str,
)
def test_names_never_leave_rows_out(tmp_path: Path, names: list[str]) -> None:
    """``datasets`` read the files with a word such as "test" in their names alone: 2 rows of 8, exit code 0."""
    data = [name for name in names if "." in name]
    assert read(fill(tmp_path / "d", *names)) == data
    assert [file.name for file in opened(tmp_path / "d").files] == data


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (
            ["train_0.csv", "train_1.csv", "dev-2.csv"],
            {"train": ["train_0.csv", "train_1.csv"], "validation": ["dev-2.csv"]},
        ),
        (["train/x/a.jsonl", "val/a.jsonl"], {"train": ["train/x/a.jsonl"], "validation": ["val/a.jsonl"]}),
        (
            ["data/train_sft-00000-of-00001.parquet", "data/test-00000-of-00001-a1b2.parquet"],
            {"test": ["data/test-00000-of-00001-a1b2.parquet"], "train_sft": ["data/train_sft-00000-of-00001.parquet"]},
        ),
        (["evaluation/train.jsonl"], {"test": ["evaluation/train.jsonl"]}),
        (["dev-ab.jsonl", "training.jsonl"], None),
        (["gsm8k-train.jsonl", "gsm8k-test.jsonl"], None),
        (["latest.jsonl", "contrain.jsonl"], {"train": ["latest.jsonl", "contrain.jsonl"]}),
    ],
    ids=str,
)
def test_a_layout_that_says_its_splits(names: list[str], splits: dict[str, list[str]] | None) -> None:
    """None: the names may be meant as splits, so the user is asked."""
    found = splits_of(names)
    assert found.is_plain == (splits is not None)
    assert splits is None or {split: list(files) for split, files in found.files.items()} == splits


def test_a_plain_layout_is_read_by_splits_and_the_others_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.jsonl", "test/b.jsonl", "test/c.jsonl")
    assert opened(tmp_path).describe(None) == "reading 1 row from split train (not read: test), train/a.jsonl"
    assert read(tmp_path, split="test") == ["test/b.jsonl", "test/c.jsonl"]
    assert read(tmp_path, data_files=("**",)) == ["test/b.jsonl", "test/c.jsonl", "train/a.jsonl"]
    assert not_read(tmp_path, data_files=("**",)) == []
    fill(tmp_path, "top.jsonl")
    assert not_read(tmp_path / "*") == ["test/ (a folder)", "train/ (a folder)"]


def test_names_that_may_be_splits_are_asked_about(tmp_path: Path) -> None:
    fill(tmp_path, "gsm8k-train.jsonl", "gsm8k-test.jsonl")
    with pytest.raises(UsageError, match=r"look like the splits train, test\. Choose one with --split, or read all"):
        opened(tmp_path)
    assert read(tmp_path, split="test") == ["gsm8k-test.jsonl"]
    assert read(tmp_path, data_files=("**",)) == ["gsm8k-test.jsonl", "gsm8k-train.jsonl"]


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("a.jsonl.bak", "a.jsonl.bak"),
        ("a.jsonl~", "a.jsonl~"),
        ("a.jsonl.tmp.123", "a.jsonl.tmp.123"),
        ("old/a.jsonl.orig", "old/a.jsonl.orig"),
        (".a.jsonl.swp", ".a.jsonl.swp"),
        (".hidden/b.jsonl", ".hidden/"),
        ("__pycache__/b.jsonl", "__pycache__/"),
        ("stats.json", "stats.json (one object, no rows)"),
        ("sub/stats.JSON", "sub/stats.JSON (one object, no rows)"),
        ("dataset_infos.json", "dataset_infos.json"),
        ("d.py", "d.py"),
        ("README.md", "README.md"),
        ("LICENSE.txt", "LICENSE.txt"),
        ("images/a.png", "images/a.png"),
        ("_SUCCESS", "_SUCCESS"),
        ("Thumbs.db", "Thumbs.db"),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, extra: str, named: str) -> None:
    """Backups became rows; a script or an odd dataset_infos.json was a traceback."""
    fill(tmp_path / "d", "a.jsonl", extra)
    assert read(tmp_path / "d") == ["a.jsonl"]
    assert not_read(tmp_path / "d") == [named]


@pytest.mark.parametrize(
    ("extra", "content", "message"),
    [
        ("b.csv", None, "holds files of several kinds: a.jsonl, b.csv. Choose with --data-files, for example"),
        ("b.parquet", None, "holds files of several kinds: a.jsonl, b.parquet."),
        ("rows.json", '[{"prompt": "b"}]', "holds files of several kinds: a.jsonl, rows.json."),
        ("rows.json", '{"data": [{"prompt": "b"}]}', "holds files of several kinds: a.jsonl, rows.json."),
        ("rows.json", '{"prompt": "b"}\n{"prompt": "c"}', "holds files of several kinds: a.jsonl, rows.json."),
        ("notes.txt", None, "holds files of several kinds: a.jsonl, notes.txt."),
        ("b.jsonl.lz4", None, "b.jsonl.lz4 may hold rows, but cannot be read. Choose with --data-files"),
        ("sub/b.zip", None, "sub/b.zip may hold rows"),
        ("b.feather", None, "b.feather may hold rows"),
        ("b.jsonlines", None, "b.jsonlines may hold rows"),
    ],
)
def test_what_could_be_data_is_refused(tmp_path: Path, extra: str, content: str | None, message: str) -> None:
    fill(tmp_path / "d", "a.jsonl", extra)
    if content is not None:
        (tmp_path / "d" / extra).write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        opened(tmp_path / "d")
    assert read(tmp_path / "d", data_files=("*.jsonl",)) == ["a.jsonl"]


def test_one_object_a_file_is_data_if_there_is_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, "1.json", "2.json", "config.json")
    assert read(tmp_path) == ["1.json", "2.json"]
    assert not_read(tmp_path) == ["config.json"]


def test_a_directory_without_data_says_what_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, ".store/a.jsonl", "a.tar")
    with pytest.raises(UsageError, match=r"holds no files that can be read: a\.tar, \.store/\. Supported endings: \."):
        opened(tmp_path)
    assert read(tmp_path / ".store") == [".store/a.jsonl"], "what lies above the directory does not matter"


def test_links_are_followed(tmp_path: Path) -> None:
    """A folder behind a link was dropped: by ``datasets``, and by ``**`` of ``Path.glob``."""
    fill(tmp_path, "store/p1/x.jsonl", "store/p2/deep/z.jsonl", "d/y.jsonl")
    (tmp_path / "d" / "p1").symlink_to("../store/p1")
    (tmp_path / "d" / "p2").symlink_to(tmp_path / "store" / "p2")
    (tmp_path / "d" / "w.jsonl").symlink_to("../store/p1/x.jsonl")
    (tmp_path / "link").symlink_to("d")
    names = ["p1/x.jsonl", "p2/deep/z.jsonl", "w.jsonl", "y.jsonl"]
    for dataset in ("d/**/*.jsonl", "link/**"):
        assert [file.name for file in opened(tmp_path / dataset).files] == names
    for dataset in ("d", "link"):
        assert [file.name for file in opened(tmp_path / dataset).files] == ["p1/x.jsonl", "p2/deep/z.jsonl", "y.jsonl"]
        assert not_read(tmp_path / dataset) == ["w.jsonl (a link to p1/x.jsonl)"]
    assert [file.name for file in opened(tmp_path, data_files=("d/*/*.jsonl",)).files] == ["p1/x.jsonl"]
    (tmp_path / "d" / "w.jsonl").unlink()
    (tmp_path / "d" / "w.jsonl").symlink_to(fill(tmp_path, "v.jsonl") / "v.jsonl")
    assert [file.name for file in opened(tmp_path / "d").files] == names


def test_what_is_reached_twice_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path, "d/2024/a.jsonl", "d/b.jsonl", "beside.jsonl")
    (tmp_path / "d" / "1-latest").symlink_to("2024")
    (tmp_path / "d" / "loop").symlink_to(".")
    (tmp_path / "d" / "2024" / "up").symlink_to("../..")
    (tmp_path / "d" / "c.jsonl").symlink_to("b.jsonl")
    assert read(tmp_path / "d") == ["d/2024/a.jsonl", "d/b.jsonl"]
    assert not_read(tmp_path / "d") == [
        "c.jsonl (a link to b.jsonl)",
        "1-latest/ (a link to 2024)",
        "2024/up/ (a link to ../..)",
        "loop/ (a link to .)",
    ]
    assert sorted(read(tmp_path / "d", data_files=("**/[a-b].jsonl",))) == ["d/2024/a.jsonl", "d/b.jsonl"]


def test_a_link_to_itself_is_a_link_to_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    (tmp_path / "self").symlink_to("self")
    assert read(tmp_path) == ["a.jsonl"] and not_read(tmp_path) == ["self (a link to nothing)"]


def test_what_other_tools_write_is_read_whole(tmp_path: Path) -> None:
    """Folders of partitions, and Spark's marks and checksums beside its parts."""
    fill(tmp_path, "hive/year=2023/part-0.parquet", "hive/year=2024/part-0.parquet")
    assert read(tmp_path / "hive") == ["hive/year=2023/part-0.parquet", "hive/year=2024/part-0.parquet"]
    parts = ["s.parquet/part-00000-ab.snappy.parquet", "s.parquet/part-00001-ab.snappy.parquet"]
    beside = ["_SUCCESS", "_metadata", "._SUCCESS.crc", ".part-00000-ab.snappy.parquet.crc"]
    fill(tmp_path, *parts, *(f"s.parquet/{name}" for name in beside))
    assert read(tmp_path / "s.parquet") == parts
    assert sorted(not_read(tmp_path / "s.parquet")) == sorted(beside)


def test_names_of_any_bytes_can_be_shown_and_written(tmp_path: Path, tiny_model: Any, run_job: Any) -> None:
    """A name that is not UTF-8 was a traceback at the manifest; an escape sequence of a name reached the terminal."""
    for name in (b"caf\xe9.jsonl", b"a\nb\x1b[31m.jsonl", b"caf\xe9.bak"):
        Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/" + name)).parent.mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/" + name)).write_text('{"prompt": "x"}\nno json\n')
    found = run_job(
        *("run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "d"),
        *("--output", tmp_path / "out", "--max-error-rate", 1, "--max-new-tokens", 2),
    )
    assert found.exit_code == 0
    assert r"reading 4 rows from 2 files: a b\x1b[31m.jsonl, caf\xe9.jsonl" in found.stderr
    assert r"not read: caf\xe9.bak" in found.stderr
    manifest = read_manifest(LocalStore(tmp_path / "out"))
    assert manifest is not None
    assert list(manifest.about["files"]) == ["a\nb\x1b[31m.jsonl", r"caf\xe9.jsonl"]


def test_a_link_to_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(UsageError, match=r"b\.jsonl is a link to gone\.jsonl, which is not there\. Restore it"):
        opened(tmp_path)
    (tmp_path / "b.jsonl").rename(tmp_path / "b.txt.bak")
    os.mkfifo(tmp_path / "pipe")
    assert not_read(tmp_path) == ["b.txt.bak (a link to nothing)", "pipe (not a regular file)"]


def test_a_card_with_configs_says_what_is_read(tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: x\n  data_files:\n  - split: train\n    path: a.jsonl\n"
    fill(tmp_path, "a.jsonl", "b.jsonl", ".c.jsonl")
    (tmp_path / "README.md").write_text(f"{card}---\n")
    assert read(tmp_path) == ["a.jsonl"]
    assert not_read(tmp_path) == ["b.jsonl", ".c.jsonl"]
    (tmp_path / "README.md").write_text(f"{card}- config_name: y\n  data_files: b.jsonl\n---\n")
    with pytest.raises(UsageError, match=r"has the configurations x, y\. Choose with --dataset-config\.$"):
        opened(tmp_path)
    assert read(tmp_path, dataset_config="y") == ["b.jsonl"]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nWords.\n")
    assert read(tmp_path) == ["a.jsonl", "b.jsonl"], "a card without configs says nothing of files"
    with pytest.raises(UsageError, match=r"no README\.md that lists configs"):
        opened(tmp_path, dataset_config="y")


def test_what_lies_beside_a_saved_dataset_is_named(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"prompt": ["a"]})
    saved.save_to_disk(tmp_path / "one")
    fill(tmp_path / "one", "more.jsonl")
    assert read(tmp_path / "one") == ["a"] and not_read(tmp_path / "one") == ["more.jsonl"]
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "both")
    both = opened(tmp_path / "both")
    assert both.unread == () and both.describe(None).startswith(
        "reading 1 row from split train (not read: test), train/"
    )


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_description_of_a_saved_dataset_is_named(tmp_path: Path, name: str, content: str) -> None:
    datasets.Dataset.from_dict({"prompt": ["a"]}).save_to_disk(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path / name))} is not a file of save_to_disk: "):
        opened(tmp_path)


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UsageError, match=r"/README\.md has a header that is not YAML\. Correct it"):
        opened(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: missing.jsonl\n---\n")
    with pytest.raises(UsageError, match=r"missing\.jsonl") as caught:
        opened(tmp_path)
    assert len(str(caught.value)) < 500, "datasets lists all endings that it knows"
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert read(tmp_path) == ["a.jsonl"]


def test_local_files_that_are_read_in_place_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HOME where nobody may write, even JSON lines were refused, and HF_HOME was not named."""

    def fail(*args: Any, **options: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/nope/datasets")

    monkeypatch.setenv("HF_HOME", "/proc/nope")
    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    fill(tmp_path, "j/a.jsonl", "p/a.parquet", "t/a.txt")
    assert [opened(tmp_path / kind).source.num_rows for kind in "jpt"] == [1, 1, 1]
    (tmp_path / "a.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UsageError, match=r"a\.arrow: /proc/nope/datasets: No such .* Set HF_HOME, now /proc/nope, "):
        opened(tmp_path / "a.arrow")


def test_the_first_line_is_short(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{letter}.jsonl" for letter in "abcde"), *(f"{number}.bak" for number in range(7)))
    found = opened(tmp_path)
    assert found.describe(None) == "reading 5 rows from 5 files: a.jsonl, b.jsonl, c.jsonl (+2)"
    assert found.describe(2) == "reading the first 2 of 5 rows from 5 files: a.jsonl, b.jsonl, c.jsonl (+2)"
    assert found.describe(1) == "reading the first of 5 rows from 5 files: a.jsonl, b.jsonl, c.jsonl (+2)"
    assert found.notes == ("not read: 0.bak, 1.bak, 2.bak, 3.bak, 4.bak (+2)",)
    assert opened(tmp_path / "a.jsonl").describe(None) == "reading 1 row from a.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(
            (f"a.{ending}", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "a Git LFS pointer")
            for ending in ("jsonl", "json", "csv", "txt", "parquet", "arrow")
        ),
        ("a.arrow", b"no arrow", "not an Arrow file."),
        ("a.jsonl", b"\n<!DOCTYPE html><html>", "a web page, not the data. Download the file itself"),
        ("a.csv", b"<html lang='en'>", "a web page"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "compressed with gzip. Let its name end in .gz"),
        (
            "a.jsonl",
            "{}\n".encode("utf-16"),
            "UTF-16 text. Convert it to UTF-8: iconv -f UTF-16 -t UTF-8",
        ),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16-le"), "UTF-16 text"),
        ("a.txt", "one\ntwo\n".encode("utf-16-be"), "UTF-16 text"),
        ("a.jsonl", "{}\n".encode("utf-32"), "UTF-32 text"),
        ("a.jsonl", b'[\n{"a": 1},\n{"a": 2}\n]\n', "one JSON list, not JSON lines. Let its name end in .json"),
        ("a.jsonl", b'[{"a": 1},\n {"a": 2}]\n', "one JSON list"),
        ("a.jsonl", b'[{"a": 1}, {"a": 2}]', "one JSON list"),
        ("a.jsonl", b'{\n  "version": 1,\n  "data": []\n}\n', "one JSON object over several lines"),
        ("a.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.jsonl.gz", gzip.compress(b'[{"a": 1}, {"a": 2}]', mtime=0), "one JSON list"),
        ("a.txt.gz", gzip.compress("one".encode("utf-16"), mtime=0), "UTF-16 text"),
        ("a.jsonl", b'{"a": 1}\r{"a": 2}\r', "one long line: its line ends are carriage returns"),
    ],
    ids=str,
)
def test_a_file_that_is_something_else_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """Each line would have been an error row: of UTF-16, two lines were three rows, and one of them was read."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"^{re.escape(f'{tmp_path / name} is {message}')}"):
        opened(tmp_path / name)


@pytest.mark.parametrize("content", ['[1]\n{"a": 1}\n', '{"a": 1}\n[\n', '{"a": "b\n{"a": 1}\n', '{"a": 1}\n{\n'])
def test_a_bad_line_among_good_ones_is_still_an_error_row(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert opened(tmp_path / "a.jsonl").source.num_rows == 2


@pytest.fixture
def base(tmp_path: Path, tiny_model: Any) -> list[Any]:
    return ["run", "--engine", "fake", "--model", tiny_model(), "--max-new-tokens", 2]


def parts_of(output: Path) -> list[str]:
    return [
        prompt
        for part in sorted(output.glob("data/part-*.parquet"))
        for prompt in pq.read_table(part)["prompt"].to_pylist()
    ]


def test_an_output_below_its_own_dataset_is_left_out(tmp_path: Path, run_job: Any, base: list[Any]) -> None:
    """The run's own metrics and manifest were rows at its restart, which was refused."""
    data = fill(tmp_path / "d", "q.jsonl")
    for dataset, name in ((data, "run"), (f"{data}/**/*.jsonl", "other"), (data, "run")):
        options = ["--dataset", dataset, "--output", data / name]
        first = run_job(*base, *options)
        assert first.exit_code == 0, first.stderr
        for part in data.glob(f"{name}/**/part-*.parquet"):
            part.unlink()
        again = run_job(*base, *options)
        assert again.exit_code == 0 and "reading 1 row from q.jsonl" in again.stderr, again.stderr
        assert parts_of(data / name) == ["q.jsonl"]
    assert "not read: other/ (a run directory), run/ (a run directory)" in again.stderr
    assert not_read(f"{data}/**/*.jsonl") == ["other/ (a run directory)", "run/ (a run directory)"]
    (data / "run" / "manifest.json").unlink()  # as before it is claimed
    assert read(data) == ["q.jsonl"]
    parquet = fill(tmp_path / "p", "a.parquet")
    for _ in range(2):
        result = run_job(*base, "--dataset", parquet / "**", "--output", parquet / "run")
        assert result.exit_code == 0, result.stderr
    assert parts_of(parquet / "run") == ["a.parquet"]
    refused = run_job(*base, "--dataset", parquet / "run" / "**" / "part-*.parquet", "--output", parquet / "run")
    assert refused.exit_code == 2 and "it is the output of this very run" in refused.stderr


def test_an_output_that_is_the_dataset_is_refused(tmp_path: Path, run_job: Any, base: list[Any]) -> None:
    data = fill(tmp_path / "d", "q.jsonl")
    result = run_job(*base, "--dataset", data, "--output", tmp_path / "d" / ".." / "d")
    assert result.exit_code == 2
    assert "is the directory of the dataset. Use another one, for example" in result.stderr
    assert [path.name for path in data.iterdir()] == ["q.jsonl"]


def test_a_run_as_the_dataset_must_be_finished(tmp_path: Path, run_job: Any, base: list[Any]) -> None:
    """Chains of runs started on half of the data, without a word of the rest."""
    fill(tmp_path / "d", *(f"{idx}.jsonl" for idx in range(5)))
    run = tmp_path / "runs" / "a"
    assert run_job(*base, "--dataset", tmp_path / "d", "--rows-per-shard", 2, "--output", run).exit_code == 0
    assert read(run) == [f"{idx}.jsonl" for idx in range(5)]
    (first, *_) = parts = sorted(run.glob("**/part-*.parquet"))
    pattern = str(first.relative_to(run).parent / "part-*.parquet")
    assert opened(run / pattern).notes == ()
    first.unlink()
    message = f"{run} is an unfinished run: 2 of 5 rows are missing. Finish it first, or read what is there with "
    with pytest.raises(UsageError, match=re.escape(f"{message}--partial.")):
        opened(run)
    there = opened(run, partial=True)
    assert opened(run, data_files=(pattern,)).notes == there.notes
    assert prompts_of(there) == ["2.jsonl", "3.jsonl", "4.jsonl"]
    assert there.notes == (f"{run} is an unfinished run: 2 of 5 rows are missing",)
    assert opened(tmp_path / "runs" / "*" / pattern).notes == there.notes
    assert read(tmp_path / "runs", data_files=("**/*.parquet",)) == prompts_of(there)
    for part in parts[1:]:
        part.unlink()
    with pytest.raises(UsageError, match=r"5 of 5 rows are missing\. Finish it first: --partial reads whole parts"):
        opened(run)


def test_a_manifest_of_something_else_is_no_run(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "sub" / "manifest.json").write_text('{"format_version": 1}')
    assert read(tmp_path) == ["a.jsonl", "sub/b.jsonl"]


def test_the_manifest_and_the_card_say_what_was_read(tmp_path: Path, run_job: Any, base: list[Any]) -> None:
    data = fill(tmp_path / "d", "a.jsonl", "sub/b.jsonl", "c.bak")
    result = run_job(*base, "--dataset", data, "--output", tmp_path / "out")
    lines = [line.split("  ", 1)[1] for line in result.stderr.splitlines()]
    start = lines.index("reading 2 rows from 2 files: a.jsonl, sub/b.jsonl")
    assert lines[start + 1] == "not read: c.bak"
    manifest = read_manifest(LocalStore(tmp_path / "out"))
    assert manifest is not None
    size = (data / "a.jsonl").stat().st_size
    assert manifest.about["files"]["a.jsonl"] == [size, digest_of_ends(data / "a.jsonl")]
    assert list(manifest.about["files"]) == ["a.jsonl", "sub/b.jsonl"] and manifest.about["not_read"] == ["c.bak"]
    assert ", read from `a.jsonl`, `sub/b.jsonl`\n" in (tmp_path / "out" / "README.md").read_text()
    preview = run_job("preview", *base[1:], "--dataset", data, "--json")
    content = json.loads(preview.stdout)
    assert content["files"] == ["a.jsonl", "sub/b.jsonl"] and content["not_read"] == ["c.bak"]
    assert content["notes"] == ["not read: c.bak"]
    assert "2 files: a.jsonl, sub/b.jsonl" in run_job("preview", *base[1:], "--dataset", data).stdout


def test_a_restart_names_the_files_that_have_changed(tmp_path: Path, run_job: Any, base: list[Any]) -> None:
    """A hash that differs does not say that somebody has added a file."""
    data = fill(tmp_path / "d", "a.jsonl", "b.jsonl")
    assert run_job(*base, "--dataset", data, "--output", tmp_path / "out").exit_code == 0
    moved = shutil.move(data, tmp_path / "moved")
    assert run_job(*base, "--dataset", moved, "--output", tmp_path / "out").exit_code == 0, "identity is by contents"
    fill(moved, "extra.jsonl")
    refused = run_job(*base, "--dataset", moved, "--output", tmp_path / "out")
    assert refused.exit_code == 2 and "contents differ: new file extra.jsonl. Use a new --output" in refused.stderr
    shutil.move(moved, data)
    refused = run_job(*base, "--dataset", data, "--output", tmp_path / "out")
    assert refused.exit_code == 2 and ": new file extra.jsonl (2 rows then, 3 now). Use a" in refused.stderr
    (data / "extra.jsonl").unlink()
    (data / "b.jsonl").write_text('{"prompt": "another"}\n')
    refused = run_job(*base, "--dataset", data, "--output", tmp_path / "out")
    assert refused.exit_code == 2 and ": changed file b.jsonl. Use a" in refused.stderr
    (data / "a.jsonl").unlink()
    refused = run_job(*base, "--dataset", data, "--output", tmp_path / "out")
    assert ": missing file a.jsonl; changed file b.jsonl (2 rows then, 1 now)" in refused.stderr


def test_a_run_of_an_older_version_keeps_the_files_that_it_began_with(
    tmp_path: Path, run_job: Any, base: list[Any]
) -> None:
    """They were those that ``datasets`` chose. What it leaves out is now named."""
    data = fill(tmp_path / "d", "alpha.jsonl", "chemistry_test_tubes.jsonl")
    older = opened(data, is_older=True)
    assert prompts_of(older) == ["chemistry_test_tubes.jsonl"] and older.split == "test"
    assert older.notes == ("not read: alpha.jsonl",)
    only = fill(tmp_path / "only", "chemistry_test_tubes.jsonl")
    assert run_job(*base, "--dataset", only, "--output", tmp_path / "out").exit_code == 0
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 3}))
    (tmp_path / "out" / "data" / "part-00000.parquet").rename(tmp_path / "out" / "part-00000.parquet")
    result = run_job(*base, "--dataset", data, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr


def test_the_digest_of_a_file_follows_its_ends_and_its_size(tmp_path: Path) -> None:
    def digests() -> Iterator[str]:
        whole = bytes(3 * SAMPLED_BYTES)
        for content in (whole, b"a" + whole[1:], whole[1:] + b"a", whole[1:], b"", b"a"):
            (tmp_path / "a").write_bytes(content)
            yield digest_of_ends(tmp_path / "a")

    assert len(set(digests())) == 6

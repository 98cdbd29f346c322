"""Datasets at addresses: s3://, https:// and whatever else ``fsspec`` reaches."""

import functools
import http.server
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import Unavailable, UsageError
from job.remote import patience, stores
from job.remote.stores import open_addresses
from tests.conftest import Result
from tests.s3 import S3


def lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts).encode()


def parquet(*prompts: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"prompt": prompts}), stream)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore, which waits
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECS", 0.001)
    return tmp_path / "cache"


def put(**files: bytes) -> None:
    """Write objects; ``__`` in a name is a slash, ``_`` a dot."""
    for name, content in files.items():
        put_at(name.replace("__", "/").replace("_", "."), content)


def put_at(key: str, content: bytes) -> None:
    fsspec.filesystem("s3").pipe_file(f"bucket/{key}", content)


class Web(http.server.SimpleHTTPRequestHandler):
    """A web server without ranges: what it says of a file is up to the test."""

    protocol_version = "HTTP/1.1"
    headers_of_files: Mapping[str, str]
    hidden: tuple[str, ...] = ()
    log: list[str]
    refused: Mapping[str, int]

    def do_GET(self) -> None:
        self.path, _, query = self.path.partition("?")
        self.log.append(f"{self.command} {self.path}?{query}")
        if self.path in self.refused:
            return self.send_error(self.refused[self.path])
        if self.headers.get("If-Match", etag := self.headers_of_files.get("ETag")) != etag:
            return self.send_error(412)
        super().do_GET()

    def do_HEAD(self) -> None:
        self.do_GET() if self.path.partition("?")[0] in self.refused else super().do_HEAD()

    def send_header(self, keyword: str, value: str) -> None:
        if keyword not in self.hidden:
            super().send_header(keyword, value)

    def end_headers(self) -> None:
        for name, value in self.headers_of_files.items():
            super().send_header(name, value)
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, type[Web]]]:
    """Return the address of a web server, its directory, and its class."""
    root = tmp_path / "web"
    root.mkdir()
    handler = type("OneWeb", (Web,), {"log": [], "headers_of_files": {}, "refused": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(root)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root, handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path) -> Any:
    """Return a function that runs a fake engine with the output in ``out``."""
    base = ["--model", tiny_model(), "--engine", "fake", "--no-chat", "--max-new-tokens", 4]

    def run(dataset: str, *args: Any, command: str = "run") -> Result:
        place = [] if command == "preview" else ["--output", tmp_path / "out"]
        return run_job(command, *base, "--dataset", dataset, *place, *args)

    return run


def prompts(output: Path) -> list[str]:
    return [text for path in sorted(output.rglob("part-*")) for text in pq.read_table(path)["prompt"].to_pylist()]


FORMS = {
    "s3://bucket/d": ["a", "b", "deep"],
    "s3://bucket/d/": ["a", "b", "deep"],
    "s3://bucket/d/*.jsonl": ["a", "b"],
    "s3://bucket/d/**/*.jsonl": ["a", "b", "deep"],
    "s3://bucket/d/b.jsonl": ["b"],
    "s3://bucket/test.jsonl": ["t"],
    "s3://bucket/splits": ["train"],
    "s3://bucket/p/x.parquet": ["p1", "p2"],
    "S3://bucket/d/b.jsonl": ["b"],
}


@pytest.mark.parametrize("address", FORMS)
def test_a_file_a_directory_and_a_glob(s3: S3, run: Any, tmp_path: Path, address: str) -> None:
    put(d__a_jsonl=lines("a"), d__b_jsonl=lines("b"), d__sub__c_jsonl=lines("deep"), test_jsonl=lines("t"))
    put(splits__train_jsonl=lines("train"), splits__test_jsonl=lines("test"), p__x_parquet=parquet("p1", "p2"))
    put_at("d/", b"")  # consoles make such an object for a folder
    result = run(address)
    assert result.exit_code == 0, result.stderr
    assert prompts(tmp_path / "out") == FORMS[address]
    assert "cache" not in result.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["about"]["dataset"] == address.replace(
        "S3:", "s3:"
    )


def test_other_options_choose_among_the_files(s3: S3, run: Any, tmp_path: Path) -> None:
    put(d__train_jsonl=lines("train"), d__test_jsonl=lines("test"), d__notes_log=b"one\ntwo\n")
    put(e__README_md=b"---\nconfigs:\n- config_name: x\n  data_files: 'b.jsonl'\n---\n", e__b_jsonl=lines("b"))
    for args, expected in (
        (["s3://bucket/d", "--split", "test"], ["test"]),
        (["s3://bucket/d", "--data-files", "t*.jsonl"], ["test", "train"]),
        (["s3://bucket/e"], ["b"]),
        (["json", "--data-files", "s3://bucket/d/train.jsonl,s3://bucket/e/*.jsonl"], ["train", "b"]),
        (["text", "--data-files", "s3://bucket/d/notes.log", "--prompt-column", "text"], ["one", "two"]),
    ):
        result = run(*args)
        assert result.exit_code == 0, result.stderr
        assert prompts(tmp_path / "out") == expected
        shutil.rmtree(tmp_path / "out")


REFUSALS = {
    ("s3://bucket/none.jsonl",): "--dataset s3://bucket/none.jsonl: there is no such file or directory.",
    ("s3://bucket/d/*.csv",): "--dataset s3://bucket/d/*.csv: there is no such file or directory.",
    ("s3://nobody/x.jsonl",): "there is no such file or directory (The specified bucket does not exist).",
    ("s3://bucket/mixed",): "--dataset s3://bucket/mixed holds files of several kinds: ",
    ("s3://bucket/d/a.jsonl", "--data-files", "x"): "--data-files is for directories and Hub datasets, but --dataset ",
    (
        "s3://bucket/d",
        "--dataset-revision",
        "v1",
    ): "--dataset-revision is for datasets of the Hub, which --dataset s3://",
    (
        "s3://bucket/d",
        "--data-files",
        "s3://bucket/d/a.jsonl",
    ): "--data-files s3://bucket/d/a.jsonl is an address. Give",
    ("json", "--data-files", "s3://bucket/d"): "",
    ("json", "--data-files", "a.jsonl", "--data-files", "s3://bucket/d"): "names files on this machine and elsewhere.",
    ("s3://bucket/d", "--output", "s3://bucket/d/"): "--output s3://bucket/d is the directory of the dataset.",
    ("gs://bucket/x.jsonl",): "gs:// needs the package gcsfs. Install it: pip install gcsfs.",
    ("nonsense://bucket/x.jsonl",): "--dataset nonsense://bucket/x.jsonl cannot be read: Protocol not known: nonsense.",
    ("file:///data/x.jsonl",): "file:///data/x.jsonl is the address of a local file. Write /data/x.jsonl.",
    ("zip://a.jsonl::s3://bucket/a.zip",): "an address inside another is not read. Unpack it first.",
    ("s3://bucket/d/a.jsonl", "--model", "s3://bucket/model"): "--model s3://bucket/model is an address, not a path. ",
}


@pytest.mark.parametrize("args", REFUSALS, ids=" ".join)
def test_what_cannot_be_read_is_refused_in_one_line(s3: S3, run: Any, args: tuple[str, ...]) -> None:
    put(d__a_jsonl=lines("a"), mixed__a_jsonl=lines("a"), mixed__b_csv=b"prompt\na\n")
    result = run(*args)
    assert result.exit_code == (2 if REFUSALS[args] else 0), result.stderr
    assert REFUSALS[args] in result.stderr and "Traceback" not in result.stderr


def test_without_credentials_the_refusal_says_how_to_read_public_data(
    s3: S3, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(a_jsonl=lines("a"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    result = run("s3://bucket/a.jsonl")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert result.exit_code == 2 and "set FSSPEC_S3_ANON=true" in result.stderr


def test_a_start_again_fetches_nothing_and_a_changed_file_is_named(s3: S3, run: Any, tmp_path: Path) -> None:
    put(d__a_jsonl=lines("a", "b"), d__b_jsonl=lines("c"))
    assert run("s3://bucket/d", "--rows-per-shard", 2).exit_code == 0
    next((tmp_path / "out").rglob("part-00001*")).unlink()
    s3.log.clear()
    assert run("s3://bucket/d", "--rows-per-shard", 2).exit_code == 0
    assert not [request for request in s3.log if request.startswith("GET d/")]
    assert prompts(tmp_path / "out") == ["a", "b", "c"]
    put(d__b_jsonl=lines("x"))
    result = run("s3://bucket/d", "--rows-per-shard", 2)
    assert result.exit_code == 2 and "changed file b.jsonl" in result.stderr


def test_trouble_of_the_store_is_waited_for(s3: S3, run: Any, tmp_path: Path) -> None:
    put(d__a_jsonl=lines("a"))
    s3.fail(lambda request: True, times=3)
    s3.fail(lambda request: request.startswith("GET d/a"), times=8)
    assert run("s3://bucket/d").exit_code == 0
    assert prompts(tmp_path / "out") == ["a"]
    s3.fail(lambda request: True)
    result = run("s3://bucket/d", "--hub-timeout", 0)
    assert result.exit_code == 1 and "The store s3://bucket does not answer: " in result.stderr


def test_a_file_that_changes_while_it_is_fetched_is_refused(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the old and of the new contents would make rows that nobody has written."""
    put(a_txt=b"old " * 10)
    monkeypatch.setattr(stores, "BLOCK_BYTES", 8)
    tree = open_addresses(["s3://bucket/a.txt"])
    put(a_txt=b"new " * 10)
    with pytest.raises(UsageError, match=r"s3://bucket/a\.txt has changed since it was listed\. Start again\."):
        tree.fetch(["a.txt"])
    tree = open_addresses(["s3://bucket/a.txt"])
    assert tree.fetch(["a.txt"])[0].read_bytes() == b"new " * 10
    with pytest.raises(UsageError, match="has changed"):
        put(a_txt=b"odd " * 10)
        tree.read("a.txt", 3, 9)


def test_large_files_come_in_blocks(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 5
    put(d__a_txt=content, d__b_txt=b"", c_txt=b"c")
    monkeypatch.setattr(stores, "BLOCK_BYTES", 100)
    tree = open_addresses(["s3://bucket/d"])
    assert [path.read_bytes() for path in tree.fetch(["a.txt", "b.txt"])] == [content, b""]
    assert len([request for request in s3.log if request == "GET d/a.txt"]) == 13
    assert tree.read("a.txt", 250, 260) == content[250:260] and tree.read("a.txt", 1279, 5000) == content[-1:]


def test_parquet_is_read_where_it_lies(
    s3: S3, run: Any, web: Any, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(p__a_parquet=parquet("a", "b"), p__b_parquet=parquet("c"))
    result = run("s3://bucket/p", "--streaming")
    assert result.exit_code == 0, result.stderr
    assert prompts(tmp_path / "out") == ["a", "b", "c"]
    assert not [*own_cache.rglob("*.parquet")]
    monkeypatch.setattr("job.data.formats.parquet_files.TAIL_BYTES", 100)
    url, root, _ = web
    (root / "a.parquet").write_bytes(parquet("a", "b"))
    result = run(f"{url}/a.parquet", "--streaming")
    assert result.exit_code == 2 and "this server does not send parts of files" in result.stderr


@pytest.mark.parametrize("headers", [{"ETag": '"v1"'}, {}, None], ids=["etag", "time", "neither"])
def test_a_web_server(run: Any, web: Any, tmp_path: Path, headers: dict[str, str] | None) -> None:
    """Without ranges, and with ETag, Last-Modified or neither of them: then the contents say what it is."""
    url, root, handler = web
    handler.headers_of_files = headers or {}
    handler.hidden = ("Last-Modified",) if headers is None else ()
    (root / "a b.jsonl").write_bytes(lines("a"))
    assert run(f"{url}/a%20b.jsonl?version=2").exit_code == 0
    assert run(f"{url}/a%20b.jsonl?version=2").exit_code == 0
    assert prompts(tmp_path / "out") == ["a"]
    handler.headers_of_files = {"ETag": '"v2"'} if headers else {}
    (root / "a b.jsonl").write_bytes(lines("other"))
    result = run(f"{url}/a%20b.jsonl?version=2")
    assert result.exit_code == 2 and "other contents than when the run started" in result.stderr


def test_the_index_of_a_web_server(run: Any, web: Any, tmp_path: Path) -> None:
    url, root, _ = web
    (root / "d").mkdir()
    for name in ("a", "b"):
        (root / "d" / f"{name}.jsonl").write_bytes(lines(name))
    for form in ("d/", "d/*.jsonl"):
        result = run(f"{url}/{form}")
        assert result.exit_code == 0, result.stderr
        assert prompts(tmp_path / "out") == ["a", "b"]


def test_a_file_of_a_web_server_that_changes_is_not_read_on(web: Any) -> None:
    url, root, handler = web
    (root / "a.txt").write_bytes(b"old ")
    handler.headers_of_files = {"ETag": '"v1"'}
    tree = open_addresses([f"{url}/a.txt"])
    assert tree.read("a.txt", 0, 4) == b"old "
    (root / "a.txt").write_bytes(b"new ")
    handler.headers_of_files = {"ETag": '"v2"'}
    with pytest.raises(UsageError, match=r"a\.txt has changed since it was listed"):
        tree.read("a.txt", 0, 4)


def test_what_a_web_server_refuses(run: Any, web: Any) -> None:
    url, _, handler = web
    handler.refused = {"/secret.jsonl": 403, "/odd.jsonl": 418, "/busy.jsonl": 503}
    missing, secret, odd = (run(f"{url}/{name}.jsonl") for name in ("missing", "secret", "odd"))
    assert missing.exit_code == 2 and "missing.jsonl: there is no such file or directory." in missing.stderr
    assert secret.exit_code == 2 and "secret.jsonl: access is denied" in secret.stderr
    assert odd.exit_code == 2 and "odd.jsonl cannot be read: the server answered 418." in odd.stderr
    busy = run(f"{url}/busy.jsonl", "--hub-timeout", 0)
    assert busy.exit_code == 1 and "does not answer: 503" in busy.stderr


def test_secrets_in_an_address_are_used_and_never_shown(run: Any, web: Any, tmp_path: Path) -> None:
    url, root, handler = web
    (root / "a.jsonl").write_bytes(lines("a"))
    address = url.replace("://", "://me:PASSWORD@") + "/a.jsonl?X-Amz-Signature=SIGNATURE&x=1"
    results = [run(address), run(address.replace("SIGNATURE", "ANOTHER")), run(address.replace("a.jsonl", "b.jsonl"))]
    assert [result.exit_code for result in results] == [0, 0, 2]
    assert any("SIGNATURE" in request for request in handler.log)
    shown = [text for result in results for text in (result.stdout, result.stderr)]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "web" not in path.parts]
    assert len(files) > 3
    for text in [*shown, *map(str, files), *(path.read_bytes().decode(errors="replace") for path in files)]:
        assert not [word for word in ("PASSWORD", "SIGNATURE", "ANOTHER") if word in text]


def test_any_protocol_of_fsspec(run: Any, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/d/a.jsonl", lines("a"))
    memory.pipe_file("/d/b.jsonl", lines("b"))
    try:
        result = run("memory://d")
        assert result.exit_code == 0, result.stderr
        assert prompts(tmp_path / "out") == ["a", "b"]
    finally:
        memory.rm("/d", recursive=True)


def test_a_store_that_is_not_there() -> None:
    patience.set_patience(0)
    with pytest.raises(Unavailable, match=r"The server 127\.0\.0\.1:9 does not answer"):
        open_addresses(["http://127.0.0.1:9/a.jsonl"])


def test_unfinished_runs_in_a_store_are_refused(s3: S3, run: Any, tmp_path: Path) -> None:
    """A run directory is a dataset, wherever it is."""
    put(questions_jsonl=lines("a", "b"))
    assert run("s3://bucket/questions.jsonl", "--rows-per-shard", 1).exit_code == 0
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            put_at(f"run/{path.relative_to(tmp_path / 'out')}", path.read_bytes())
    result = run("s3://bucket/run", "--prompt-column", "completion", command="preview")
    assert result.exit_code == 0, result.stderr
    part = next(key for key in s3.keys if "part-00000" in key)
    fsspec.filesystem("s3").rm(f"bucket/{part}")
    result = run("s3://bucket/run", "--prompt-column", "completion", command="preview")
    assert result.exit_code == 2 and "--dataset s3://bucket/run is an unfinished run: 1 of 2 rows" in result.stderr

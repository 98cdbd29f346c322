"""A Hugging Face Hub on loopback, for tests: the part of its HTTP API that transformers, datasets, huggingface_hub and
HfFileSystem use to read repositories, and the part that uploads without Xet use. Standard library only.

    hub = Hub()
    hub.start()                                   # http://127.0.0.1:<port>; give it to clients as HF_ENDPOINT
    repo = hub.create("dataset", "org/questions")
    sha = repo.commit({"data.jsonl": b'{"prompt": "a"}\\n'})
    hub.fault(match="GET .*data.jsonl", status=503, times=3)
    ...
    hub.requests("GET .*data.jsonl")              # what was asked for, what was sent
    hub.stop()

What is as on huggingface.co (2026): commits are immutable and refs move; large files are a 302 to another host that
must not see the token, small ones a 307 to a path that holds the commit; X-Repo-Commit, ETag, X-Linked-Size and
X-Linked-ETag; 401 for what is private or missing, 401 and 403 for what is gated, each with its X-Error-Code.
What is not: no Xet (clients must upload with HF_HUB_DISABLE_XET=1), no dataset viewer, no search.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".arrow", ".gguf", ".onnx", ".gz", ".zst", ".zip", ".pt", ".pth", ".h5")
"""Endings that .gitattributes of a new repository on the Hub sends to large file storage."""

SHA = re.compile("[0-9a-f]{40}")
BLOCK = 64 << 10
PAGE = 1000
"""Entries of a page of the tree."""


class Reply(Exception):
    """An answer, raised from wherever it becomes clear."""

    def __init__(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        """Take bytes as they are and everything else as JSON."""
        self.status, self.headers = status, dict(headers or {})
        self.body = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()


def failure(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """Return an error as the Hub words it: for programs in headers, for people in JSON."""
    marks = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Reply(status, {"error": message}, marks | headers)


class File:
    """A file of a commit, in memory or on disk. Its hashes are computed when somebody asks for them."""

    def __init__(self, source: bytes | Path, *, large: bool) -> None:
        """Take bytes, or the path of a file that will not change."""
        self.source, self.large = source, large
        self.size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self._hashes: tuple[str, str] | None = None
        self._lock = threading.Lock()

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``stop``."""
        stop = self.size if stop is None else stop
        if isinstance(self.source, bytes):
            for at in range(start, stop, BLOCK):
                yield self.source[at : min(at + BLOCK, stop)]
            return
        with self.source.open("rb") as stream:
            stream.seek(start)
            while start < stop and (block := stream.read(min(BLOCK, stop - start))):
                start += len(block)
                yield block

    def _hash(self) -> tuple[str, str]:
        with self._lock:
            if self._hashes is None:
                sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {self.size}\0".encode())
                for block in self.blocks():
                    sha256.update(block)
                    git.update(block)
                self._hashes = sha256.hexdigest(), git.hexdigest()
            return self._hashes

    @property
    def sha256(self) -> str:
        """What large file storage calls it."""
        return self._hash()[0]

    @property
    def oid(self) -> str:
        """What git calls it: of a large file, its pointer."""
        if not self.large:
            return self._hash()[1]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()


class Repo:
    """A repository: commits that never change, and names that point to them."""

    def __init__(self, kind: str, repo_id: str, *, private: bool, gated: bool, readers: frozenset[str]) -> None:
        """Make an empty one. ``readers`` are the users who may read it if it is private or gated."""
        self.kind, self.id, self.private, self.gated, self.readers = kind, repo_id, private, gated, readers
        self.commits: dict[str, dict[str, File]] = {}
        self.history: dict[str, tuple[str | None, str]] = {}
        """Commits with their parents and titles."""
        self.discussions: list[dict[str, Any]] = []
        """As ``get_repo_discussions`` shows them; a pull request's commits are those of the ref ``refs/pr/<num>``."""
        self.refs: dict[str, str] = {}
        self.commit({".gitattributes": b"*.parquet filter=lfs\n"}, title="initial commit")

    def commit(self, files: Mapping[str, bytes | Path | File | None], *, ref: str = "main", title: str = "c") -> str:
        """Add, replace or (None) delete files, and move the branch. Returns the commit."""
        parent = self.refs.get(ref, self.refs.get("main"))
        tree = dict(self.commits[parent]) if parent else {}
        for path, source in files.items():
            if source is None:
                del tree[path]
            else:
                tree[path] = source if isinstance(source, File) else File(source, large=path.endswith(LARGE))
        sha = hashlib.sha1(f"{self.kind}{self.id}{len(self.history)}{title}{sorted(tree)}".encode()).hexdigest()
        self.commits[sha] = tree
        self.history[sha] = parent, title
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """Return the commit that a branch, a tag or a commit means."""
        sha = self.refs.get(revision, revision if revision in self.commits else None)
        if sha is None:
            raise failure(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


@dataclass
class Fault:
    """What goes wrong with requests that match. Bodies are cut or slowed, or another answer takes their place."""

    match: str
    """Regular expression, searched in "METHOD /path"."""
    status: int | None = None
    """Answer with this instead."""
    headers: dict[str, str] = field(default_factory=dict)
    reset_after: int | None = None
    """Send so many bytes of the body, then reset the connection. -1: before the answer."""
    stall_secs: float = 0.0
    """Wait so long before answering."""
    bytes_per_sec: float | None = None
    skip: int = 0
    """Leave so many matching requests alone first."""
    times: int | None = None
    """Strike so often. None: always."""
    secs: float | None = None
    """Strike for so long after the first strike. None: always."""
    struck_at: float | None = None


@dataclass
class Request:
    """A line of the log."""

    time: float
    method: str
    path: str
    user: str | None
    """Who the token says it is; ``?`` for an unknown token."""
    host: str
    agent: str
    range: str | None
    status: int = 0
    sent: int = 0
    """Bytes of the body."""
    secs: float = 0.0


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    request_queue_size = 128
    block_on_close = False

    def shutdown_request(self, request: Any) -> None:
        """Close only: a shutdown would end a connection in order that is to be reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be quiet about connections that are gone."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Hub:
    """Repositories, tokens, faults and a log behind an HTTP server in threads."""

    def __init__(self, *, port: int = 0, tokens: Mapping[str, str] | None = None) -> None:
        """Know some users' tokens: {token: name}."""
        self.port, self.tokens = port, dict(tokens or {})
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, File] = {}
        """Large files by their hash: what the CDN has."""
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.RLock()
        self.alive: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen: on the same port again after ``stop``."""
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and reset those that there are."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.alive):
            reset(connection)

    def outage(self, secs: float) -> None:
        """Be gone for a while."""
        self.stop()
        threading.Timer(secs, self.start).start()

    def create(
        self, kind: str, repo_id: str, *, private: bool = False, gated: bool = False, readers: tuple[str, ...] = ()
    ) -> Repo:
        """Make a repository; ``kind`` is model or dataset."""
        repo = Repo(kind, repo_id, private=private, gated=gated, readers=frozenset(readers))
        self.repos[kind, repo_id] = repo
        return repo

    def fault(self, **values: Any) -> Fault:
        """Let something go wrong from now on; see ``Fault``."""
        fault = Fault(**values)
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """End all faults."""
        with self.lock:
            self.faults.clear()

    def requests(self, match: str = "") -> list[Request]:
        """Return the logged requests whose "METHOD /path" matches."""
        with self.lock:
            return [item for item in self.log if re.search(match, f"{item.method} {item.path}")]

    def striking(self, request: str) -> Fault | None:
        """Return the fault that a request meets, if it meets one."""
        with self.lock:
            for fault in self.faults:
                if not re.search(fault.match, request):
                    continue
                now = time.monotonic()
                if fault.struck_at is not None and fault.secs is not None and now - fault.struck_at > fault.secs:
                    continue
                if fault.times == 0:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.struck_at = fault.struck_at or now
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees a reset, not an end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it, which then closes it
        connection.close()


REPO = r"(?P<kind>model|dataset)s/(?P<repo>[^/]+(?:/[^/]+)?)"
ROUTES = [
    (re.compile(pattern), name)
    for pattern, name in {
        r"/cdn/(?P<sha256>[0-9a-f]{64})": "cdn",
        r"/api/whoami-v2": "whoami",
        r"/api/validate-yaml": "validate_yaml",
        r"/api/repos/create": "create_repo",
        rf"/api/{REPO}/revision/(?P<revision>[^/]+)": "info",
        rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?": "tree",
        rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)": "paths_info",
        rf"/api/{REPO}/refs": "refs",
        rf"/api/{REPO}/commits/(?P<revision>[^/]+)": "commits",
        rf"/api/{REPO}/discussions": "discussions",
        rf"/api/{REPO}/preupload/(?P<revision>[^/]+)": "preupload",
        rf"/api/{REPO}/commit/(?P<revision>[^/]+)": "commit",
        rf"/api/{REPO}": "info",
        rf"/api/resolve-cache/{REPO}/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)": "resolve_cache",
        r"/(?P<prefix>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)\.git/info/lfs/objects/batch": "lfs_batch",
        r"/lfs/(?P<sha256>[0-9a-f]{64})": "lfs_put",
        r"/(?P<prefix>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
    }.items()
]


class Handler(BaseHTTPRequestHandler):
    """One connection. Each method whose name is in ROUTES raises a Reply, or sends a file."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 120

    def setup(self) -> None:
        """Remember the connection, so that an outage can cut it."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.hub.alive.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.hub.alive.discard(self.connection)
        with contextlib.suppress(OSError, ValueError):  # an outage has cut it
            super().finish()

    def log_message(self, *args: Any) -> None:
        """Keep quiet: the log is ``Hub.log``."""

    def do_GET(self) -> None:
        """Answer any method."""
        started = time.time()
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.user = None if token is None else self.hub.tokens.get(token, "?")
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._read_chunked()
        self.record = Request(
            time=started,
            method=self.command,
            path=self.path,
            user=self.user,
            host=self.headers.get("Host", ""),
            agent=self.headers.get("User-Agent", "")[:40],
            range=self.headers.get("Range"),
        )
        with self.hub.lock:
            self.hub.log.append(self.record)
        self.fault = self.hub.striking(f"{self.command} {self.path}")
        try:
            self._answer(url.path)
        except (BrokenPipeError, ConnectionResetError, TimeoutError, ValueError) as error:
            self.close_connection = True
            if isinstance(error, ValueError) and "closed file" not in str(error):
                raise
        self.record.secs = time.time() - started

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _read_chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, path: str) -> None:
        fault = self.fault
        try:
            if fault is not None:
                time.sleep(fault.stall_secs)
                if fault.reset_after == -1:
                    raise ConnectionResetError
                if fault.status is not None:
                    raise Reply(fault.status, {"error": "injected"}, fault.headers)
            if self.user == "?":
                raise failure(401, "Invalid credentials in Authorization header")
            for pattern, name in ROUTES:
                if match := pattern.fullmatch(path):
                    values = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    getattr(self, f"on_{name}")(**values)
                    return
            raise failure(404, f"Sorry, we can't find the page you are looking for: {path}")
        except Reply as reply:
            self._send(reply.status, reply.headers, len(reply.body), [reply.body])
        except ConnectionResetError:
            reset(self.connection)
            raise

    def _send(self, status: int, headers: Mapping[str, str], length: int, blocks: Any) -> None:
        self.record.status = status
        self.send_response(status)
        given = {name.lower() for name in headers}
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        if "content-length" not in given:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.fault.reset_after if self.fault is not None else None
        for block in blocks:
            if limit is not None and self.record.sent + len(block) > limit:
                self.wfile.write(block[: max(0, limit - self.record.sent)])
                self.wfile.flush()
                time.sleep(0.05)
                raise ConnectionResetError
            self.wfile.write(block)
            self.record.sent += len(block)
            if self.fault is not None and self.fault.bytes_per_sec:
                time.sleep(len(block) / self.fault.bytes_per_sec)

    # Reading

    def _repo(self, kind: str, repo: str, *, files: bool = False) -> Repo:
        """Return a repository if this user may see it (its ``files``, if they are asked for)."""
        found = self.hub.repos.get((kind, repo))
        is_reader = found is not None and self.user is not None and self.user in found.readers
        if found is None or (found.private and not is_reader):
            # On huggingface.co the 401 has no code, and clients know it by the address, but only behind https.
            status, message = (401, "Invalid username or password.") if self.user is None else (404, "Not found")
            raise failure(status, f"{message} ({kind} {repo})", "RepoNotFound")
        if files and found.gated and not is_reader:
            message = f"Access to {kind} {repo} is restricted."
            if self.user is None:
                raise failure(401, f"{message} You must have access to it and be authenticated.", "GatedRepo")
            raise failure(403, f"{message} You are not in the authorized list.", "GatedRepo")
        return found

    def on_info(self, kind: str, repo: str, revision: str = "main") -> None:
        """``repo_info``."""
        found = self._repo(kind, repo)
        sha = found.resolve(revision)
        raise Reply(
            200,
            {
                "_id": sha[:24],
                "id": found.id,
                "author": found.id.split("/")[0],
                "sha": sha,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "private": found.private,
                "gated": "auto" if found.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": name} for name in sorted(found.commits[sha])],
            }
            | ({"modelId": found.id} if kind == "model" else {}),
        )

    def on_tree(self, kind: str, repo: str, revision: str, path: str | None) -> None:
        """``list_repo_tree``, page by page."""
        found = self._repo(kind, repo)
        sha, path = found.resolve(revision), (path or "").strip("/")
        entries = list(_tree(found.commits[sha], path, recursive=self.query.get("recursive", "").lower() == "true"))
        if path and not entries:
            raise failure(404, f"{path} does not exist on {revision!r}", "EntryNotFound", **{"X-Repo-Commit": sha})
        first, limit = int(self.query.get("cursor", 0)), min(int(self.query.get("limit", PAGE)), PAGE)
        headers = {"X-Repo-Commit": sha}
        if first + limit < len(entries):
            query = "&".join(f"{k}={quote(v)}" for k, v in (self.query | {"cursor": str(first + limit)}).items())
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        raise Reply(200, entries[first : first + limit], headers)

    def on_paths_info(self, kind: str, repo: str, revision: str) -> None:
        """``get_paths_info``."""
        found = self._repo(kind, repo)
        tree = found.commits[found.resolve(revision)]
        wanted = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        everything = {entry["path"]: entry for entry in _tree(tree, "", recursive=True)}
        raise Reply(200, [everything[path] for path in wanted if path in everything])

    def on_refs(self, kind: str, repo: str) -> None:
        """``list_repo_refs``."""
        refs = self._repo(kind, repo).refs.items()
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in refs]
        raise Reply(200, {"branches": branches, "tags": [], "converts": []})

    def on_commits(self, kind: str, repo: str, revision: str) -> None:
        """``list_repo_commits``, the newest first."""
        found = self._repo(kind, repo)
        sha: str | None = found.resolve(revision)
        items = []
        while sha is not None:
            parent, title = found.history[sha]
            items.append({"id": sha, "title": title, "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []})
            sha = parent
        raise Reply(200, items)

    def on_discussions(self, kind: str, repo: str) -> None:
        """``get_repo_discussions``."""
        items = self._repo(kind, repo).discussions
        raise Reply(200, {"discussions": items, "count": len(items), "start": 0})

    def on_resolve(self, prefix: str | None, repo: str, revision: str, path: str) -> None:
        """Send to where a file lies: a large one on another host, a small one under the name of its commit."""
        kind = "dataset" if prefix else "model"
        found = self._repo(kind, repo, files=True)
        sha = found.resolve(revision)
        file = found.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha}
        if file is None:
            raise failure(404, "Entry not found", "EntryNotFound", **headers)
        if not file.large:
            where = f"/api/resolve-cache/{kind}s/{repo}/{sha}/{quote(path)}"
            raise Reply(307, None, headers | {"Location": where, "ETag": f'"{file.oid}"'})
        self.hub.blobs[file.sha256] = file
        # Another name of this machine is another host: clients must not send their token there.
        where = f"http://localhost:{self.hub.port}/cdn/{file.sha256}?Expires=1&Signature=SIGNED-{sha[:8]}"
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
        raise Reply(302, None, headers | linked | {"Location": where, "ETag": f'"{file.oid}"'})

    def on_resolve_cache(self, kind: str, repo: str, revision: str, path: str) -> None:
        """Send a small file."""
        file = self._repo(kind, repo, files=True).commits[revision][path]
        self._send_file(file, {"X-Repo-Commit": revision, "ETag": f'"{file.oid}"'})

    def on_cdn(self, sha256: str) -> None:
        """Send a large file."""
        self._send_file(self.hub.blobs[sha256], {"ETag": f'"{sha256}"'})

    def _send_file(self, file: File, headers: Mapping[str, str]) -> None:
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", (self.headers.get("Range") or "").replace(" ", ""))
        if wanted is None:
            self._send(200, headers, file.size, file.blocks())
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, file.size - int(last))
        stop = min(int(last) + 1, file.size) if first and last else file.size
        if start >= file.size:
            raise failure(416, "Range not satisfiable", None, **{"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        self._send(206, headers, stop - start, file.blocks(start, stop))

    # Uploading

    def _writer(self, repo_id: str | None = None) -> str:
        """Return the user, who may write to a repository of his own or one that he is a reader of."""
        if self.user is None:
            raise failure(401, "Invalid username or password.")
        if repo_id is not None and repo_id.split("/")[0] != self.user:
            readers = {name for found in self.hub.repos.values() if found.id == repo_id for name in found.readers}
            if self.user not in readers:
                raise failure(403, "You don't have the required permissions to perform this action.")
        return self.user

    def on_whoami(self) -> None:
        """``whoami``."""
        name = self._writer()
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        raise Reply(200, {"type": "user", "name": name, "fullname": name, "orgs": [], "auth": access})

    def on_create_repo(self) -> None:
        """``create_repo``."""
        name, order = self._writer(), json.loads(self.body)
        kind, repo_id = order.get("type", "model"), f"{order.get('organization') or name}/{order['name']}"
        self._writer(repo_id)
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            raise Reply(409, {"error": f"You already created this {kind} repo: {repo_id}", "url": url})
        private = order.get("visibility") == "private" or bool(order.get("private"))
        self.hub.create(kind, repo_id, private=private, readers=(name,))
        raise Reply(200, {"url": url, "id": repo_id})

    def on_validate_yaml(self) -> None:
        """Check a card, by a few of the Hub's rules."""
        import yaml  # only here: PyYAML is there wherever huggingface_hub is

        content = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        if block is None:
            raise Reply(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        errors = []
        try:
            card = yaml.safe_load(block[1])
            for config in card.get("configs", []):
                if not isinstance(config.get("config_name"), str):
                    errors.append('"configs[0].config_name" must be a string')
            for name in ("size_categories", "task_categories", "tags", "language"):
                values = card.get(name, [])
                if not all(isinstance(value, str) for value in ([values] if isinstance(values, str) else values)):
                    errors.append(f'"{name}" must hold strings')
        except (yaml.YAMLError, AttributeError) as error:
            errors.append(str(error))
        messages = [{"message": message} for message in errors]
        raise Reply(400 if errors else 200, {"errors": messages, "warnings": []})

    def on_preupload(self, kind: str, repo: str, revision: str) -> None:
        """Say which files of a commit are large."""
        self._writer(repo)
        found = self._repo(kind, repo)
        tree = found.commits[found.resolve(revision)]
        files = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(LARGE) else "regular",
                "shouldIgnore": item["path"] in _lines(tree.get(".gitignore")),
                "oid": tree[item["path"]].oid if item["path"] in tree else None,
            }
            for item in json.loads(self.body)["files"]
        ]
        raise Reply(200, {"files": files})

    def on_lfs_batch(self, prefix: str | None, repo: str) -> None:
        """Say where to put large files; those that are there need not be sent."""
        self._writer()
        self._repo("dataset" if prefix else "model", repo)
        objects = [
            {"oid": item["oid"], "size": item["size"]}
            | (
                {}
                if item["oid"] in self.hub.blobs
                else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}?Signature=SIGNED"}}}
            )
            for item in json.loads(self.body)["objects"]
        ]
        raise Reply(200, {"transfer": "basic", "objects": objects})

    def on_lfs_put(self, sha256: str) -> None:
        """Take a large file."""
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise failure(400, "the content is not what its name says")
        self.hub.blobs[sha256] = File(self.body, large=True)
        raise Reply(200)

    def on_commit(self, kind: str, repo: str, revision: str) -> None:
        """Make a commit of lines of JSON; refuse it if the branch is not where its author has seen it."""
        self._writer(repo)
        found = self._repo(kind, repo)
        header: dict[str, Any] = {}
        files: dict[str, File | bytes | None] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    files[value["path"]] = None
                case "deletedFolder":
                    tree = found.commits[found.resolve(revision)]
                    files |= {path: None for path in tree if path.startswith(value["path"].rstrip("/") + "/")}
        with self.hub.lock:
            if header.get("parentCommit") not in (None, found.resolve(revision)):
                raise failure(412, "A commit has happened since. Please refresh and try again.")
            sha = found.commit(files, ref=revision, title=header.get("summary", ""))
        prefix = "datasets/" if kind == "dataset" else ""
        url = f"{self.hub.url}/{prefix}{repo}/commit/{sha}"
        raise Reply(200, {"success": True, "commitOid": sha, "commitUrl": url})


def _lines(file: File | None) -> list[str]:
    return [] if file is None else b"".join(file.blocks()).decode().split()


def _tree(files: Mapping[str, File], folder: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    """Yield what the Hub says of the entries of a folder."""
    prefix, folders = f"{folder}/" if folder else "", set()
    for path, file in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            inner = prefix + "/".join(parts[:depth])
            if inner not in folders:
                folders.add(inner)
                oid = hashlib.sha1(inner.encode()).hexdigest()
                yield {"type": "directory", "oid": oid, "size": 0, "path": inner}
        if recursive or len(parts) == 1:
            entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
            if file.large:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
            yield entry

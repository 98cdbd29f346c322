"""Files at addresses such as ``s3://bucket/folder``, through ``fsspec``: listed once, and fetched into the cache.

A listing pins the files: the store's checksum or time of each is its digest. What was fetched is compared with a new
listing, and refused if it has changed meanwhile. Credentials are for the store's own package to find.
"""

import hashlib
import itertools
import os
import posixpath
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from job.errors import UsageError, call_place
from job.launch.activity import doing
from job.remote.cache import kept_directory, writable_root
from job.remote.once import made_once, say
from job.remote.place import NO_STATE, NoRangesError, Place, State
from job.remote.store_listing import list_place
from job.remote.tree import NUM_THREADS, RemoteFile, Tree

BLOCK_BYTES = 32 << 20
"""Larger files are fetched in blocks of this size, several at a time."""

KIND = "stores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a file comes from."""

    place: Place
    location: str
    """What ``fsspec`` calls it."""
    in_listing: str
    """What the listing of the place calls it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreFiles:
    """The files that addresses mean, as they were when these were listed. See ``RemoteTree``."""

    name: str
    """The address of the folder that they are in, without secrets."""
    meant: str
    """What is meant there: a glob, or empty for all."""
    files: Tree
    sources: Mapping[str, Source]
    commit: str | None = None
    is_listed: bool = True

    def fetch(self, paths: Sequence[str]) -> list[Path]:
        """Return local paths of files, after fetching those that are not in the cache, several at a time.

        Raises:
            UsageError: a file cannot be read, or has changed since it was listed.
            Unavailable: the store does not answer.
        """
        missing = [path for path in dict.fromkeys(paths) if _kept(self._key(path)) is None]
        if missing:
            transfer = _Transfer(self.name, [self.files[path].num_bytes for path in missing])
            with ThreadPoolExecutor(NUM_THREADS) as blocks, ThreadPoolExecutor(NUM_THREADS) as pool:
                list(pool.map(lambda path: self._fetch(path, blocks, transfer), missing))
            self._check_unchanged(missing)
        found = [self.path(path) for path in paths]
        for path, local in zip(paths, found, strict=True):
            call_place(local.parent, posixpath.dirname(f"{self.name}/{path}"))
        return found

    def path(self, path: str) -> Path:
        """Return where a file lies once it is fetched."""
        folder = _kept(self._key(path))
        assert folder is not None, path
        return folder / posixpath.basename(path)

    def has(self, path: str) -> bool:
        """Whether a file has been fetched."""
        return _kept(self._key(path)) is not None

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a part of a file, or fewer at its end.

        Raises:
            UsageError: the file cannot be read, or has changed since it was listed.
            Unavailable: the store does not answer.
        """
        file, source = self.files[path], self.sources[path]
        stop = min(stop, file.num_bytes)
        if start >= stop:
            return b""
        return source.place.read(source.location, (file.num_bytes, file.digest), start, stop)

    def url(self, path: str) -> str:
        """Return an address of a file that ``fsspec`` opens."""
        return self.sources[path].place.url(self.sources[path].location)

    def _key(self, path: str) -> str:
        return _key(self.url(path), self.files[path])

    def _fetch(self, path: str, blocks: ThreadPoolExecutor, transfer: "_Transfer") -> None:
        size, source = self.files[path].num_bytes, self.sources[path]

        def make(directory: Path) -> None:
            target = directory / posixpath.basename(path)
            with target.open("wb") as file:
                file.truncate(size)

                def copy(start: int) -> None:
                    content = self.read(path, start, start + BLOCK_BYTES)
                    os.pwrite(file.fileno(), content, start)
                    transfer.got(len(content))

                try:
                    _complete([blocks.submit(copy, start) for start in range(0, size, BLOCK_BYTES)])
                except NoRangesError:
                    source.place.copy(source.location, target)
            if (found := target.stat().st_size) != size:
                raise UsageError(f"{self.name}/{path} has {found:,} bytes, but {size:,} were listed. Start again.")

        _keep(self._key(path), f"{self.name}/{path}", make)

    def _check_unchanged(self, paths: Sequence[str]) -> None:
        places = dict.fromkeys(self.sources[path].place for path in paths)
        now = {place: list_place(place).states for place in places}
        for path in paths:
            was, source = self.files[path], self.sources[path]
            if now[source.place].get(source.in_listing) not in ((was.num_bytes, was.digest), NO_STATE):
                shutil.rmtree(self.path(path).parent, ignore_errors=True)
                raise UsageError(f"{self.name}/{path} has changed while it was fetched. Start again.")


def open_addresses(addresses: Sequence[str], option: str = "dataset") -> StoreFiles:
    """List the files that addresses mean: all in a folder, those that a glob matches, or one.

    Args:
        addresses: one, or several of files.

    Raises:
        UsageError: there are none, one cannot be read, or the package for it is not installed.
        Unavailable: the store does not answer.
    """
    all_listed = [list_place(Place(address, option)) for address in addresses]
    for listed in all_listed:
        problem = "" if listed.locations else "there is no such file or directory"
        if len(all_listed) > 1 and not listed.meant:
            problem = "this is a directory. Name files, or a glob"
        if problem:
            raise UsageError(f"--{option} {listed.place.shown}: {problem}.")
    name = _common([listed.name for listed in all_listed])
    sources = {
        f"{listed.name}/{path}"[len(name) + 1 :]: Source(place=listed.place, location=location, in_listing=path)
        for listed in all_listed
        for path, location in sorted(listed.locations.items())
    }
    states = {listed.place: listed.states for listed in all_listed}
    files = {path: _file(path, source, states[source.place][source.in_listing]) for path, source in sources.items()}
    return StoreFiles(name=name, meant=all_listed[0].meant, files=files, sources=sources)


def _common(folders: Sequence[str]) -> str:
    """Return the folder that others are in.

    >>> _common(["s3://a/b"]), _common(["s3://a/b/c", "s3://a/bb"]), _common(["s3://a", "s3://b"])
    ('s3://a/b', 's3://a', 's3:/')
    """
    parts = zip(*(folder.split("/") for folder in folders), strict=False)
    return "/".join(of_all[0] for of_all in itertools.takewhile(lambda of_all: len(set(of_all)) == 1, parts))


def _file(path: str, source: Source, state: State) -> RemoteFile:
    """Return a file with what identifies it. If the server says too little, it is fetched, and its contents do."""
    if state != NO_STATE:
        return RemoteFile(path=path, num_bytes=state[0], digest=state[1])
    folder = Path(tempfile.mkdtemp(dir=writable_root(KIND, say), suffix=".tmp"))
    draft = folder / "draft"
    try:
        source.place.copy(source.location, draft)
        with draft.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        file = RemoteFile(path=path, num_bytes=draft.stat().st_size, digest=f"sha256:{digest}")

        def make(directory: Path) -> None:
            draft.rename(directory / posixpath.basename(path))

        key = _key(source.place.url(source.location), file)
        if _kept(key) is None:
            _keep(key, path, make)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return file


def _complete(futures: Sequence["Future[None]"]) -> None:
    """Wait for all, and raise the first error: the file must stay open until the last of them has written to it."""
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def _keep(key: str, what: str, make: Callable[[Path], None]) -> None:
    root = writable_root(KIND, say) / key[:2]  # in few folders are few to look at
    root.mkdir(exist_ok=True)
    made_once(root / key, what, "fetch", make)


def _kept(key: str) -> Path | None:
    """Return the folder of a fetched file in the cache, and mark it as used."""
    return kept_directory(f"{KIND}/{key[:2]}", key)


def _key(url: str, file: RemoteFile) -> str:
    """Return what the cache calls a file at a state. A signature in its address does not matter, nor a password."""
    plain = re.sub("://([^/@:]*):[^/@]*@", r"://\1@", url.partition("?")[0])
    facts = "\0".join((plain, str(file.num_bytes), file.digest))
    return hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:32]


class _Transfer:
    """How much of some files has been fetched."""

    def __init__(self, name: str, sizes: Sequence[int]) -> None:
        """Start with nothing."""
        self._name, self._num_files, self._total, self._num_bytes = name, len(sizes), sum(sizes), 0
        self._lock = threading.Lock()

    def got(self, num_bytes: int) -> None:
        """Count more bytes."""
        with self._lock:
            self._num_bytes += num_bytes
            files = f" of {self._num_files:,} files" if self._num_files > 1 else ""
            share = f"{self._num_bytes / 1e6:,.0f} of {self._total / 1e6:,.0f} MB"
        doing(f"fetching {self._name}", share + files)

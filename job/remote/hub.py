"""Repositories of the Hugging Face Hub at one commit: resolved once, listed once, and fetched into the Hub's cache.

Files are read from the snapshot directory of the commit. A listing is kept in the cache, so that it is known offline
which files the commit has, whichever of them were fetched. ``huggingface_hub`` does the requests, the locks and the
cache; what it does when the Hub does not answer, which is to take the latest cached version, is not used.
"""

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from job.errors import JobError, UsageError, call_place
from job.launch.activity import answers, doing
from job.remote.cache import write_whole
from job.remote.hub_cache import file_of_client, files_of_snapshot, folder_of, in_order
from job.remote.patience import patiently
from job.remote.ranges import HubRanges
from job.remote.refusals import local_kind, not_cached, why_not
from job.remote.tree import NUM_THREADS, RemoteFile, Tree

COMMIT = re.compile("[0-9a-f]{40}")

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class HubRepository:
    """A repository at one commit."""

    kind: str
    """``model`` or ``dataset``."""
    name: str
    """``org/name``."""
    commit: str
    meant: str = ""
    """See ``RemoteTree``: options say what is meant in a repository."""

    @cached_property
    def files(self) -> Tree:
        """The files of the commit.

        Raises:
            UsageError: the repository cannot be read; or offline, and nothing of the commit is in the cache.
            Unavailable: the Hub does not answer.
        """
        kept = self._kept_listing()
        if kept is not None:
            return kept
        if is_offline():
            raise UsageError(not_cached(self.kind, self.name, self.commit))
        tree = self._asked(lambda: list_files(self.kind, self.name, self.commit))
        self._keep_listing(tree)
        return tree

    @property
    def is_listed(self) -> bool:
        """Whether ``files`` is the listing of the Hub. Offline, it may be what the snapshot has."""
        return self._listing.is_file() or self._listing_of_client.is_file() or not is_offline()

    def fetch(self, paths: Sequence[str]) -> list[Path]:
        """Return local paths of files, after fetching those that are not in the cache, several at a time.

        Raises:
            UsageError: the repository cannot be read; or offline, and one of them is not in the cache.
            Unavailable: the Hub does not answer.
        """
        done, lock, tree = [0], threading.Lock(), self.files
        what = f"fetching files of {self.name}"
        call_place(self.snapshot, self.name)
        doing(what)

        def fetch_one(path: str) -> Path:
            local = self.path(path)
            if not _is_whole(local, tree.get(path)):
                bar = _bar_class(f"the Hub ({self.name})")
                local = self._asked(lambda: self._download(path, bar))
            with lock:
                done[0] += 1
                doing(what, f"{done[0]:,} of {len(paths):,}")
            return local

        pool = ThreadPoolExecutor(NUM_THREADS)
        try:
            return list(pool.map(fetch_one, paths))
        finally:  # one failure is enough; threads that still fetch are not waited for
            pool.shutdown(wait=False, cancel_futures=True)

    def path(self, path: str) -> Path:
        """Return where a file of the commit lies once it is fetched."""
        return self.snapshot / path

    def has(self, path: str) -> bool:
        """Whether a file is in the cache."""
        return _is_whole(self.path(path), self.files.get(path))

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a part of a file, or fewer at its end.

        Raises:
            UsageError: the file cannot be read; or offline, and it is not in the cache.
            Unavailable: the Hub does not answer.
        """
        if self.has(path):
            with self.path(path).open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        if is_offline():
            raise UsageError(not_cached(self.kind, self.name, self.commit, path))
        ranges = self._ranges.setdefault(
            path, HubRanges(self.kind, self.name, self.commit, path, self.files[path].num_bytes)
        )
        return self._asked(lambda: ranges.read(start, stop))

    def _asked(self, action: Callable[[], Result]) -> Result:
        return _asked(self.kind, self.name, self.commit, action)

    @cached_property
    def _ranges(self) -> dict[str, HubRanges]:
        return {}

    @property
    def snapshot(self) -> Path:
        """The directory with the fetched files of the commit."""
        return folder_of(self.kind, self.name) / "snapshots" / self.commit

    def _download(self, path: str, bar: Any) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        is_cut = self.path(path).is_file()
        if is_cut and is_offline():
            raise UsageError(not_cached(self.kind, self.name, self.commit, f"all of {path}"))
        try:
            return Path(
                hf_hub_download(
                    self.name,
                    path,
                    repo_type=self.kind,
                    revision=self.commit,
                    local_files_only=is_offline(),
                    force_download=is_cut,
                    tqdm_class=bar,
                )
            )
        except LocalEntryNotFoundError:
            if not is_offline():
                raise
            raise UsageError(not_cached(self.kind, self.name, self.commit, path)) from None

    @property
    def _listing(self) -> Path:
        return folder_of(self.kind, self.name) / "job-trees" / f"{self.commit}.json"

    @property
    def _listing_of_client(self) -> Path:
        return folder_of(self.kind, self.name) / "trees" / f"{self.commit}.json"

    def _kept_listing(self) -> Tree | None:
        """Return the listing that an earlier start has kept, or the one that ``hf download`` has."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return in_order(RemoteFile(**entry) for entry in json.loads(self._listing.read_bytes()))
        with suppress(OSError, ValueError, KeyError, TypeError):  # from huggingface_hub 2 on
            of_client = json.loads(self._listing_of_client.read_bytes())
            return in_order(file_of_client(path, entry) for path, entry in of_client["files"].items())
        if is_offline() and self.snapshot.is_dir():
            return in_order(files_of_snapshot(self.snapshot))
        return None

    def _keep_listing(self, tree: Tree) -> None:
        with suppress(OSError):  # a cache that cannot be written costs a request at the next start
            write_whole(self._listing, json.dumps([asdict(file) for file in tree.values()]))


def pin(kind: str, name: str, revision: str | None) -> HubRepository:
    """Resolve a revision to a commit. To be called by one process, which tells the others.

    Online, the Hub is asked, and nothing else is taken for its answer; offline, the cache's refs are.

    Args:
        kind: ``model`` or ``dataset``.
        revision: a branch, a tag or a commit; None is the default branch.

    Raises:
        UsageError: the repository or the revision cannot be read; or offline, and it is not in the cache.
        Unavailable: the Hub does not answer.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return HubRepository(kind=kind, name=name, commit=revision)
    ref = folder_of(kind, name) / "refs" / (revision or "main")
    if is_offline():
        try:
            return HubRepository(kind=kind, name=name, commit=ref.read_text(encoding="utf-8").strip())
        except OSError:
            raise UsageError(not_cached(kind, name, revision)) from None
    from huggingface_hub import HfApi

    # A misspelt path that looks like a name is asked for, too: say so while the Hub does not answer.
    missing = "" if folder_of(kind, name).is_dir() else f"; there is no such {local_kind(kind)} here"
    info: Any = _asked(
        kind, name, revision, lambda: HfApi().repo_info(name, repo_type=kind, revision=revision), missing
    )
    with suppress(OSError):
        write_whole(ref, info.sha)
    return HubRepository(kind=kind, name=name, commit=info.sha)


def _asked(kind: str, name: str, revision: str | None, action: Callable[[], Result], about: str = "") -> Result:
    """Return what ``action`` gets from the Hub, or raise why it gets nothing.

    Args:
        about: what else is said of the name while the Hub does not answer.
    """
    try:
        return patiently(f"the Hub ({name}{about})", action)
    except JobError:
        raise
    except (OSError, ValueError) as error:  # all of huggingface_hub's own are among them
        raise UsageError(why_not(kind, name, error, revision)) from error


def _bar_class(server: str) -> Any:
    """Return a progress bar that says that the server answers while a file grows beyond all earlier attempts."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public, but not in __all__

    furthest = 0

    class Bar(tqdm):
        num_bytes = 0

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            self.num_bytes += int(n or 0)
            if self.num_bytes > furthest:
                furthest = self.num_bytes
                answers(server)
            shown: bool | None = super().update(n)
            return shown

    return Bar


def list_files(kind: str, name: str, commit: str) -> Tree:
    """Return the files of a commit as the Hub lists them. Raises whatever ``huggingface_hub`` raises."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(name, repo_type=kind, revision=commit, recursive=True)
    return in_order(
        RemoteFile(
            path=entry.path,
            num_bytes=entry.size,
            digest=f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}",
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    )


def is_offline() -> bool:
    """Whether the user has forbidden requests (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_whole(local: Path, listed: RemoteFile | None) -> bool:
    """Whether a file is in the cache in full: a disk that was full, or a copy of the cache, may have cut it."""
    return local.is_file() and (listed is None or local.stat().st_size == listed.num_bytes)

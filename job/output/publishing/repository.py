"""A dataset repository of the Hub that parts are committed to. Knows no run.

Commits are conditional: one that was prepared for an older state of the repository is refused by the Hub, so two
publishers, or a publisher and a person, cannot overwrite each other's work.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow.parquet as pq

from job.errors import JobError, UsageError, explain, first_line, is_foreign, shorten
from job.remote.hub import is_offline, list_files
from job.remote.patience import patiently
from job.remote.refusals import page
from job.remote.transient import is_transient, status_of
from job.remote.tree import Tree
from job.wording import redacted

Result = TypeVar("Result")
Source = Path | BinaryIO | bytes

CHANGED_SINCE = 412
"""The status with which the Hub refuses a commit whose parent is no longer the head of its branch."""

LOG_IN = "Set HF_TOKEN to a token with write access, or run 'hf auth login'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The current state of a repository."""

    commit: str
    files: Tree


class Repository:
    """A dataset repository, which need not exist yet."""

    def __init__(self, name: str, *, is_private: bool) -> None:
        """Use ``org/name``.

        Args:
            is_private: whether it must be private. If not, a new one is as its owner's settings say.

        Raises:
            UsageError: this is not the id of a repository, or there is no token to write to it.
        """
        from huggingface_hub import get_token

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
            raise UsageError(f"{name!r} is not the id of a repository. Write USER/NAME or ORGANIZATION/NAME.")
        if is_offline():
            raise UsageError("HF_HUB_OFFLINE is set, which forbids requests to the Hub. Unset it to publish.")
        if get_token() is None:
            raise UsageError(f"There is no token for the Hub. {LOG_IN}")
        self.name, self._is_private = name, is_private

    @property
    def url(self) -> str:
        """Where people find it."""
        return page("dataset", self.name)

    def create(self) -> None:
        """Make sure that it exists.

        Raises:
            UsageError: it cannot be created, or is public although it must be private.
        """
        from huggingface_hub import HfApi

        info = self._ask(self._info)
        if info is None:
            is_private = self._is_private or None
            self._ask(lambda: HfApi().create_repo(self.name, repo_type="dataset", private=is_private, exist_ok=True))
            info = self._ask(self._info)
        if self._is_private and info is not None and not info.private:
            raise UsageError(
                f"{self.url} is public, and --private was asked for. Make it private on its settings page, or publish "
                "to a new repository."
            )

    def head(self) -> Head:
        """Return the current state."""
        from huggingface_hub import HfApi

        def look() -> Head:
            commit: Any = HfApi().repo_info(self.name, repo_type="dataset").sha
            return Head(commit=commit, files=list_files("dataset", self.name, commit))

        return self._ask(look)

    def read(self, head: Head, path: str) -> bytes:
        """Return the contents of a small file."""
        from huggingface_hub import hf_hub_download

        return self._ask(
            lambda: Path(hf_hub_download(self.name, path, repo_type="dataset", revision=head.commit)).read_bytes()
        )

    def metadata_of(self, head: Head, path: str) -> Mapping[bytes, bytes]:
        """Return the metadata of a Parquet file, of which only the footer is read; nothing if it is not one."""
        from huggingface_hub import HfFileSystem

        def read() -> Mapping[bytes, bytes]:
            with HfFileSystem().open(f"datasets/{self.name}@{head.commit}/{path}", "rb") as file:
                try:
                    return pq.read_metadata(file).metadata or {}
                except Exception as error:
                    if is_transient(error):
                        raise
                    return {}

        return self._ask(read)

    def commit(self, head: Head, files: Mapping[str, Source], message: str) -> str | None:
        """Add or replace files in one commit.

        Returns:
            The commit; None if the repository has changed since ``head``, so that nothing was done.
        """
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        def send() -> str | None:
            for source in files.values():
                if not isinstance(source, Path | bytes):
                    source.seek(0)  # an attempt that failed has read some of it
            operations = [CommitOperationAdd(path, source) for path, source in files.items()]
            try:
                done = HfApi().create_commit(
                    self.name, operations, commit_message=message, repo_type="dataset", parent_commit=head.commit
                )
            except HfHubHTTPError as error:
                if status_of(error) == CHANGED_SINCE:
                    return None
                raise
            return done.oid

        return self._ask(send)

    def _info(self) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return HfApi().repo_info(self.name, repo_type="dataset")
        except RepositoryNotFoundError:
            return None

    def _ask(self, action: Callable[[], Result]) -> Result:
        with self._refusals():
            return patiently(f"the Hub ({self.name})", action)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what the Hub refuses into one line that says what to do."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

        try:
            yield
        except HfHubHTTPError as error:
            status = status_of(error)
            reason = redacted(shorten(error.server_message or first_line(error), 300)).rstrip(".")
            if isinstance(error, RepositoryNotFoundError):
                raise UsageError(f"There is no dataset {self.name} that this token may write to. {LOG_IN}") from None
            if status == 401:
                raise UsageError(f"The Hub does not accept the token: {reason}. {LOG_IN}") from None
            if status == 403:
                raise UsageError(f"This token may not write to {self.name}: {reason}. {LOG_IN}") from None
            raise JobError(f"The Hub refused a request for {self.name} (status {status}): {reason}.") from None
        except HFValidationError as error:
            raise UsageError(f"{self.name!r} is not the id of a repository: {first_line(error)}") from None
        except Exception as error:  # the client's, such as a RuntimeError about an upload that was refused
            if isinstance(error, JobError) or not is_foreign(error):
                raise
            raise JobError(
                f"{self.name} cannot be published to: {redacted(explain(error))}. What is published stays; run the "
                "same command to go on."
            ) from None

"""Remote files of which only parts are read: ranges of bytes, and never more than was asked for.

Whoever has pinned the files says how a range is read, with patience. Here is how the Hub sends one.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from job.errors import JobError
from job.remote.tree import RemoteTree


@dataclass(frozen=True, kw_only=True)
class RangedFile:
    """A file of a tree."""

    tree: RemoteTree
    path: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.tree.name}/{self.path}"

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.tree.files[self.path].num_bytes

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to ``stop``, or fewer at the end. See ``RemoteTree.read``."""
        return self.tree.read(self.path, start, stop)


class Refused(OSError):
    """An answer of a server other than the Hub. Has no address, which would contain a signature."""

    def __init__(self, response: Any) -> None:
        """Keep the response, from which it is clear whether the trouble may be over soon."""
        host = urlsplit(str(response.url)).hostname
        super().__init__(f"{host} answered {response.status_code}")
        self.response = response


class HubRanges:
    """Requests ranges of one file of a commit. Any number of threads may do so.

    The Hub sends the client on to where the bytes are, with an address that is valid for a while. It is used until it
    is refused, since the Hub limits how often it may be asked.
    """

    def __init__(self, kind: str, name: str, commit: str, path: str, num_bytes: int) -> None:
        """Request nothing yet."""
        from huggingface_hub import hf_hub_url

        self._url = hf_hub_url(name, path, repo_type=kind, revision=commit)
        self._path, self._num_bytes = path, num_bytes
        self._elsewhere: str | None = None

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to ``stop``, or fewer at the end.

        Raises:
            JobError: the server does not send ranges, or the file is not the one that was listed.
            Exception: the Hub refuses, or the network fails.
        """
        stop = min(stop, self._num_bytes)
        if start >= stop:
            return b""
        content = self._read(start, stop)
        if len(content) != stop - start:
            raise ConnectionError(f"{len(content):,} of {stop - start:,} bytes of {self._path} have arrived")
        return content

    def _read(self, start: int, stop: int) -> bytes:
        from huggingface_hub import hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        elsewhere = self._elsewhere
        if elsewhere is not None:
            response = _get(elsewhere, start, stop, {})
            if response.status_code not in (400, 401, 403, 404, 410):
                return self._content(response)
            self._elsewhere = None  # the address has expired
        response = _get(self._url, start, stop, build_hf_headers())  # the client drops the token on the way elsewhere
        if urlsplit(str(response.url)).netloc == urlsplit(self._url).netloc:
            hf_raise_for_status(response)
            return self._content(response)
        if response.status_code == 403:
            raise ConnectionError(f"{Refused(response)}, although the Hub has just given the address")
        content = self._content(response)
        self._elsewhere = str(response.url)
        return content

    def _content(self, response: Any) -> bytes:
        if response.status_code >= 400:
            raise Refused(response)
        total = str(response.headers.get("Content-Range", "")).rpartition("/")[2]
        if response.status_code != 206 or total not in (str(self._num_bytes), "*"):
            raise JobError(
                f"{self._path} cannot be read in place: {self._num_bytes:,} bytes are listed, and the server answered "
                f"{response.status_code} with {total or 'no range'}. Leave out --streaming."
            )
        return bytes(response.content)


def _get(url: str, start: int, stop: int, headers: dict[str, str]) -> Any:
    from huggingface_hub import constants, get_session

    try:
        return get_session().get(
            url,
            headers={**headers, "Range": f"bytes={start}-{stop - 1}"},
            follow_redirects=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
    except RuntimeError as error:  # another thread has had trouble, and has closed the client that all share
        raise ConnectionError(str(error)) from error

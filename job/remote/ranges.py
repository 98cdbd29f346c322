"""Remote files that are read in place: ranges of bytes, with patience, and never more than was asked for.

A file is pinned by whoever makes it: its bytes do not change while it is read. How a range is fetched is one small
function, so that files of the Hub and of object stores are read alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from job.errors import JobError
from job.remote.hub import HubRepository
from job.remote.patience import patiently

Fetch = Callable[[int, int], bytes]
"""Returns the bytes from the first position up to the second. Raises what its library raises."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RangedFile:
    """A remote file of a known size."""

    name: str
    """For messages: relative to the dataset."""
    num_bytes: int
    server: str
    """Who is waited for, such as ``the Hub (org/name)``."""
    fetch: Fetch

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to ``stop``, as far as the file goes.

        Raises:
            Unavailable: the server has not answered for too long.
            Exception: the server refuses; its library raises any.
        """
        stop = min(stop, self.num_bytes)
        if start >= stop:
            return b""
        return patiently(self.server, lambda: self._read(start, stop))

    def _read(self, start: int, stop: int) -> bytes:
        content = self.fetch(start, stop)
        if len(content) != stop - start:
            raise ConnectionError(f"it sent {len(content):,} of {stop - start:,} bytes of {self.name}")
        return content


def file_of_hub(repository: HubRepository, path: str) -> RangedFile:
    """Return a file of a commit. Nothing is requested."""
    num_bytes = repository.files[path].num_bytes
    server = f"the Hub ({repository.name})"
    return RangedFile(name=path, num_bytes=num_bytes, server=server, fetch=_HubFile(repository, path, num_bytes))


class Refused(OSError):
    """An answer of a server other than the Hub. Has no address, which would contain a signature."""

    def __init__(self, response: Any) -> None:
        """Keep the response, from which it is clear whether the trouble may be over soon."""
        host = urlsplit(str(response.url)).hostname
        super().__init__(f"{host} answered {response.status_code}")
        self.response = response


class _HubFile:
    """Fetches ranges of a file of a commit.

    The Hub sends the client on to where the bytes are, with an address that is valid for a while. It is used until it
    is refused, since the Hub limits how often it may be asked.
    """

    def __init__(self, repository: HubRepository, path: str, num_bytes: int) -> None:
        from huggingface_hub import hf_hub_url

        self._url = hf_hub_url(repository.name, path, repo_type=repository.kind, revision=repository.commit)
        self._path, self._num_bytes = path, num_bytes
        self._elsewhere: str | None = None

    def __call__(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to ``stop``."""
        elsewhere = self._elsewhere
        if elsewhere is not None:
            response = _get(elsewhere, start, stop, {})
            if response.status_code not in (400, 401, 403, 404, 410):
                return self._content(response)
            self._elsewhere = None  # the address has expired
        from huggingface_hub import hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

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

"""An address that ``fsspec`` can reach, and what is asked of it there: with patience, and with refusals in one line.

Knows where the file systems of ``fsspec`` differ: what each knows about a file, and which options it needs.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from job.errors import JobError, UsageError, first_line
from job.remote.addresses import Address, full_address, is_web, scheme_of
from job.remote.patience import patiently
from job.remote.transient import causes_of
from job.wording import redacted

STALL_SECS = 30.0

ETAGS = ("ETag", "etag")
CHECKSUMS = ("md5Hash", "Content-MD5", "Digest", "checksum", "sha")
TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")
"""What file systems call what they know of a file, the most telling first."""

NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
)
"""Names of errors of the clients of S3, Google and Azure."""

PLAIN = {"Accept-Encoding": "identity"}
"""What lets the sizes of a web server be those of the files."""

State = tuple[int, str]
"""Size and digest of a file."""

NO_STATE: State = (-1, "")
"""Of a file of which the server says too little."""

Result = TypeVar("Result")


class NoRangesError(UsageError):
    """A server cannot send a part of a file."""


class Place:
    """An address."""

    def __init__(self, address: str, option: str = "dataset") -> None:
        """Take an address, and the option that named it."""
        self.full, self.option = full_address(address), option
        self.shown = str(Address(self.full))
        self.is_web = is_web(self.full)

    @cached_property
    def _found(self) -> tuple[Any, str]:
        try:
            import fsspec

            return tuple(fsspec.url_to_fs(self.full, **(_web_options() if self.is_web else {})))
        except ImportError as error:
            raise UsageError(self._lacks_package(error)) from None
        except ValueError as error:
            raise self._refusal(error) from None

    @property
    def system(self) -> Any:
        """The file system of ``fsspec``."""
        return self._found[0]

    @property
    def path(self) -> str:
        """What ``fsspec`` calls the address."""
        return self._found[1]

    @property
    def server(self) -> str:
        """Who is waited for."""
        host = self.shown.split("/")[2].rpartition("@")[2]
        return f"the server {host}" if self.is_web else f"the store {scheme_of(self.full)}://{host}"

    def ask(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns, with patience.

        Raises:
            UsageError: the store refuses.
            Unavailable: it does not answer.
        """
        try:
            return patiently(self.server, action)
        except JobError:
            raise
        except Exception as error:
            raise self._refusal(error) from error

    def read(self, location: str, state: State, start: int, stop: int) -> bytes:
        """Return the bytes of a part of a file.

        Args:
            location: what ``fsspec`` calls the file.
            state: what it must be.

        Raises:
            UsageError: the store refuses, or the file has changed.
            Unavailable: it does not answer.
        """
        return self.ask(lambda: self._read(location, state, start, stop))

    def _read(self, location: str, state: State, start: int, stop: int) -> bytes:
        if not self.system.async_impl:
            found: bytes = self.system.cat_file(location, start, stop)
        else:  # opened in this way, a file of S3 is pinned to its ETag, and nothing is read ahead
            known: dict[str, Any] = {"size": state[0], "headers": _only_if(state)} if self.is_web else {}
            with self.system.open(location, "rb", cache_type="none", **known) as file:
                if not self.is_web and state_of(file.details) != state:
                    raise self._has_changed(location)
                file.seek(start)
                try:
                    found = file.read(stop - start)
                except ValueError as error:  # of HTTPFile
                    raise NoRangesError(
                        f"--{self.option} {self.shown}: this server does not send parts of files, which reading in "
                        "place needs. Leave out --streaming."
                    ) from error
        if len(found) != stop - start:
            raise ConnectionError(f"it sent {len(found):,} of {stop - start:,} bytes")
        return found

    def copy(self, location: str, target: Path) -> None:
        """Copy a whole file in one request."""
        self.ask(lambda: self.system.get_file(location, str(target)))

    def url(self, location: str) -> str:
        """Return an address of a file."""
        return str(self.system.unstrip_protocol(location))

    def _has_changed(self, location: str) -> UsageError:
        return UsageError(f"{redacted(self.url(location))} has changed since it was listed. Start again.")

    def _lacks_package(self, error: ImportError) -> str:
        cause = error.__cause__ or error
        package = (getattr(cause, "name", None) or "").partition(".")[0] or first_line(error)
        return (
            f"--{self.option} {self.shown}: {scheme_of(self.full)}:// needs the package {package}. "
            f"Install it: pip install {package}."
        )

    def _refusal(self, error: Exception) -> UsageError:
        """Return why something cannot be read, in one line."""
        causes = list(causes_of(error))
        named, scheme = f"--{self.option} {self.shown}", scheme_of(self.full)
        statuses = {getattr(cause, "status", None) for cause in causes}
        said = redacted(first_line(error)).rstrip(".")
        if any(type(cause).__name__ in NO_CREDENTIALS for cause in causes):
            return UsageError(
                f"{named}: there are no credentials for {scheme}://. Set them as its package wants them, such as "
                f"AWS_PROFILE or AWS_ACCESS_KEY_ID for s3://; for public data, set FSSPEC_{scheme.upper()}_ANON=true."
            )
        if 412 in statuses or "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
            return UsageError(f"{self.shown} has changed since it was listed. Start again.")
        if isinstance(error, PermissionError) or statuses & {401, 403}:
            return UsageError(f"{named}: access is denied{_in_brackets(said, self.full)}. Check your credentials.")
        if isinstance(error, FileNotFoundError) and statuses <= {None, 404, 410}:
            return UsageError(f"{named}: there is no such file or directory{_in_brackets(said, self.full)}.")
        answered = next((f"the server answered {status}" for status in statuses if status), said)
        return UsageError(f"{named} cannot be read: {answered}.")


def state_of(info: Mapping[str, Any]) -> State:
    """Return a file's size, and what identifies its contents: a checksum, or its time.

    >>> state_of({"size": 3, "ETag": '"ab"', "LastModified": 1})
    (3, 'etag:ab')
    >>> state_of({"size": 3, "created": 7}), state_of({"size": 3}), state_of({"size": None, "ETag": "x"})
    ((3, 'time:7, 3 bytes'), (-1, ''), (-1, ''))
    """
    if info.get("size") is None:
        return NO_STATE
    size = int(info["size"])
    for kind, names in (("etag", ETAGS), ("checksum", CHECKSUMS)):
        if value := next((info[name] for name in names if info.get(name)), None):
            return size, f"{kind}:" + str(value).strip('"')
    if time := next((info[name] for name in TIMES if info.get(name)), None):
        return size, f"time:{time.isoformat() if hasattr(time, 'isoformat') else time}, {size} bytes"
    return NO_STATE


def _only_if(state: State) -> dict[str, str]:
    """Return headers for a request that a web server answers only if a file is still as it was.

    >>> _only_if((3, "etag:ab"))["If-Match"], sorted(_only_if((3, "etag:W/ab")))
    ('"ab"', ['Accept-Encoding'])
    """
    kind, _, value = state[1].partition(":")
    if kind == "etag" and not value.startswith("W/"):
        return {**PLAIN, "If-Match": f'"{value}"'}
    if kind == "time":
        return {**PLAIN, "If-Unmodified-Since": value.removesuffix(f", {state[0]} bytes")}
    return PLAIN


def _in_brackets(said: str, address: str) -> str:
    """Return what a library says, unless it is only the address."""
    return f" ({said})" if " " in said and address not in said else ""


def _web_options() -> dict[str, Any]:
    """Return options for a web server: proxies are used as elsewhere, large files may take long, but nothing stalls.

    What the user has configured for ``fsspec`` wins.
    """
    import aiohttp
    import fsspec

    ours = {
        "client_kwargs": {
            "trust_env": True,
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECS, sock_read=STALL_SECS),
        },
        "headers": PLAIN,
    }
    users = {**fsspec.config.conf.get("http", {}), **fsspec.config.conf.get("https", {})}
    return {**ours, **users}

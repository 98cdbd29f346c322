"""Patience with networks: what fails for the moment is tried again until it has failed for too long.

The clients of the Hub retry, too, but only some of their requests, and for some 30 s. Errors are recognized by where
they come from: the classes of the HTTP clients change with their versions.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from job.errors import Unavailable, first_line
from job.launch.activity import doing

Result = TypeVar("Result")

FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 1.0, 30.0

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers of a server that is overloaded, restarting, or behind a proxy with trouble."""

HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "botocore")
"""Packages whose transport errors are no ``OSError``."""

TRANSPORT_ERRORS = ("TransportError", "NetworkError", "TimeoutException", "ProtocolError", "ClientConnectionError")
"""Names of their base classes."""


class _Patience:
    """How long this process waits for a network. There is one, set from ``--hub-timeout``."""

    def __init__(self) -> None:
        self.secs = 600.0


_current = _Patience()


def set_patience(secs: float) -> None:
    """Set how long a failing request is retried, for the whole process."""
    _current.secs = secs


def patiently(what: str, action: Callable[[], Result]) -> Result:
    """Return what ``action`` returns, retrying it while it fails with something transient.

    Args:
        what: what is waited for, such as ``the Hub (org/name)``.

    Raises:
        Unavailable: it has failed for as long as ``--hub-timeout`` allows.
    """
    start, pause = time.monotonic(), FIRST_PAUSE_SECS
    while True:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            elapsed = time.monotonic() - start
            if elapsed + pause > _current.secs:
                raise Unavailable(
                    f"{what} has not answered for {elapsed:.0f} s: {first_line(_root(error))}. Nothing is lost: run "
                    "the same command again once it is back, or wait longer with --hub-timeout."
                ) from error
            doing(f"waiting for {what}", first_line(_root(error)))
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECS)


def is_transient(error: BaseException) -> bool:
    """Whether an error is trouble of a network or a server, which may be over soon."""
    return any(_is_transient(cause) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, as far as the libraries have noted it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _root(error: BaseException) -> BaseException:
    return next(cause for cause in _causes(error) if _is_transient(cause))


def _is_transient(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in TRANSIENT_STATUS
    if type(error).__name__ == "OfflineModeIsEnabled":  # a ConnectionError, but by choice
        return False
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return True
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return any(module in HTTP_CLIENTS and name in TRANSPORT_ERRORS for module, name in names)

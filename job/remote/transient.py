"""Which errors are trouble of a network or a server that may soon be over. Knows the clients' errors, and no client.

An error is judged together with what caused it: libraries wrap errors, some several times. The outermost one that says
anything decides. Classes are recognized by their names, because the HTTP client depends on the versions installed.
"""

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from job.errors import JobError, first_line
from job.wording import redacted

TRANSIENT_STATUS = frozenset({408, 425, 429})
PERMANENT_5XX = frozenset({501, 505, 511})
"""Not implemented, HTTP version not supported, and the login page of a network."""

TRANSPORT_ERRORS = {
    "http": {"IncompleteRead", "BadStatusLine"},
    "httpx": {"TransportError"},
    "httpx2": {"TransportError"},
    "httpcore": {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"},
    "httpcore2": {"NetworkError", "TimeoutException", "ProtocolError", "ProxyError"},
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError"},
    "urllib3": {"ProtocolError", "TimeoutError", "NewConnectionError", "MaxRetryError", "SSLError"},
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "botocore": {"HTTPClientError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError"},
    "google": {"TransportError"},
    "huggingface_hub": {"XetDownloadError"},
}
"""Packages, with those of their classes of errors that mean a connection did not work."""

OUR_FAULT = frozenset({"LocalProtocolError", "UnsupportedProtocol"})
"""Transport errors of httpx that are none: an address without https://, a header with a line break."""

TRANSIENT_ERRNO = frozenset(
    {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETRESET, errno.ECONNRESET}
)
PERMANENT_ERRNO = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EFBIG}
)
"""Of the disk that a file is fetched to."""

SIGNED = re.compile(r"[?&](Signature|X-Amz-Signature|X-Goog-Signature|sig)=", re.IGNORECASE)
EXPIRED_STATUS = frozenset({400, 403})
"""What the hosts of large files answer once the signature of a link has expired. A new link is asked for each time."""

TRANSIENT_TEXTS = (
    "Consistency check failed",  # huggingface_hub: a file was cut off
    "Cannot send a request, as the client has been closed",  # httpx: another thread has had trouble with its connection
)
"""Errors without a class of their own."""

S3_CODES = frozenset({"RequestTimeout", "SlowDown"})
"""Codes of S3 that are transient whatever their status is."""


def is_transient(error: BaseException) -> bool:
    """Whether an error is trouble of a network or a server, which may be over soon."""
    return _deciding(error) is not None


def reason_of_trouble(error: BaseException) -> str:
    """Return in a few words what a transient error is, without the address, which may hold a signature."""
    decisive = _deciding(error) or error
    status = status_of(decisive)
    if status is None:
        return re.sub(r"^\[Errno -?\d+\] ", "", redacted(first_line(decisive)))
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    expired = " (the link to the file has expired)" if _has_expired(decisive, status) else ""
    return f"{status} {phrase}".strip() + expired


def untrusted_certificate(error: BaseException) -> str | None:
    """Return why the certificate of a server is not trusted; None if that is not the trouble."""
    for cause in causes_of(error):
        text = str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in text:
            return re.sub(r"^.*certificate verify failed: | \(_ssl\.c:\d+\).*$", "", first_line(cause))
    return None


def asked_pause(error: BaseException) -> float:
    """Return how many seconds the server asks clients to wait (429, 503). 0: it does not say."""
    response = getattr(_deciding(error), "response", None)
    headers = getattr(response, "headers", None)
    if headers is None:
        return 0.0
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit") or headers.get("ratelimit") or "")
    after = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After") or headers.get("retry-after") or "")
    return max((float(match[1]) for match in (limit, after) if match), default=0.0)


def status_of(error: BaseException) -> int | None:
    """Return the status of the HTTP answer that an error is about."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(error, "status", None))
    return status if isinstance(status, int) else None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, as far as the libraries have noted it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _deciding(error: BaseException) -> BaseException | None:
    """Return the error that makes this one transient; None if it is not."""
    causes = list(causes_of(error))
    is_offline = any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in causes)  # by choice
    if is_offline or untrusted_certificate(error) is not None:
        return None
    verdicts = ((cause, _verdict(cause)) for cause in causes)
    return next((cause if verdict else None for cause, verdict in verdicts if verdict is not None), None)


def _verdict(error: BaseException) -> bool | None:
    """Whether an error by itself is transient. None: it does not say."""
    if isinstance(error, JobError):
        return False
    if _code_of_s3(error) in S3_CODES:
        return True
    if (status := status_of(error)) is not None:
        is_5xx = 500 <= status < 600 and status not in PERMANENT_5XX
        return is_5xx or status in TRANSIENT_STATUS or _has_expired(error, status)
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    if any(name in TRANSPORT_ERRORS.get(package, ()) for package, name in names):
        return type(error).__name__ not in OUR_FAULT and not _is_refused_by_proxy(error)
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO:
        return True
    if isinstance(error, OSError) and error.errno in PERMANENT_ERRNO:
        return False
    return True if str(error).startswith(TRANSIENT_TEXTS) else None


def _code_of_s3(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return (response.get("Error") or {}).get("Code") if isinstance(response, dict) else None


def _has_expired(error: BaseException, status: int) -> bool:
    """Whether the host of a large file refuses a link that the Hub has signed, rather than the Hub its user."""
    url = ""
    with suppress(RuntimeError):  # httpx, of a response without its request
        url = str(getattr(getattr(error, "response", None), "url", ""))
    return status in EXPIRED_STATUS and SIGNED.search(url) is not None


def _is_refused_by_proxy(error: BaseException) -> bool:
    """Whether a proxy has refused a connection, as in ``407 Proxy Authentication Required``."""
    return type(error).__name__ == "ProxyError" and re.match(r"4\d\d\b", str(error)) is not None

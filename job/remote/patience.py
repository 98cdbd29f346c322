"""Patience with networks: what fails for the moment is tried again until it has failed for too long.

The clients of the Hub retry, too, but only some of their requests, and for some 30 s.
"""

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from job.errors import Unavailable, UsageError
from job.launch.activity import answers, fails
from job.remote.transient import asked_pause, is_transient, reason_of_trouble, untrusted_certificate

Result = TypeVar("Result")

FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 1.0, 30.0

STALL_SECS = 30.0
"""How long a request may go without a byte if its caller sets no limit. The clients wait forever."""


class _Patience:
    """How long this process waits for a network. There is one, set from ``--hub-timeout``."""

    def __init__(self) -> None:
        self.secs = 600.0
        self.wait: Callable[[float], object] = _sleep


def _sleep(secs: float) -> None:
    time.sleep(secs)


_current = _Patience()


def set_patience(secs: float, wait: Callable[[float], object] = _sleep) -> None:
    """Set how long a failing request is retried, for the whole process, and let no request stall forever.

    Args:
        secs: 0 means that nothing is retried.
        wait: sleeps, in any thread; returns True if the process is to end, so that nothing more is waited for.
    """
    _current.secs, _current.wait = secs, wait
    limit_stalls()


def lose_patience() -> None:
    """Retry nothing any more: the process is about to end, and only tries to save what it can."""
    _current.wait = lambda secs: True


def limit_stalls() -> None:
    """Give every request of ``huggingface_hub`` a limit for the time without a byte: some have none."""
    import huggingface_hub

    session = huggingface_hub.get_session()
    make: Any = type(session)  # of httpx or httpx2
    hooks = [hook for hook in session.event_hooks["request"] if hook is not _limit]
    huggingface_hub.set_client_factory(
        lambda: make(event_hooks={"request": [*hooks, _limit]}, follow_redirects=True, timeout=STALL_SECS)
    )


def _limit(request: Any) -> None:
    """Set the limits that a request lacks. The clients of the Hub pass ``timeout=None`` with most of them."""
    given = request.extensions.get("timeout") or {}
    limits = {name: given.get(name) or STALL_SECS for name in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def patiently(what: str, action: Callable[[], Result]) -> Result:
    """Return what ``action`` returns, retrying it while it fails with something transient.

    May be called in several threads for one server: what one of them gets from it is a success for all.

    Args:
        what: what is waited for, such as ``the Hub (org/name)``.

    Raises:
        Unavailable: it has failed for as long as ``--hub-timeout`` allows, without any success; or the process is to
            end.
        UsageError: the certificate of the server is not trusted.
    """
    start, pause = time.monotonic(), FIRST_PAUSE_SECS
    while True:
        try:
            result = action()
        except Exception as error:
            if not is_transient(error):
                answers(what)
                _check_certificate(what, error)
                raise
            secs = min(fails(what, reason_of_trouble(error)), time.monotonic() - start)
            left = _current.secs - secs
            if left < 0.01:  # without ``answers``: the other threads are to give up, too, not to wait anew
                raise _unavailable(what, error, secs) from error
            # With jitter: a hundred tasks of a job array that were refused together must not come back together.
            if _current.wait(min(left, asked_pause(error) + pause * random.uniform(0.5, 1.5))):
                answers(what)
                raise _unavailable(what, error, secs) from error
        else:
            answers(what)
            return result
        pause = min(2 * pause, MAX_PAUSE_SECS / 1.5)


def raise_if_unavailable(what: str, error: Exception) -> None:
    """Turn an error of a library that has retried enough into ours. To be called where such errors are explained.

    Raises:
        Unavailable: the error is transient.
        UsageError: the certificate of the server is not trusted.
    """
    if is_transient(error):
        raise _unavailable(what, error) from error
    _check_certificate(what, error)


def _unavailable(what: str, error: Exception, secs: float = 0.0) -> Unavailable:
    silence = f"has not answered for {secs:.0f} s" if secs >= 1 else "does not answer"
    return Unavailable(
        f"{what[0].upper()}{what[1:]} {silence}: {reason_of_trouble(error)}. Nothing is lost: run the same command "
        "again once it is back, or let it wait longer with --hub-timeout."
    )


def _check_certificate(what: str, error: Exception) -> None:
    """Refuse a server that the client does not trust: waiting does not help."""
    if (problem := untrusted_certificate(error)) is not None:
        raise UsageError(
            f"{what[0].upper()}{what[1:]} has a certificate that is not trusted: {problem}. If a proxy of your site "
            "signs them, set SSL_CERT_FILE to a file with its certificates."
        ) from error

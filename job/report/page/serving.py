"""Serves the page of a run on this machine, with new numbers as long as it is asked.

Only on the loopback interface. Others who are logged in to the same machine can reach that, too, so the address
contains a random token: who does not have it sees nothing. (It also keeps other web sites out, which could otherwise
reach the page under a name of their own.)
"""

import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from job.errors import JobError, UsageError
from job.report.page.embedded import to_json
from job.report.page.html import to_html

HOST = "127.0.0.1"

REST_FACTOR = 5
"""To make new numbers may take at most one part in this of the time, so that a large run is not read without end."""


class Latest:
    """Makes numbers when they are asked for and the last ones are old."""

    def __init__(self, make: Callable[[], dict[str, Any]], every_secs: float) -> None:
        """Make the first numbers when they are asked for."""
        self._make, self._every_secs = make, every_secs
        self._lock = threading.Lock()
        self._data: dict[str, Any] | None = None
        self._due = 0.0

    def get(self) -> dict[str, Any]:
        """Return the latest numbers.

        Raises:
            JobError: the run cannot be read.
        """
        with self._lock:
            if self._data is None or time.monotonic() >= self._due:
                began = time.monotonic()
                self._data = self._make()
                took = time.monotonic() - began
                self._due = time.monotonic() + max(self._every_secs / 2, REST_FACTOR * took)
            return self._data


class PageServer:
    """An open server."""

    def __init__(self, latest: Latest, title: str, port: int = 0) -> None:
        """Open a port.

        Args:
            port: 0: any that is free.

        Raises:
            UsageError: it is not free.
        """
        self._token = secrets.token_urlsafe(16)
        try:
            self._server = ThreadingHTTPServer((HOST, port), _answering(latest, title, f"/{self._token}/"))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"--port {port} cannot be opened: {reason}. Without --port, a free one is used.") from None
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}/{self._token}/"

    def serve(self) -> None:
        """Answer until ``close``, or an exception such as Ctrl-C."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop, also while another thread serves."""
        self._server.shutdown()
        self._server.server_close()


def _answering(latest: Latest, title: str, root: str) -> type[BaseHTTPRequestHandler]:
    class Answer(BaseHTTPRequestHandler):
        """Answers one request."""

        def do_GET(self) -> None:
            if not secrets.compare_digest(self.path.encode()[: len(root)], root.encode()):
                return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"Nothing is here.\n")
            try:
                if self.path == root:
                    return self._send(HTTPStatus.OK, "text/html", to_html(latest.get(), title, is_served=True))
                if self.path == f"{root}data.json":
                    return self._send(HTTPStatus.OK, "application/json", to_json(latest.get()).encode(errors="replace"))
            except JobError as error:
                return self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n".encode())
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"Nothing is here.\n")

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal is the user's."""

    return Answer
